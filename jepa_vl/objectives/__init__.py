"""Objectives: the science and nothing else. No optimizer, no mesh, no step counter in here."""

from jepa_vl.config import Config
from jepa_vl.objectives import contrastive as contrastive  # these register themselves
from jepa_vl.objectives import crossmodal as crossmodal
from jepa_vl.objectives import tcjepa as tcjepa
from jepa_vl.objectives import tijepa as tijepa
from jepa_vl.objectives.base import REGISTRY, Objective


def build(config: Config) -> Objective:
    """The objective of a resolved configuration."""
    return REGISTRY[config.objective](config)
