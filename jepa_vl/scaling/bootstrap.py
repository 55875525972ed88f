"""How sure a fit is: runs drawn again with replacement, fitted all at once from the fit of all.

Whole runs are drawn, since the points of one run err together.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.stats

from jepa_vl.scaling.fit import DELTA, Fit, Scaled, huber, scale
from jepa_vl.scaling.law import NAMES, Law, Points
from jepa_vl.shapes import Array

LEVEL = 0.95
ROUNDS = 80  # of Levenberg-Marquardt
_LEAST, _MOST = (-30.0, -30.0, -30.0, 1e-3, 1e-3), (30.0, 30.0, 30.0, 5.0, 5.0)


class Draws(NamedTuple):
    """Laws of resampled runs.

    Attributes:
      laws: float64 [draws, 5], in the order of ``NAMES``.
      counts: int64 [draws, runs], how often each run was drawn.
    """

    laws: Array
    counts: Array

    def interval(self, values: Array) -> tuple[float, float]:
        """Of values [draws] of something that the laws tell: the middle 95 %.

        Slightly more is taken, by as much as Student's t of so many runs is wider than the normal
        distribution: the expanded percentile interval (Hesterberg, 2015, section 4.3).
        """
        left = max(self.counts.shape[1] - len(NAMES), 1)
        tail = float(scipy.stats.norm.cdf(scipy.stats.t.ppf((1 - LEVEL) / 2, left)))
        low, high = np.quantile(values, [tail, 1 - tail])
        return float(low), float(high)

    def intervals(self) -> Mapping[str, tuple[float, float]]:
        """Of the parameters, and of the exponent a of N* ~ C^a."""
        columns: dict[str, Array] = dict(zip(NAMES, self.laws.T, strict=True))
        columns["a"] = np.asarray(Law(*self.laws.T).exponent)
        return {name: self.interval(values) for name, values in columns.items()}

    def predict(self, size: float, data: float) -> Array:
        """The loss of a run by each law, [draws]."""
        return Law(*self.laws.T)(size, data)


def draw(points: Points, fit: Fit, method: str, draws: int, seed: int = 0) -> Draws:
    """Resamples runs and fits them by the method that ``fit`` was found with.

    Residuals of a fit are smaller than the errors they stand for, by the parameters that were
    fitted; deviations from the fit are enlarged by sqrt(n / (n - 5)), n the number of runs.
    """
    rng, runs = np.random.default_rng(seed), int(points.run.max()) + 1
    counts = rng.multinomial(runs, np.full(runs, 1 / runs), size=draws)
    x = scale(points)
    centre = encode(x, fit.law)
    found = refine(x, centre, counts[:, points.run], method)
    found = centre + (found - centre) * np.sqrt(runs / max(runs - len(NAMES), 1))
    return Draws(np.array([decode(x, theta) for theta in found]), counts)


def encode(x: Scaled, law: Law) -> Array:
    """Logarithms of E, A and B of the scaled columns, and the exponents: float64 [5]."""
    size, data = x.units
    parts = law.E, law.A * size**-law.alpha, law.B * data**-law.beta
    logs = np.log(np.maximum(parts, np.exp(_LEAST[0])))
    return np.array([*logs, law.alpha, law.beta])


def decode(x: Scaled, theta: Array) -> Law:
    """The law of :func:`encode`'s numbers."""
    return x.law(*np.exp(theta[:3]), *theta[3:])


def refine(x: Scaled, start: Array, counts: Array, method: str) -> Array:
    """Levenberg-Marquardt on many weightings of the same points at once.

    Args:
      x: the points, n of them.
      start: float64 [5], of all.
      counts: [draws, n], weights beside those of the points.
      method: vp, squares of L; huber, Huber's loss of log L, by reweighting.

    Returns:
      float64 [draws, 5].
    """
    logs = np.log(x.size), np.log(x.data)
    theta, damping = np.tile(start, (len(counts), 1)), np.full(len(counts), 1e-3)
    weight = counts * x.weight
    cost, slopes, gaps = _linear(x, theta, logs, method)
    value = _value(cost, weight)
    for _ in range(ROUNDS):
        pull = weight * _influence(gaps, method)
        hessian = np.einsum("bn,bnp,bnq->bpq", pull, slopes, slopes)
        gradient = np.einsum("bn,bnp,bn->bp", pull, slopes, gaps)
        diagonal = np.einsum("bpp->bp", hessian)
        damped = hessian + damping[:, None, None] * np.eye(5) * (diagonal[:, None] + 1e-12)
        step = np.linalg.solve(damped, gradient[..., None])[..., 0]
        tried = np.clip(theta - step, _LEAST, _MOST)
        cost, new_slopes, new_gaps = _linear(x, tried, logs, method)
        new = _value(cost, weight)
        better = new <= value
        damping = np.clip(np.where(better, damping * 0.3, damping * 8.0), 1e-9, 1e9)
        moved = better[:, None]
        theta, value = np.where(moved, tried, theta), np.where(better, new, value)
        slopes = np.where(moved[..., None], new_slopes, slopes)
        gaps = np.where(moved, new_gaps, gaps)
    return theta


def _linear(
    x: Scaled, theta: Array, logs: tuple[Array, Array], method: str
) -> tuple[Array, Array, Array]:
    """Cost of each point [b, n], slopes [b, n, 5] and gaps [b, n] of what is compared."""
    e, a, b, alpha, beta = (column[:, None] for column in theta.T)
    size, data = np.exp(a - alpha * logs[0]), np.exp(b - beta * logs[1])
    floor = np.broadcast_to(np.exp(e), size.shape)
    total = floor + size + data
    slopes = np.stack([floor, size, data, -size * logs[0], -data * logs[1]], axis=-1)
    if method == "vp":
        gaps = total - x.loss
        return 0.5 * gaps**2, slopes, gaps
    gaps = np.log(total) - np.log(x.loss)
    return huber(gaps), slopes / total[..., None], gaps


def _influence(gaps: Array, method: str) -> Array:
    if method == "vp":
        return np.ones_like(gaps)
    return DELTA / np.maximum(np.abs(gaps), DELTA)


def _value(cost: Array, weight: Array) -> Array:
    return np.sum(weight * cost, axis=1)
