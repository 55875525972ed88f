"""What follows from compute budgets: best sizes by parabolas, the envelope, a saturating law."""

from typing import NamedTuple

import numpy as np
import scipy.optimize

from jepa_vl.config import ConfigError
from jepa_vl.scaling.fit import project
from jepa_vl.scaling.law import Points
from jepa_vl.shapes import Array

SAME = 1.2  # compute of one budget may differ by this factor


class Budget(NamedTuple):
    """Runs of equal compute.

    Attributes:
      compute: geometric mean of theirs.
      rows: int64 [k], which of the points.
    """

    compute: float
    rows: Array


class Best(NamedTuple):
    """The size of least loss of a budget.

    Attributes:
      compute: of the budget.
      size, loss: at the minimum of the parabola.
      inside: does it lie between the sizes that were trained?
    """

    compute: float
    size: float
    loss: float
    inside: bool


class PowerLaw(NamedTuple):
    """y = floor + factor * x ** -exponent; floor 0 where it is a straight line in logarithms."""

    floor: float
    factor: float
    exponent: float

    def __call__(self, x: Array | float) -> Array:
        """y, float64."""
        return self.floor + self.factor * np.power(x, -self.exponent)

    def inverse(self, y: float) -> float:
        """The x that gives y; inf below the floor."""
        if y <= self.floor or self.factor <= 0 or self.exponent <= 0:
            return float("inf")
        return float((self.factor / (y - self.floor)) ** (1 / self.exponent))


def compute_of(points: Points) -> Array:
    """Of each point: FLOPs where they are known, else size * data, enough for exponents."""
    return points.compute


def budgets(compute: Array) -> list[Budget]:
    """Groups rows whose compute differs by less than a fifth from the next, smallest first."""
    order = np.argsort(compute, kind="stable")
    cuts = np.flatnonzero(np.diff(np.log(compute[order])) > np.log(SAME)) + 1
    groups = np.split(order, cuts)
    return [Budget(float(np.exp(np.log(compute[g]).mean())), g) for g in groups]


def parabola(points: Points, budget: Budget) -> Best | None:
    """Least squares of loss against (log size)²; None: fewer than 3 sizes, or no minimum.

    Its minimum is biased by how wide and how far off centre the sizes are (2603.22339): up to 1.3 %
    in size for a factor of 4 on either side, 5.4 % for 16.
    """
    sizes = np.log(points.size[budget.rows])
    if len(np.unique(sizes)) < 3:
        return None
    middle = sizes.mean()
    root = np.sqrt(points.weight[budget.rows])
    a, b, c = np.polyfit(sizes - middle, points.loss[budget.rows], 2, w=root)
    if a <= 0:
        return None
    at = -b / (2 * a)
    low, high = sizes.min() - middle, sizes.max() - middle
    inside = bool(low < at < high)
    return Best(budget.compute, float(np.exp(at + middle)), float(c - a * at**2), inside)


def best_sizes(points: Points) -> list[Best]:
    """The parabola of each budget that has one whose minimum lies inside (Approach 2)."""
    found = [parabola(points, budget) for budget in budgets(compute_of(points))]
    return [best for best in found if best is not None and best.inside]


def power_of(best: list[Best]) -> PowerLaw:
    """N* of compute through the minima of budgets: above 0 it grows with -exponent.

    Raises:
      ConfigError: fewer than two budgets.
    """
    return straight(np.array([one.compute for one in best]), np.array([one.size for one in best]))


def straight(x: Array, y: Array) -> PowerLaw:
    """Least squares of log y against log x.

    Raises:
      ConfigError: fewer than two different x.
    """
    if len(np.unique(x)) < 2:
        raise ConfigError("budgets with a minimum inside", len(x), "at least 2, for an exponent")
    slope, level = np.polyfit(np.log(x), np.log(y), 1)
    return PowerLaw(0.0, float(np.exp(level)), float(-slope))


def envelope(compute: Array, loss: Array) -> tuple[Array, Array]:
    """The least loss that so much compute has reached: rows that no cheaper row is as good as.

    Returns:
      compute, growing, and loss, falling, of those rows.
    """
    order = np.lexsort((loss, compute))
    best = np.minimum.accumulate(loss[order])
    new = np.concatenate([[True], best[1:] < best[:-1]])
    return compute[order][new], loss[order][new]


def saturating(compute: Array, loss: Array, weight: Array | None = None) -> PowerLaw:
    """y = E + k C^-g by variable projection (Zhai et al., 2106.04560, without their shift of C).

    Raises:
      ConfigError: fewer than four rows, for three parameters.
    """
    if len(loss) < 4:
        raise ConfigError("rows of a saturating law", len(loss), "at least 4")
    unit = float(np.exp(np.log(compute).mean()))
    x, root = compute / unit, np.sqrt(np.ones_like(loss) if weight is None else weight)

    def solve(exponent: float) -> tuple[Array, float]:
        return project([x**-exponent], loss, root)

    grid = np.geomspace(0.01, 5.0, 200)
    near = int(np.argmin([solve(g)[1] for g in grid]))
    low, high = np.log(grid[max(near - 1, 0)]), np.log(grid[min(near + 1, len(grid) - 1)])
    found = scipy.optimize.minimize_scalar(
        lambda log: solve(np.exp(log))[1] ** 2, bounds=(low, high), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    exponent = float(np.exp(found.x))
    floor, factor = solve(exponent)[0]
    return PowerLaw(float(floor), float(factor * unit**exponent), exponent)
