"""Fits the law by variable projection, or by Huber's loss on log L from many starts.

Variable projection searches alpha and beta alone; E, A and B that go with them are a least-squares
problem with non-negative unknowns, solved exactly (recommended by 2603.22339). The other way is
that of Hoffmann et al. (2203.15556), summed over points and run to convergence, without which its
optimum is missed (2404.10102).
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

from jepa_vl.scaling.law import Law, Points
from jepa_vl.shapes import Array

DELTA = 1e-3  # of Huber's loss on log L
EXPONENTS = np.geomspace(0.02, 3.0, 26)
REFINED = 3  # cells of the grid that are searched further
METHODS = ("vp", "huber")
# Starts of the search by Huber's loss: share of the mean loss that is E, share of the rest that is
# A / N^alpha, and both exponents.
SLOPES = (0.1, 0.3, 0.7, 1.5)
STARTS = [*itertools.product((0.3, 0.6, 0.9), (0.2, 0.5, 0.8), SLOPES, SLOPES)]


class Fit(NamedTuple):
    """A law and how well it fits.

    Attributes:
      law: the parameters.
      objective: vp: mean squared error of L, weighted; huber: sum of Huber's loss of log L.
      notes: what a reader of the numbers must know; () if nothing.
    """

    law: Law
    objective: float
    notes: tuple[str, ...] = ()


class Scaled(NamedTuple):
    """Sizes and amounts of data over their geometric means, which keeps columns comparable.

    Attributes:
      size, data: float64 [n]; loss: float64 [n]; weight: float64 [n], of mean 1.
      units: the two means.
    """

    size: Array
    data: Array
    loss: Array
    weight: Array
    units: tuple[float, float]

    def law(self, e: float, a: float, b: float, alpha: float, beta: float) -> Law:
        """Of coefficients for the scaled columns."""
        size, data = self.units
        return Law(*map(float, (e, a * size**alpha, b * data**beta, alpha, beta)))


def scale(points: Points) -> Scaled:
    """See :class:`Scaled`."""
    size, data = (float(np.exp(np.log(x).mean())) for x in points[:2])
    weight = points.weight / points.weight.mean()
    return Scaled(points.size / size, points.data / data, points.loss, weight, (size, data))


def fit(points: Points, method: str = "vp") -> Fit:
    """The law that fits best; ``method`` is one of METHODS."""
    return {"vp": by_projection, "huber": by_huber}[method](points)


def by_projection(points: Points) -> Fit:
    """Least squares of L by variable projection."""
    x = scale(points)
    root = np.sqrt(x.weight)

    def solve(alpha: float, beta: float) -> tuple[Array, float]:
        return project([x.size**-alpha, x.data**-beta], x.loss, root)

    def square(logs: Array) -> float:
        return solve(*np.exp(np.clip(logs, -7.0, 3.0)))[1] ** 2 / len(root)

    grid = [np.log(pair) for pair in itertools.product(EXPONENTS, EXPONENTS)]
    starts = sorted(grid, key=square)[:REFINED]
    options = {
        "xatol": 1e-10,
        "fatol": 1e-18 * float(np.square(x.loss * root).mean()),
        "maxiter": 2000,
    }
    ends = [
        scipy.optimize.minimize(square, start, method="Nelder-Mead", options=options)
        for start in starts
    ]
    best: Any = min(ends, key=lambda end: end.fun)
    exponents = np.exp(np.clip(best.x, -7.0, 3.0))
    law = x.law(*solve(*exponents)[0], *exponents)
    return Fit(law, float(best.fun), notes(law))


def project(columns: Sequence[Array], loss: Array, root: Array) -> tuple[Array, float]:
    """The least-squares problem that is left once the exponents are chosen.

    Args:
      columns: float64 [n] each, beside a column of ones, the floor.
      loss: float64 [n].
      root: float64 [n], square roots of the weights.

    Returns:
      The coefficients, none below 0, the floor first; and the norm of what they leave.
    """
    table = np.stack([np.ones_like(loss), *columns], axis=1)
    found, norm = scipy.optimize.nnls(table * root[:, None], loss * root)
    return found, float(norm)


def huber(gap: Array) -> Array:
    """Huber's loss of each gap, any shape."""
    size = np.abs(gap)
    return np.where(size <= DELTA, 0.5 * gap**2, DELTA * (size - 0.5 * DELTA))


def by_huber(points: Points) -> Fit:
    """Huber's loss (delta 1e-3) of log L, summed over points, by L-BFGS from 144 starts."""
    x = scale(points)
    logs = np.log(x.size), np.log(x.data), np.log(x.loss)

    def loss(theta: Array) -> tuple[float, Array]:
        parts = terms(theta, *logs[:2])
        top = parts.max(axis=0)
        total = top + np.log(np.exp(parts - top).sum(axis=0))
        share, gap = np.exp(parts - total), total - logs[2]
        pull = x.weight * np.clip(gap, -DELTA, DELTA) * share
        slope = np.array([*pull.sum(axis=1), -pull[1] @ logs[0], -pull[2] @ logs[1]])
        return float(x.weight @ huber(gap)) / DELTA**2, slope / DELTA**2

    mean, ends = float(x.loss.mean()), []
    options = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-14, "gtol": 1e-8}
    for floor, share, alpha, beta in STARTS:
        rest = mean * (1 - floor)
        start = [*np.log([floor * mean, share * rest, (1 - share) * rest]), alpha, beta]
        bounds = [(-30.0, 30.0)] * 3 + [(1e-3, 20.0)] * 2
        ends.append(
            scipy.optimize.minimize(
                loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
            )
        )
    best: Any = min(ends, key=lambda end: end.fun)
    law = x.law(*np.exp(best.x[:3]), *best.x[3:])
    return Fit(law, float(best.fun) * DELTA**2, notes(law))


def terms(theta: Array, log_size: Array, log_data: Array) -> Array:
    """Logarithms of E, A / N^alpha and B / D^beta, [3, n], of their logarithms and exponents."""
    e, a, b, alpha, beta = theta
    return np.stack([np.full_like(log_size, e), a - alpha * log_size, b - beta * log_data])


def notes(law: Law) -> tuple[str, ...]:
    """Where the points do not tell a parameter."""
    out = []
    for name, other in (("A", "alpha"), ("B", "beta")):
        if getattr(law, name) <= 0:
            out.append(f"{name} is 0: the points do not tell {other}")
        elif not 1.01 * EXPONENTS[0] < getattr(law, other) < EXPONENTS[-1] / 1.01:
            out.append(f"{other} lies outside {EXPONENTS[0]:g} to {EXPONENTS[-1]:g}")
    if law.E <= 0:
        out.append("E is 0: the points show no floor")
    return tuple(out)
