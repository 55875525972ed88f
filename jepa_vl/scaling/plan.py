"""Which sizes at which budgets, for how many steps: the arithmetic of a plan. Nothing is run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jepa_vl.config import ConfigError
from jepa_vl.scaling import budgets, table
from jepa_vl.scaling.ledger import Row
from jepa_vl.scaling.study import Study


class Optimum(NamedTuple):
    """N*(C) = size * (C / compute) ** exponent, as far as it is known.

    Attributes:
      size: parameters of the encoder.
      compute: FLOPs at which it is the best.
      exponent: of compute.
      source: ``study``: what the file begins with, or ``ledger``, with how many budgets told.
    """

    size: float
    compute: float
    exponent: float
    source: str

    def at(self, compute: float) -> float:
        """The best size at a budget."""
        return self.size * (compute / self.compute) ** self.exponent


class Cost(NamedTuple):
    """What a step of an arm at a size takes.

    Attributes:
      parameters: by part.
      flops: of a step on the global batch, by component and direction.
      fits: is there memory on the topology? None: none was asked about, or it is not known.
      memory: bytes a device that it takes, and has; "" where it is not known.
      chip_seconds: of a step, a bound from peaks; None: not known.
    """

    parameters: dict[str, int]
    flops: dict[str, int]
    fits: bool | None = None
    memory: str = ""
    chip_seconds: float | None = None

    @property
    def step(self) -> int:
        """FLOPs of a step."""
        return sum(self.flops.values())


def optimum(study: Study, rows: Sequence[Row], arm: str) -> Optimum:
    """Of an arm: from its finished points where parabolas through them tell it.

    One budget with a minimum between its sizes moves the law, two or more tell its exponent too.
    """
    given = Optimum(study.optimum_size, study.optimum_compute, study.optimum_exponent, "study")
    try:
        points = table.points(rows, study.quality, arm, forced=True)
    except ConfigError:  # too few of them yet
        return given
    best = budgets.best_sizes(points)
    if not best:
        return given
    told = f"ledger, {len(best)} budget{'s' if len(best) > 1 else ''}"
    if len(best) == 1:
        return Optimum(best[0].size, best[0].compute, given.exponent, told)
    law = budgets.power_of(best)
    middle = best[len(best) // 2].compute
    return Optimum(float(law(middle)), middle, -law.exponent, told)


def around(study: Study, sizes: Mapping[str, float], budget: float, best: Optimum) -> list[str]:
    """Names of the sizes of a budget: within the factor of the best one, or all.

    Args:
      study: of the grid and the factor.
      sizes: name -> parameters of the encoder.
      budget: FLOPs.
      best: the law.
    """
    if study.grid == "full":
        return list(sizes)
    centre, factor = best.at(budget), study.factor
    return [name for name, n in sizes.items() if centre / factor <= n <= centre * factor]


def steps_of(budget: float, cost: Cost) -> int:
    """Whole steps that a budget pays."""
    return int(budget // cost.step)


def refusal(study: Study, steps: int, images: int, unique: int, cost: Cost) -> str:
    """Why a point cannot be run; "" where it can.

    Args:
      study: of the rules.
      steps: of the point.
      images: that it sees.
      unique: training images that there are.
      cost: of a step.
    """
    left = steps - study.warmup_of(steps)
    if left < study.least_steps:
        least = f"least_steps = {study.least_steps}"
        return f"{max(left, 0)} steps after the warm-up, fewer than {least}"
    epochs = images / unique
    if epochs > study.most_epochs:
        most = f"most_epochs = {study.most_epochs:g}"
        return f"{epochs:.3g} epochs of {unique} images, more than {most}"
    if cost.fits is False:
        return f"does not fit: {cost.memory}"
    return ""


def numbers(study: Study, steps: int, unique: int, cost: Cost) -> dict[str, Any]:
    """What a plan and a ledger say of a point before it runs."""
    images = steps * study.batch_size
    hours = None if cost.chip_seconds is None else cost.chip_seconds * steps / 3600
    return {
        "steps": steps, "batch_size": study.batch_size, "images": images,
        "unique_images": min(images, unique), "epochs": images / unique,
        "parameters": cost.parameters,
        "flops": {
            "image": {name: count / study.batch_size for name, count in cost.flops.items()},
            "image_total": cost.step / study.batch_size, "run": cost.step * steps,
        },
        "chip_hours_bound": hours, "refused": refusal(study, steps, images, unique, cost),
    }  # fmt: skip
