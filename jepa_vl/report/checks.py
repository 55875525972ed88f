"""What a run proves of itself: each claim with what was measured, its rule and a verdict."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jepa_vl.config import Config
from jepa_vl.report.page import Section
from jepa_vl.training import alarm, metrics, repeats
from jepa_vl.training.result import interval

HOLDS, FAILS, OPEN = "✓ holds", "✗ does not hold", "? cannot be told"
READ = """\
What this run shows of itself, by rules that stand beside it; no run is judged by its loss. Where \
too little was measured, or the run has not ended, a claim cannot be told. The rules against \
collapse are those of the alarm (health.*), at their newest measurement."""
Row = dict[str, Any]

# Rule of the alarm -> the claim that it does not hold, and what may at most be measured.
NARROW = {
    "rank": ("features keep their dimensions", "RankMe not {bad:g} times below its best"),
    "dimensions": (
        "what sets images apart keeps its dimensions",
        "effective rank not {bad:g} times below its best",
    ),
    "std": (
        "features of different images keep apart",
        "their spread not {bad:g} times below its best",
    ),
    "cosine": (
        "features do not all point one way",
        "1 - mean cosine not {bad:g} times below its best",
    ),
    "predictor": (
        "predictions of different images keep apart",
        "their spread not {bad:g} times below its best",
    ),
    "dead words": ("patches look at words", "dead share at most {bad:g}"),
}


class Check(NamedTuple):
    """One claim; all are words for people."""

    claim: str
    measured: str
    rule: str
    verdict: str


def of(config: Config, rows: Sequence[Row], result: Row, proof: Sequence[Row]) -> list[Check]:
    """All claims that a run of this configuration could make.

    Args:
      config: resolved.
      rows: of metrics.jsonl.
      result: of result.json; {}: the run has not ended.
      proof: rows of proof.jsonl; []: none was asked for.
    """
    out = [_ended(config, rows, result), _finite(rows)]
    if result:
        count = result.get("compiles")
        out.append(Check("the step is compiled once", _told(count), "1", _verdict(count, 1)))
    out += [*_narrow(config, rows), _silent(config, rows), _predicts(rows)]
    if metrics.last(rows, "knn/target") is not None:
        images = (result.get("best") or {}).get("images") or config.eval.val_images
        untrained, pixels = (metrics.first(rows, f"knn/{name}") for name in ("target", "pixels"))
        out.append(_above(rows, images, "the same network before its first step", untrained))
        out.append(_above(rows, images, "raw pixels", pixels))
    if metrics.last(rows, "text_gain") is not None:
        out.append(_reads(config, rows))
    out.append(_repeated(proof))
    return out


def section(checks: Sequence[Check]) -> Section:
    """The proof table."""
    rows = [(check.claim, check.verdict, check.measured, check.rule) for check in checks]
    return Section("Proof", READ, table=(("claim", "verdict", "measured", "rule"), rows))


def _verdict(value: Any, wanted: Any) -> str:
    return OPEN if value is None else HOLDS if value == wanted else FAILS


def _told(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _ended(config: Config, rows: Sequence[Row], result: Row) -> Check:
    step, steps = metrics.last(rows, "step") or 0, config.train.steps
    status = result.get("status") or "running, or killed"
    verdict = OPEN if not result else HOLDS if status == "done" and step == steps else FAILS
    return Check("the run has ended", f"{status}, step {step}", f"done, step {steps}", verdict)


def _finite(rows: Sequence[Row]) -> Check:
    logged = [row for row in rows if "loss" in row]
    claim, rule = "every step is finite", "no step skipped, every logged loss a number"
    if not logged:
        return Check(claim, "", rule, OPEN)
    skipped = metrics.last(rows, "bad_steps") or 0
    lost = sum(row["loss"] is None for row in logged)
    text = f"{skipped:.0f} skipped; {lost} of {len(logged)} logged losses no number"
    return Check(claim, text, rule, FAILS if skipped or lost else HOLDS)


def _narrow(config: Config, rows: Sequence[Row]) -> list[Check]:
    found = alarm.standing(rows, config.health)
    out = []
    for name, (claim, rule) in NARROW.items():
        if name in found:
            ratio, numbers = found[name]
            bad = alarm.RULES[name].bad
            text = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
            verdict = FAILS if ratio > bad else HOLDS
            out.append(Check(claim, text, rule.format(bad=bad), verdict))
    return out


def _silent(config: Config, rows: Sequence[Row]) -> Check:
    claim, rule = "the alarm is silent", "no rule fires at the end"
    judge, fired = alarm.Alarm(config.health), set[str]()
    measured = [row for row in rows if "held_out_loss" in row]
    for row in measured:
        fired |= {trouble.name for trouble in judge.judge(row)}
    text = f"fires: {', '.join(sorted(judge.firing))}" if judge.firing else "no rule fires"
    if over := sorted(fired - judge.firing):
        text += f"; did before: {', '.join(over)}"
    if len(measured) < config.health.patience:
        return Check(claim, f"{len(measured)} diagnostics", rule, OPEN)
    return Check(claim, text, rule, FAILS if judge.firing else HOLDS)


def _predicts(rows: Sequence[Row]) -> Check:
    share = metrics.last(rows, "unexplained")
    rule = f"unexplained share of the held-out targets below {alarm.PREDICTS:g}"
    verdict = OPEN if share is None else HOLDS if share < alarm.PREDICTS else FAILS
    return Check("the predictor does better than the mean target", _told(share), rule, verdict)


def _above(rows: Sequence[Row], images: int, name: str, floor: float | None) -> Check:
    """Of two shares of the same images; intervals that overlap cannot tell them apart."""
    share = metrics.last(rows, "knn/target")
    claim, rule = f"kNN beats {name}", "above it, and the 95 % intervals do not overlap"
    if floor is None:
        return Check(claim, _told(share), rule, OPEN)
    low, high = interval(share, images)
    text = f"{share:.3f} [{low:.3f}, {high:.3f}] against {floor:.3f}, {images} images"
    verdict = HOLDS if low > interval(floor, images)[1] else OPEN if share > floor else FAILS
    return Check(claim, text, rule, verdict)


def _reads(config: Config, rows: Sequence[Row]) -> Check:
    gain, noise = (metrics.last(rows, name) for name in ("text_gain", "text_gain_noise"))
    claim, rule = "captions are read", "text gain above 0 by two standard errors"
    text = f"text gain {gain:+.4g}" + ("" if noise is None else f", standard error {noise:.2g}")
    if config.data.captions != "own":
        text += f"; a control: data.captions={config.data.captions}"
    if noise is None:
        return Check(claim, text, rule, FAILS if gain <= 0 else OPEN)
    return Check(claim, text, rule, HOLDS if gain > 2 * noise else OPEN if gain > 0 else FAILS)


def _repeated(proof: Sequence[Row]) -> Check:
    claim = "restarts repeat their steps to the bit"
    rule = "all hashes of samples, parameters and target are equal"
    if not proof:
        return Check(claim, "no hashes: train with --proof", rule, OPEN)
    found = repeats.compare(proof, {})
    if not found.compared:
        return Check(claim, "no step was repeated", rule, OPEN)
    text = f"{found.compared} hashes compared, {len(found.differing)} differ"
    return Check(claim, text, rule, FAILS if found.differing else HOLDS)
