"""Objectives: the science and nothing else. No optimizer, no mesh, no step counter in here."""

from jepa_vl import methods
from jepa_vl.config import Config, one_of
from jepa_vl.models import conditioner
from jepa_vl.objectives import contrastive as contrastive  # these register themselves
from jepa_vl.objectives import crossmodal as crossmodal
from jepa_vl.objectives import tcjepa as tcjepa
from jepa_vl.objectives import tijepa as tijepa
from jepa_vl.objectives.base import REGISTRY, Objective
from jepa_vl.objectives.losses import DISTANCES


def check(config: Config) -> None:
    """Refuses names that nothing is registered under, of objects that can be added to.

    Whether or not the objective reads them: a slip of the pen is one.

    Raises:
      ConfigError: of ``conditioner``, ``loss.distance`` or ``loss.regulariser``.
    """
    if config.loss.distance != methods.method(config.objective).distance:  # a contrastive's: none
        one_of("loss.distance", config.loss.distance, DISTANCES)
    one_of("loss.regulariser", config.loss.regulariser, conditioner.REGULARISERS)
    conditioner.check(config.conditioner)


def build(config: Config) -> Objective:
    """The objective of a resolved configuration.

    Raises:
      ConfigError: see :func:`check`; or a tower that it reads is absent or does not fit.
    """
    check(config)
    return REGISTRY[config.objective](config)
