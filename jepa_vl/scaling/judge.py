"""Is a fit right about what it has not seen, and is one method better than another?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.scaling.bootstrap import LEVEL
from jepa_vl.scaling.budgets import PowerLaw, budgets, compute_of, saturating
from jepa_vl.scaling.fit import fit
from jepa_vl.scaling.law import DIFFERENT, FEWEST, Law, Points
from jepa_vl.shapes import Array

FAR = 10.0  # an extrapolation over more than this factor of compute is not to be trusted


class HeldOut(NamedTuple):
    """Runs of the largest budget, foretold from the others.

    Attributes:
      law: of the others.
      compute: of the budget.
      rows: how many points it has.
      error: mean relative error, signed: above 0 the law was too pessimistic.
      spread: root mean square relative error.
    """

    law: Law
    compute: float
    rows: int
    error: float
    spread: float


class Comparison(NamedTuple):
    """Method a beside method b; each with its 95 % interval.

    Attributes:
      exponent: that of a minus that of b; above 0 a gains more from compute.
      multiplier: compute of b over that of a at the same quality; above 1 a is cheaper.
      at: the quality.
    """

    exponent: tuple[float, float, float]
    multiplier: tuple[float, float, float]
    at: float


def hold_out(points: Points, method: str = "vp") -> HeldOut:
    """Fits without the largest budget and foretells it.

    Raises:
      ConfigError: what is left does not tell the five parameters.
    """
    largest = budgets(compute_of(points))[-1]
    rest = np.setdiff1d(np.arange(len(points.loss)), largest.rows)
    left = points.keep(rest)
    different = min(len(np.unique(column)) for column in (left.size, left.data))
    if len(rest) < FEWEST or different < DIFFERENT:
        rule = f"{FEWEST} or more, of {DIFFERENT} sizes"
        raise ConfigError("points beside the largest budget", len(rest), rule)
    law = fit(left, method).law
    there = points.keep(largest.rows)
    gaps = law(there.size, there.data) / there.loss - 1
    spread = float(np.sqrt(np.square(gaps).mean()))
    return HeldOut(law, largest.compute, len(gaps), float(gaps.mean()), spread)


def drop_highest(points: Points, count: int) -> tuple[Points, list[int]]:
    """Without the points of the highest loss, the rule of 2404.10102 (which drops five of 245).

    Returns:
      The others, and the numbers of the rows that were left out.

    Raises:
      ConfigError: fewer than 6 would be left.
    """
    most = len(points.loss) - FEWEST
    if not 0 <= count <= most:
        raise ConfigError("rows to drop", count, f"0 to {max(most, 0)}")
    order = np.argsort(points.loss, kind="stable")
    keep = np.sort(order[: len(order) - count])
    dropped = np.setdiff1d(np.arange(len(order)), keep).tolist()
    return points.keep(keep), dropped


def far_beyond(compute: float, seen: Sequence[float] | Array) -> str:
    """A warning where a forecast lies beyond what was trained; "" where it does not."""
    factor = compute / float(np.max(seen))
    if factor <= FAR:
        return ""
    return f"{factor:.0f} times the largest compute that was trained: do not trust it"


def compare(
    a: tuple[Array, Array], b: tuple[Array, Array], draws: int = 1000, seed: int = 0,
    at: float | None = None,
) -> Comparison:  # fmt: skip
    """Saturating laws of two methods in compute, rows resampled within each.

    Args:
      a, b: compute and loss of each row, float64 [n] each.
      draws: resamplings.
      seed: of them.
      at: the quality at which compute is compared; default: the worse of the two best losses.

    Raises:
      ConfigError: fewer than four rows of one.
    """
    best = at if at is not None else max(float(np.min(x[1])) for x in (a, b))
    rng = np.random.default_rng(seed)

    def both(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[float, float]:
        laws: list[PowerLaw] = [saturating(*x) for x in (one, two)]
        dear = laws[1].inverse(best) / laws[0].inverse(best)
        return laws[0].exponent - laws[1].exponent, dear

    def again(x: tuple[Array, Array]) -> tuple[Array, Array]:
        rows = rng.integers(0, len(x[0]), len(x[0]))
        return x[0][rows], x[1][rows]

    centre, found = both(a, b), np.array([both(again(a), again(b)) for _ in range(draws)])
    tail = (1 - LEVEL) / 2
    with np.errstate(invalid="ignore"):
        ends = [np.nanquantile(column, [tail, 1 - tail], method="nearest") for column in found.T]
    out = [
        (value, float(low), float(high)) for value, (low, high) in zip(centre, ends, strict=True)
    ]
    return Comparison(out[0], out[1], best)
