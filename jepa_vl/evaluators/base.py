"""What an evaluator is, and the registry.

Evaluators learn from frozen features alone. They know neither the loop nor checkpoints: whoever
calls them chooses the parameters (the branch, the step) and says how features come of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy as np

from jepa_vl.config import Config
from jepa_vl.shapes import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of labelled images: those to learn from, and those to be tested on.

    Attributes:
      train: float [n, X]; train_labels: int [n], >= 0.
      held_out: float [m, X]; held_out_labels: int [m], >= 0, of the same classes.
    """

    train: Array
    train_labels: Array
    held_out: Array
    held_out_labels: Array


# Parameters of an encoder -> what an evaluator reads.
Extract = Callable[[PyTree], Features]
# Parameters of an encoder -> features of augmented views of held-out images, float [n, q, X].
ViewsOf = Callable[[PyTree], Array]
LABELLED, VIEWS = "labelled", "views"


class Evaluator(Protocol):
    """One protocol. Deterministic: the same features give the same numbers.

    Attributes:
      protocol: the choices that its numbers depend on, fit for JSON.
      reads: LABELLED, of an Extract, or VIEWS, of a ViewsOf: what it is built with.
    """

    reads: ClassVar[str] = LABELLED
    protocol: dict[str, Any]

    def run(self, params: PyTree) -> dict[str, float]:
        """Numbers by name; accuracies lie in [0, 1] and are of the held-out part."""
        ...


REGISTRY: dict[str, Callable[[Config, Any], Evaluator]] = {}


def register(name: str) -> Callable[[type], type]:
    """Enters an evaluator, built from the resolved configuration and what it reads."""

    def enter(cls: type) -> type:
        REGISTRY[name] = cls
        return cls

    return enter


def read_by(name: str) -> str:
    """What the evaluator of a name reads: LABELLED or VIEWS."""
    return getattr(REGISTRY[name], "reads", LABELLED)


def accuracy(found: Array, labels: Array) -> float:
    """Share of labels, int [m], that were found."""
    return float(np.mean(found == labels))
