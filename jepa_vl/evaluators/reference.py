"""How much of a frozen reference encoder is in the features, patch by patch? No labels are read.

A JEPA's own loss is against a target that it made itself, and says nothing beside another run's.
This one is against the same target for all: the reference's patch features, foretold linearly.
"""

import functools
import operator
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.evaluators import intervals
from jepa_vl.evaluators.base import NETWORK, Measured, Measures, register
from jepa_vl.evaluators.network import Network
from jepa_vl.models import intake
from jepa_vl.models.layers import TARGET_EPS, layer_norm
from jepa_vl.shapes import Array, PyTree

KEY = "eval.reference"
STRENGTHS = tuple(10.0**power for power in range(-8, 3))
CHOOSING = 5  # each fifth training image chooses the strength


class Moments(NamedTuple):
    """Sums over n patches, float64: all that a linear fit, and its squared error, need.

    Attributes:
      n: patches; x: [D] and y: [R], sums; xx: [D, D]; xy: [D, R]; yy: sum of squares.
    """

    n: int
    x: Array
    y: Array
    xx: Array
    xy: Array
    yy: float

    @classmethod
    def of(cls, x: Array, y: Array) -> "Moments":
        """Of the patches of images, [b, T, D] and [b, T, R]."""
        x, y = (a.astype(np.float64).reshape(-1, a.shape[-1]) for a in (x, y))
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y, float(np.sum(y * y)))

    def plus(self, other: "Moments") -> "Moments":
        """Of the patches of both."""
        return jax.tree.map(operator.add, self, other)


class Line(NamedTuple):
    """``y = (x - x_mean) W + y_mean``."""

    x_mean: Array
    y_mean: Array
    w: Array

    def errors(self, x: Array, y: Array) -> Array:
        """Mean squared error a dimension over the patches of each image.

        Args:
          x: [b, T, D]; y: [b, T, R].

        Returns:
          float64 [b].
        """
        found = (x.astype(np.float64) - self.x_mean) @ self.w + self.y_mean
        return np.mean((found - y) ** 2, axis=(1, 2))

    def loss(self, m: Moments) -> float:
        """As :meth:`errors`, over the patches of these moments."""
        shift = self.y_mean - self.x_mean @ self.w
        ww = np.sum((m.xx @ self.w) * self.w) + 2 * (m.x @ self.w) @ shift + m.n * shift @ shift
        crossed = np.sum(m.xy * self.w) + m.y @ shift
        return float((m.yy - 2 * crossed + ww) / (m.n * len(self.y_mean)))


class Fit:
    """Ridge regression with a free intercept: one decomposition serves all strengths."""

    def __init__(self, m: Moments):
        """Decomposes the correlations, so that no scale of the features counts."""
        self.x_mean, self.y_mean = m.x / m.n, m.y / m.n
        covariance = m.xx / m.n - np.outer(self.x_mean, self.x_mean)
        deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        varies = deviation > 1e-6 * np.maximum(np.abs(self.x_mean), 1e-30)
        self.scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
        scaled = covariance * self.scale[:, None] * self.scale
        self.values, self.vectors = np.linalg.eigh(scaled)
        crossed = (m.xy / m.n - np.outer(self.x_mean, self.y_mean)) * self.scale[:, None]
        self.crossed = self.vectors.T @ crossed

    def at(self, l2: float) -> Line:
        """With a strength, in units of the features' variance."""
        shrunk = self.crossed / (np.maximum(self.values, 0.0) + l2)[:, None]
        return Line(self.x_mean, self.y_mean, (self.vectors @ shrunk) * self.scale[:, None])


@register("reference")
class Reference(Measures):
    """Ridge regression from patch features onto those of ``eval.reference``, held-out loss."""

    reads: ClassVar[str] = NETWORK
    of_pixels: ClassVar[bool] = True

    def __init__(self, config: Config, network: Network):
        """Opens the reference; its weights are read when it is first looked at.

        Raises:
          ConfigError: none is given, or it cannot be read.
        """
        path = config.eval.reference
        if not path:
            rule = "the task reference needs an encoder: a path, zoo:NAME or hub:OWNER/MODEL"
            raise ConfigError(KEY, path, rule)
        self.network, self.grid = network, config.encoder.grid
        self.source = intake.open_source(path, KEY)
        self.protocol = {
            "reference": f"{path}, its last layer, {self.grid} x {self.grid} patches",
            "target": "LayerNorm without parameters, as a JEPA's",
            "head": "ridge regression of each patch, free intercept, float64",
            "l2": [STRENGTHS[0], STRENGTHS[-1], len(STRENGTHS)],
            "chosen_on": f"each {CHOOSING}th training image; then fitted to all",
        }

    @functools.cached_property
    def _look(self) -> Any:
        """uint8 [b, H, W, 3] -> what is to be foretold, float32 [b, T, R]."""
        side = self.grid * self.source.shape.patch
        module = intake.build(self.source, side)
        weights = jax.device_put(intake.load(self.source, module))

        @jax.jit
        def look(params: PyTree, images: Array) -> Array:
            size = (len(images), side, side, 3)
            if images.shape != size:
                images = jax.image.resize(images.astype(np.float32), size, "cubic")
                images = jax.numpy.clip(jax.numpy.round(images), 0, 255).astype(np.uint8)
            return layer_norm(module.apply({"params": params}, images), TARGET_EPS)

        return functools.partial(look, weights)

    def _read(self, params: PyTree, part: int) -> Iterator[tuple[Array, Array]]:
        """Batches of a part: features [b, T, D], and the reference's [b, T, R]."""
        for images, labels in self.network.labelled.batches(part):
            ours, theirs = self.network.tokens(params, images), np.asarray(self._look(images))
            yield ours[: len(labels)], theirs[: len(labels)]

    def measure(self, params: PyTree) -> Measured:
        """``loss``, squared error a dimension, and ``r2``, the share of variance foretold.

        Baseline ``mean`` foretells the mean of the training patches.

        Raises:
          ConfigError: a part has no image, or too few to choose by.
        """
        fit, choose = self._moments(params)
        tried = Fit(fit)
        l2 = min(STRENGTHS, key=lambda strength: tried.at(strength).loss(choose))
        line = Fit(fit.plus(choose)).at(l2)
        mean = line._replace(w=np.zeros_like(line.w))
        parts = [[x.errors(*pair) for x in (line, mean)] for pair in self._read(params, 1)]
        each = np.concatenate(parts, axis=1)
        loss, floor = each.mean(axis=1).tolist()
        drawn = intervals.resampled(each)
        scores = {"loss": loss, "r2": 1 - loss / floor, "l2": l2}
        baselines = {"mean": {"loss": floor, "r2": 0.0}}
        of_draws = {"loss": drawn[:, 0], "r2": 1 - drawn[:, 0] / drawn[:, 1]}
        ci = {name: intervals.ends(values) for name, values in of_draws.items()}
        return Measured(scores, {}, ci, baselines)

    def _moments(self, params: PyTree) -> list[Moments]:
        """Of the training images that are fitted first, and of those that choose."""
        sums: list[Moments | None] = [None, None]
        count = 0
        for x, y in self._read(params, 0):
            chooses = np.arange(count, count + len(x)) % CHOOSING == CHOOSING - 1
            count += len(x)
            for which in (0, 1):
                kept = chooses == which
                if kept.any():
                    before, more = sums[which], Moments.of(x[kept], y[kept])
                    sums[which] = more if before is None else before.plus(more)
        found = [m for m in sums if m is not None]
        if len(found) < 2:
            rule = f"the task reference needs {CHOOSING} labelled training images"
            raise ConfigError("eval.train_images", self.network.config.eval.train_images, rule)
        return found
