"""Linear probes by the recipes that papers quote: trained by SGD or LARS on crops of the images.

Numbers of ``accuracy`` make no choice on the held-out part; ``accuracy_best_on_test`` is the best
head there, as papers that try several heads report it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.evaluators import crops, heads
from jepa_vl.evaluators.base import NETWORK, Features, Measured, Measures, majority, register
from jepa_vl.evaluators.fast import HELD, hold
from jepa_vl.evaluators.heads import Heads, Plan
from jepa_vl.evaluators.network import Network
from jepa_vl.shapes import Array, PyTree


def tenfold_down(progress: float) -> float:
    """VISSL's: divided by ten every 15 of 50 epochs."""
    return 0.1 ** int(50 * progress / 15)


def cosine(progress: float) -> float:
    """From 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def warm_cosine(progress: float) -> float:
    """MAE's: up for 10 of 90 epochs, then a cosine to 0."""
    epoch = 90 * progress
    return epoch / 10 if epoch < 10 else cosine((epoch - 10) / 80)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A protocol; learning rates are multiplied with batch / 256.

    Attributes:
      source: where it is written.
      layers: each number of last blocks whose pooled features, side by side, heads are trained on.
      rates, decays, normed: heads are all combinations of these.
      batch: images a step.
      epochs: over the training images; steps: in their place where the protocol counts steps.
      factor, schedule: of the learning rates, and its name.
      optimiser: LARS or SGD, with momentum 0.9.
      eps: of the batch normalisation.
    """

    source: str
    layers: tuple[int, ...]
    rates: tuple[float, ...]
    decays: tuple[float, ...]
    normed: tuple[bool, ...]
    batch: int
    epochs: int
    steps: int
    factor: Callable[[float], float]
    schedule: str
    optimiser: str
    eps: float = 1e-5


RECIPES = {
    "ijepa_vissl": Recipe(
        "I-JEPA (arXiv 2301.08243), appendix A: VISSL",
        (1, 4), (0.01, 0.05, 0.001), (0.0005, 0.0), (False, True), 16384, 50, 0, tenfold_down,
        "divided by 10 every 15 of 50 epochs", "LARS",
    ),
    "dinov2_sgd": Recipe(
        "DINOv2's evaluation code; it has no class token to add here",
        (1, 4),
        (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
        (0.0,), (False,), 1024, 10, 12500, cosine, "cosine to 0", "SGD",
    ),
    "mae_lars": Recipe(
        "MAE's linear probe (arXiv 2111.06377), without a class token",
        (1,), (0.1,), (0.0,), (True,), 16384, 90, 0, warm_cosine,
        "up for 10 of 90 epochs, cosine to 0", "LARS", 1e-6,
    ),
}  # fmt: skip


def held_tenth(labels: Array, seed: int) -> Array:
    """The tenth that heads are chosen on: bool [n].

    Raises:
      ConfigError: no class has two images.
    """
    held = hold(labels, seed)
    if not held.any():
        rule = "a choice of heads needs two images of a class"
        raise ConfigError("eval.train_images", len(labels), rule)
    return held


def decide(
    inner: Array, outer: Array, settings: Sequence[dict[str, float]], centres: Features
) -> Measured:
    """Numbers of the head that is best on the tenth, of several the first.

    Args:
      inner: bool [H, tenth], where each head was right; outer: bool [H, m], on the held-out part.
      settings: of each head, said of the chosen one where there is a choice.
      centres: whose labels tell the most frequent class.
    """
    scores, chosen = {}, 0
    if len(outer) > 1:
        right = inner.mean(axis=1)
        chosen = int(right.argmax())
        scores = {"accuracy_chosen_on": float(right[chosen]), **settings[chosen]}
    scores |= {
        "accuracy": float(outer[chosen].mean()),
        "accuracy_best_on_test": float(outer.mean(axis=1).max()),
    }
    baselines = {"majority": {"accuracy": majority(centres)}}
    return Measured(scores, {"accuracy": outer[chosen][None]}, baselines=baselines)


class Probe(Measures):
    """Heads on frozen pooled features. What several heads leave to choose, a tenth decides."""

    reads: ClassVar[str] = NETWORK
    name: ClassVar[str]

    def __init__(self, config: Config, network: Network):
        """Reads ``eval.crops``, ``eval.probe_steps`` and ``eval.probe_batch``."""
        self.config, self.network, self.recipe = config, network, RECIPES[self.name]
        self.layers = sorted({min(n, network.depth) for n in self.recipe.layers})
        self.grid = Heads.grid(self.recipe.rates, self.recipe.decays, self.recipe.normed)
        self.protocol: dict[str, Any] = {
            "recipe": self.recipe.source,
            "optimiser": f"{self.recipe.optimiser}, momentum {heads.MOMENTUM}",
            "batch": config.eval.probe_batch or self.recipe.batch,
            "steps": self._length(), "schedule": self.recipe.schedule,
            "learning_rates": list(self.recipe.rates), "scaled_by": "batch / 256",
            "weight_decays": list(self.recipe.decays),
            "batch_norm": [bool(normed) for normed in self.recipe.normed],
            "layers": list(self.layers), "pooling": "mean over all patches",
            "heads": len(self.layers) * len(self.grid.rate),
            "chosen_on": f"{HELD:.0%} of the training part, stratified; heads see the rest",
            **crops.describe(config),
        }  # fmt: skip
        if not self._choice:
            self.protocol["chosen_on"] = "nothing: one head, which sees all of the training part"

    @property
    def _choice(self) -> bool:
        return len(self.layers) * len(self.grid.rate) > 1

    def _length(self) -> str:
        steps, own = self.config.eval.probe_steps, self.recipe.steps
        length = f"{own} steps" if own else f"{self.recipe.epochs} epochs"
        return f"{length}, at most {steps} steps" if steps else length

    def plan(self, count: int) -> Plan:
        """The steps for so many training images; a batch holds at most all of them."""
        batch = min(count, self.config.eval.probe_batch or self.recipe.batch)
        steps = self.recipe.steps or self.recipe.epochs * (count // batch)
        steps = min(steps, self.config.eval.probe_steps or steps)
        lars = self.recipe.optimiser == "LARS"
        return Plan(steps, batch, self.recipe.factor, lars, self.recipe.eps, self.config.seed)

    def measure(self, params: PyTree) -> Measured:
        """``accuracy`` of the head that was chosen, ``accuracy_best_on_test`` of the best one.

        Beside them the settings of the chosen head, and its accuracy where it was chosen.

        Raises:
          ConfigError: no labelled image, or no class with two where there is a choice.
        """
        deepest = max(self.layers)
        found = crops.read(self.network, lambda x: self.network.pooled(params, x, deepest))
        self.protocol |= self.network.labelled.describe()  # those that could be read
        return self.judge(found)

    def judge(self, found: crops.Cropped) -> Measured:
        """The numbers of features of the deepest of the recipe's layers."""
        centres = found.centres
        names, labels = np.unique(centres.train_labels, return_inverse=True)
        nothing = np.zeros(len(labels), bool)
        held = held_tenth(labels, self.config.seed) if self._choice else nothing
        said: list[tuple[Array, Array]] = []
        for layers in self.layers:
            width = found.views.shape[-1] // max(self.layers) * layers
            last = [x[..., -width:] for x in (found.views, centres.train, centres.held_out)]
            said.append(self._heads(last, labels, held, len(names)))
        inner = np.concatenate([a for a, _ in said]) == labels[held]
        outer = np.concatenate([names[b] for _, b in said]) == centres.held_out_labels
        return decide(inner, outer, [self._settings(i) for i in range(len(outer))], centres)

    def _heads(
        self, last: list[Array], labels: Array, held: Array, classes: int
    ) -> tuple[Array, Array]:
        """Classes that each head says of the held tenth and of the held-out part."""
        views, centres, test = last
        plan = self.plan(int((~held).sum()))
        grid = self.grid._replace(rate=self.grid.rate * np.float32(plan.batch / 256))
        first = heads.start(grid, views.shape[-1], classes, self.config.seed)
        trained = heads.train(views[~held], labels[~held], first, grid, plan, self.network.mesh)
        inner, outer = (heads.predict(trained, grid, x, plan.eps) for x in (centres[held], test))
        return inner, outer

    def _settings(self, chosen: int) -> dict[str, float]:
        layer, head = divmod(chosen, len(self.grid.rate))
        return {
            "learning_rate": float(self.grid.rate[head]),
            "weight_decay": float(self.grid.decay[head]),
            "batch_norm": float(self.grid.normed[head]),
            "layers": float(self.layers[layer]),
        }


@register("ijepa_vissl")
class IJepaVissl(Probe):
    """I-JEPA's: one layer or four, with and without batch normalisation."""

    name = "ijepa_vissl"


@register("dinov2_sgd")
class DinoV2Sgd(Probe):
    """DINOv2's: 13 learning rates at once."""

    name = "dinov2_sgd"


@register("mae_lars")
class MaeLars(Probe):
    """MAE's: one head behind batch normalisation."""

    name = "mae_lars"
