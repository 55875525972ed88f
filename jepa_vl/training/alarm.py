"""The alarm: says when the diagnostics of a run tell of a collapse, and what usually helps.

A rule reads one number out of a row of diagnostics; larger is worse. It fires when ``patience``
rows in a row are above its bound, and is silent again only when the number is well below it: one
that hovers at the bound does not fire twice. benchmarks/collapse.md tells where the bounds come
from, what they catch and how late.

Every run that learns has a lull at first, in which the predictor says little more than the mean
target, features of different images draw near each other, captions are not read and the kNN may
fall. So what has grown narrow is measured against its best so far, with bounds beyond that lull;
and of captions nothing is said before the predictor predicts.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jepa_vl.schema_health import HealthConfig

Row = Mapping[str, Any]
Numbers = dict[str, float]
# Of a row and the best values so far, by name: how bad it is, with the numbers that say so, the
# first one the worst; None: this row cannot tell.
Measure = Callable[[Row, Numbers], tuple[float, Numbers] | None]

BRANCHES = ("context", "target")
PREDICTORS = ("predictor", "predictor_text")
START = "mean target's loss at the start"  # among the best values
PREDICTS = 0.9  # unexplained share below which the predictor predicts


class Trouble(NamedTuple):
    """What the alarm says.

    Attributes:
      name: of the rule.
      step: of the diagnostics that made it fire.
      since: step of the first of those in a row that were bad.
      message: one line with the numbers and what usually helps.
      numbers: those of the message, by the names of the metrics; "best NAME" is the best so far.
    """

    name: str
    step: int
    since: int
    message: str
    numbers: Numbers


class Rule(NamedTuple):
    """When something is bad, and when it is well again.

    Attributes:
      measure: how bad a row is.
      bad: above this it is.
      well: below this it is well again.
      says: what is the matter; formatted with ``ratio``, the measure.
      helps: what usually does.
      lasts: only if it has been bad for this share of ``health.lull`` steps.
    """

    measure: Measure
    bad: float
    well: float
    says: str
    helps: str
    lasts: float = 0.0


def number(row: Row, name: str) -> float | None:
    """A finite number of a row; None if there is none."""
    value = row.get(name)
    return float(value) if value is not None and math.isfinite(value) else None


def _times_below_best(
    name: str, room: bool = False, branches: tuple[str, ...] = BRANCHES
) -> Measure:
    """How many times smaller than its best a number is, in the worst branch.

    Args:
      name: without the branch.
      room: it is 1 - the number that counts.
      branches: of which; both encoders.
    """

    def measure(row: Row, best: Numbers) -> tuple[float, Numbers] | None:
        found = []
        for key in (f"{name}/{branch}" for branch in branches):
            value = number(row, key)
            if value is None or key not in best:
                continue
            now, then = (1 - x if room else x for x in (value, best[key]))
            ratio = then / max(now, 1e-9)
            found.append((ratio, {key: value, f"best {key}": best[key]}))
        return max(found, key=lambda pair: pair[0]) if found else None

    return measure


def _unexplained(row: Row, best: Numbers) -> tuple[float, Numbers] | None:
    names = [name for name in row if name.split("/")[0] == "unexplained"]
    found = [(value, {name: value}) for name in names if (value := number(row, name)) is not None]
    return max(found, key=lambda pair: pair[0]) if found else None


def _exploding(row: Row, best: Numbers) -> tuple[float, Numbers] | None:
    """The loss is no number; or the predictor, which was nearer once, is far beyond its targets."""
    if number(row, "held_out_loss") is None:
        return math.inf, {}
    found = _unexplained(row, best)
    if found is None:
        return None
    ((name, value),) = found[1].items()
    least = max(best.get(name, value), 1.0)
    return value / least, {name: value, f"best {name}": best.get(name, value)}


def mean_loss(row: Row) -> float | None:
    """About the held-out loss of predicting the mean target, to which a collapse brings it near 0.

    It is that where the loss is a square; Huber's, of errors below 1, nearly is.
    """
    loss, unexplained = number(row, "held_out_loss"), number(row, "unexplained")
    return None if loss is None or not unexplained else loss / unexplained


def _times_below_start(row: Row, best: Numbers) -> tuple[float, Numbers] | None:
    """How many times less the mean target costs than at the start."""
    now, start = mean_loss(row), best.get(START)
    if now is None or start is None:
        return None
    loss = {"held_out_loss": float(row["held_out_loss"])}
    return start / max(now, 1e-12), {**loss, "mean target's loss": now, "at the start": start}


def _unread(row: Row, best: Numbers) -> tuple[float, Numbers] | None:
    """The standard errors by which the text gain falls short of 0."""
    gain, noise = (number(row, name) for name in ("text_gain", "text_gain_noise"))
    found = _unexplained(row, best)
    if gain is None or noise is None or found is None or found[0] > PREDICTS:
        return None
    return -gain / max(noise, 1e-12), {"text_gain": gain, "text_gain_noise": noise}


def _copy(row: Row, best: Numbers) -> tuple[float, Numbers] | None:
    """By how many powers of ten the target is closer to the encoder than 1."""
    drift = number(row, "ema_drift")
    if drift is None or not row["step"]:  # both begin as one
        return None
    return -math.log10(max(drift, 1e-30)), {"ema_drift": drift}


def _times(sign: int, name: str) -> Measure:
    """A number itself, 1, or where smaller is worse its negative, -1."""

    def measure(row: Row, best: Numbers) -> tuple[float, Numbers] | None:
        value = number(row, name)
        return None if value is None else (sign * value, {name: value})

    return measure


DATA = "look whether images and captions are what they should be (`jepa-vl data show`)"
APART = "lower optim.lr, raise optim.ema, or give anticollapse.variance and .covariance a weight"
RULES: dict[str, Rule] = {
    "images": Rule(
        _times(-1, "data/spread"), -0.01, -0.02,
        "the training images are all but one, or of one colour",
        DATA,
    ),
    "pairs": Rule(
        _times(-1, "data/pairing"), -2.5, -3.5,
        "captions say no more of their own image than of others",
        DATA,
    ),
    "target": Rule(
        _copy, 5.0, 4.0,
        "the target is the encoder itself and does not lag behind it",
        "raise optim.ema",
    ),
    "runaway": Rule(
        _times(1, "ema_drift"), 0.2, 0.12,
        "the encoder runs away from its target, by {ratio:.2f} of its length",
        "lower optim.lr, lengthen optim.warmup_steps or lower optim.ema",
    ),
    "regularisers": Rule(
        _times(1, "regulariser_gradient_ratio"), 20.0, 12.0,
        "the regularisers pull {ratio:.0f} times as hard as the prediction, which goes unlearnt",
        "lower the weights loss.sparse, .consistency and .contrast",
    ),
    "exploding": Rule(
        _exploding, 3.0, 1.5,
        "the predictor is {ratio:.1f} times as far from the targets as the mean target",
        "lower optim.lr or the weights loss.*, or lengthen optim.warmup_steps",
    ),
    "std": Rule(
        _times_below_best("std"), 8.0, 5.0,
        "features of different images spread {ratio:.1f} times less than they did",
        APART,
    ),
    "cosine": Rule(
        _times_below_best("cosine", room=True), 64.0, 25.0,
        "features of different images all but point one way, {ratio:.0f} times closer than before",
        APART,
    ),
    "targets": Rule(
        _times_below_start, 2.5, 2.0,
        "targets differ {ratio:.1f} times less than at the start: the mean one all but fits",
        f"{APART}; see that nothing trains the target but its EMA",
    ),
    "rank": Rule(
        _times_below_best("rankme"), 6.0, 4.5,
        "features of different images lie in {ratio:.1f} times fewer dimensions than they did",
        f"{APART} (.rank and .sigreg too); loss.target_norm=layer_norm",
    ),
    "dimensions": Rule(
        _times_below_best("effective_rank"), 3.5, 2.5,
        "what sets features of different images apart has {ratio:.1f} times fewer dimensions",
        f"{APART} (.rank and .sigreg too); loss.target_norm=layer_norm",
    ),
    "predictor": Rule(
        _times_below_best("std", branches=PREDICTORS), 100.0, 50.0,
        "predictions of different images are all but one, {ratio:.0f} times closer than before",
        "lower optim.lr or lengthen optim.warmup_steps",
    ),
    "prediction": Rule(
        _unexplained, 0.97, 0.93,
        "the predictor has done no better than the mean target for long",
        f"{DATA}; else train longer, with a higher optim.lr or a lower optim.ema",
        lasts=1.0,
    ),
    "held out": Rule(
        _unexplained, 1.5, 1.2,
        "of held-out images the predictor is worse than the mean target for long",
        f"{DATA}, and that those held out are alike; else lower optim.lr",
        lasts=0.25,
    ),
    "captions": Rule(
        _unread, -2.0, -4.0,
        "the captions of another image do as well as an image's own: they are not read",
        f"{DATA}; loss.contrast and text.dropout make words tell",
        lasts=0.5,
    ),
    "dead words": Rule(
        _times(1, "dead_share"), 0.95, 0.8,
        "hardly a patch is similar to any word: L_sparse and L_consistency have no gradient",
        "loss.regulariser=centred or entropy, a longer loss.ramp_steps, lower weights loss.*",
        lasts=0.25,
    ),
}  # fmt: skip
BEST: dict[str, Callable[[float, float], float]] = {
    "std": max, "cosine": min, "rankme": max, "effective_rank": max, "unexplained": min,
}  # fmt: skip


class Alarm:
    """Judges rows of diagnostics in the order of their steps.

    Its state is part of a checkpoint, so that a run that goes on judges as if it had never stopped.

    Attributes:
      firing: rules that have fired and are not well again.
    """

    def __init__(self, config: HealthConfig, state: Mapping[str, Any] | None = None):
        """Begins a run, or goes on.

        Args:
          config: of the resolved configuration.
          state: :meth:`to_dict` of an earlier one.
        """
        self.config = config
        state = state or {}
        self.firing: set[str] = set(state.get("firing", ()))
        self._best: Numbers = dict(state.get("best", {}))
        # Of each rule that is bad now: how often in a row, and since which step.
        self._bad: dict[str, tuple[int, int]] = {k: (*v,) for k, v in state.get("bad", {}).items()}

    def to_dict(self) -> dict[str, Any]:
        """The state, fit for JSON."""
        bad = {name: list(value) for name, value in self._bad.items()}
        return {"firing": sorted(self.firing), "best": dict(self._best), "bad": bad}

    def judge(self, row: Row) -> list[Trouble]:
        """The rules that begin to fire with this row; [] for a row without diagnostics.

        Args:
          row: as written to metrics.jsonl, ``step`` included. Call it once a row, in order.
        """
        if "held_out_loss" not in row:
            return []
        self._note(row)
        names = [name for name in RULES if name not in self.config.mute]
        return [trouble for name in names if (trouble := self._judge(name, row)) is not None]

    def measure(self, row: Row) -> dict[str, tuple[float, Numbers] | None]:
        """How bad a row is by each rule, beside the best so far; None: it cannot tell."""
        self._note(row)
        return {name: rule.measure(row, self._best) for name, rule in RULES.items()}

    def _note(self, row: Row) -> None:
        for name in row:
            better, value = BEST.get(name.split("/")[0]), number(row, name)
            if better is not None and value is not None:
                self._best[name] = better(self._best.get(name, value), value)
        if (start := mean_loss(row)) is not None:
            self._best.setdefault(START, start)

    def _judge(self, name: str, row: Row) -> Trouble | None:
        rule, step = RULES[name], int(row["step"])
        found = rule.measure(row, self._best)
        if found is None or (rule.lasts and not step):  # an untrained predictor predicts nothing
            return None
        ratio, numbers = found
        if ratio < rule.well:
            self.firing.discard(name)
        if ratio <= rule.bad:
            self._bad.pop(name, None)
            return None
        count, since = self._bad.get(name, (0, step))
        self._bad[name] = count + 1, since
        long = step - since >= rule.lasts * self.config.lull
        if name in self.firing or count + 1 < self.config.patience or not long:
            return None
        self.firing.add(name)
        return Trouble(name, step, since, _message(name, step, since, ratio, numbers), numbers)


def _message(name: str, step: int, since: int, ratio: float, numbers: Numbers) -> str:
    rule = RULES[name]
    says = rule.says.format(ratio=ratio) if numbers else "the held-out loss is not finite"
    told = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
    told = f" ({told})" if told else ""
    return f"{name}: {says}{told}, since step {since}; what helps: {rule.helps}"


def standing(rows: Iterable[Row], config: HealthConfig) -> dict[str, tuple[float, Numbers]]:
    """How bad each rule's number is, and which numbers say so, where it was last told.

    Args:
      rows: of a run's metrics.jsonl.
      config: of the resolved configuration.
    """
    alarm, out = Alarm(config), {}
    for row in rows:
        if "held_out_loss" in row:
            found = alarm.measure(row)
            out |= {name: worst for name, worst in found.items() if worst is not None}
    return out


def replay(rows: Iterable[Row], config: HealthConfig) -> list[Trouble]:
    """What the alarm would have said of a run.

    Args:
      rows: of its metrics.jsonl.
      config: of the resolved configuration.
    """
    alarm = Alarm(config)
    return [trouble for row in rows for trouble in alarm.judge(row)]
