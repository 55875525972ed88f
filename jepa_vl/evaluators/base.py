"""What an evaluator is, and the registry.

Evaluators learn from frozen features alone. They know neither the loop nor checkpoints: whoever
calls them chooses the parameters (the branch, the step) and says how features come of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

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
# What an evaluator is built with, beside the configuration: an Extract; a ViewsOf; a
# network.Network, which trains parts of its own on images or patches; a joint.Joint, the whole
# objective with its text side, called with (params, target) of a train state.
LABELLED, VIEWS, NETWORK, JOINT = "labelled", "views", "network", "joint"


class Measured(NamedTuple):
    """What a protocol found.

    Attributes:
      scores: numbers by name; accuracies lie in [0, 1] and are of the held-out part.
      hits: of each accuracy, which held-out images were right in which draw of the training part:
        bool [draws, m], whose mean it is.
      ci: low and high end, 95 %, of scores that are no mean of hits, where the protocol knows them.
      baselines: scores of something cheaper by the same protocol, by its name ("chance", "centre").
    """

    scores: dict[str, float]
    hits: dict[str, Array]
    ci: Mapping[str, tuple[float, float]] = MappingProxyType({})
    baselines: Mapping[str, dict[str, float]] = MappingProxyType({})


class Evaluator(Protocol):
    """One protocol. Deterministic: the same features give the same numbers.

    Attributes:
      protocol: the choices that its numbers depend on, fit for JSON.
      reads: what it is built with: LABELLED, VIEWS, NETWORK or JOINT.
      of_pixels: are raw pixels in the place of features a floor for it?
    """

    reads: ClassVar[str] = LABELLED
    of_pixels: ClassVar[bool]
    protocol: dict[str, Any]

    def measure(self, params: PyTree) -> Measured:
        """Numbers, and the images that they are made of."""
        ...

    def run(self, params: PyTree) -> dict[str, float]:
        """The numbers alone."""
        ...


class Measures:
    """What evaluators share: numbers are those of :meth:`measure`."""

    of_pixels: ClassVar[bool] = True

    def measure(self, params: PyTree) -> Measured:
        """See :class:`Evaluator`."""
        raise NotImplementedError

    def run(self, params: PyTree) -> dict[str, float]:
        """See :class:`Evaluator`."""
        return self.measure(params).scores


REGISTRY: dict[str, Any] = {}  # classes of Evaluator


def register(name: str) -> Callable[[type], type]:
    """Enters an evaluator, built from the resolved configuration and what it reads."""

    def enter(cls: type) -> type:
        REGISTRY[name] = cls
        return cls

    return enter


def read_by(name: str) -> str:
    """What the evaluator of a name reads: LABELLED, VIEWS, NETWORK or JOINT."""
    return getattr(REGISTRY[name], "reads", LABELLED)


def majority(found: Features) -> float:
    """Accuracy on the held-out part of the class that the training part has most of."""
    commonest = np.bincount(found.train_labels).argmax()
    return float(np.mean(found.held_out_labels == commonest))


def accuracy(found: Array, labels: Array) -> float:
    """Share of labels, int [m], that were found."""
    return float(np.mean(found == labels))
