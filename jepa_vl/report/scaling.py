"""A scaling study as a page: what its points say, and what they cannot."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from jepa_vl.config import ConfigError
from jepa_vl.report import scaling_figures as draw
from jepa_vl.report.page import Section, render_page
from jepa_vl.scaling import bootstrap, budgets, judge, ledger
from jepa_vl.scaling.fit import Fit, fit
from jepa_vl.scaling.law import Points
from jepa_vl.shapes import Array

TRIED = 200  # drawings again of the best sizes
FEW = 3  # budgets, below which an exponent is two points and a ruler


class Study(NamedTuple):
    """One arm.

    Attributes:
      arm: its name.
      rows: of the ledger, finished.
      points: None where they carry no fit; ``why`` then says why.
      fit, draws: of the law.
      best: the minimum of each budget that has a parabola, inside or not.
      powers: [k, 2], exponents of N* and D* of runs drawn again.
      why: see ``points``.
    """

    arm: str
    rows: Sequence[ledger.Row]
    points: Points | None = None
    fit: Fit | None = None
    draws: bootstrap.Draws | None = None
    best: Sequence[budgets.Best] = ()
    powers: Array | None = None
    why: str = ""


def fitted(arm: str, rows: Sequence[ledger.Row], points: Points, draws: int) -> Study:
    """Fits all that the report shows of an arm, by variable projection."""
    found = fit(points)
    drawn = bootstrap.draw(points, found, "vp", draws)
    groups = budgets.budgets(points.compute)
    best = [one for one in (budgets.parabola(points, group) for group in groups) if one]
    return Study(arm, rows, points, found, drawn, best, _powers(points))


def data_at(points: Points, best: budgets.Best) -> float:
    """D*: data of the best size of a budget, between those of the sizes beside it."""
    groups = budgets.budgets(points.compute)
    near = min(groups, key=lambda group: abs(np.log(group.compute / best.compute)))
    order = near.rows[np.argsort(points.size[near.rows])]
    x, y = np.log(points.size[order]), np.log(points.data[order])
    return float(np.exp(np.interp(np.log(best.size), x, y)))


def laws(points: Points, best: Sequence[budgets.Best]) -> tuple[budgets.PowerLaw, ...]:
    """N*(C) and D*(C) through the minima that lie inside.

    Raises:
      ConfigError: fewer than two budgets have one.
    """
    inside = [one for one in best if one.inside]
    compute = np.array([one.compute for one in inside])
    data = np.array([data_at(points, one) for one in inside])
    return budgets.power_of(inside), budgets.straight(compute, data)


def _powers(points: Points) -> Array:
    rng, found, count = np.random.default_rng(0), [], len(points.loss)
    for _ in range(TRIED):
        drawn = points.keep(rng.integers(0, count, count))
        try:
            pair = laws(drawn, budgets.best_sizes(drawn))
        except ConfigError:
            continue
        found.append([-one.exponent for one in pair])
    return np.array(found).reshape(-1, 2)


def collect(
    name: str,
    y: str,
    rows: Sequence[ledger.Row],
    studies: Sequence[Study],
    asked: Sequence[float],
    draws: int,
) -> dict[str, Any]:
    """All numbers of the page, fit for JSON.

    Args:
      name: of the study.
      y: quality that was fitted.
      rows: of the ledger, all of them.
      studies: the arms.
      asked: () or (FLOPs,) or (size, images) of a run to foretell.
      draws: of the bootstrap.
    """
    status = Counter(row["status"] for row in ledger.latest(list(rows)).values())
    return {
        "study": name,
        "y": y,
        "draws": draws,
        "status": dict(status),
        "arms": {study.arm: _arm(study, asked) for study in studies},
        "comparison": _comparison(studies, draws),
        "caveats": [line for study in studies for line in _caveats(study)],
    }


def _arm(study: Study, asked: Sequence[float]) -> dict[str, Any]:
    points, found, draws = study.points, study.fit, study.draws
    if points is None or found is None or draws is None:
        return {"points": len(study.rows), "why": study.why}
    gaps = found.law(points.size, points.data) / points.loss - 1
    out: dict[str, Any] = {
        "points": len(points.loss),
        "compute": [float(points.compute.min()), float(points.compute.max())],
        "law": found.law._asdict() | {"a": found.law.exponent},
        "intervals": {key: list(ends) for key, ends in draws.intervals().items()},
        "notes": list(found.notes),
        "residual_rms": float(np.sqrt(np.square(gaps).mean())),
        "best_sizes": [one._asdict() | {"data": data_at(points, one)} for one in study.best],
    }
    try:
        pair = laws(points, study.best)
        out["exponents"] = {
            key: {"value": -one.exponent, "interval": _middle(study.powers, i)}
            for i, (key, one) in enumerate(zip(("N*", "D*"), pair, strict=True))
        }
    except ConfigError as error:
        out["no_exponents"] = str(error)
    try:
        held = judge.hold_out(points)
        out["held_out"] = held._asdict() | {"law": held.law._asdict()}
    except ConfigError as error:
        out["not_held_out"] = str(error)
    if asked:
        out["forecast"] = _forecast(study, asked)
    return out


def _middle(powers: Array | None, column: int) -> list[float] | None:
    if powers is None or len(powers) < TRIED // 2:
        return None
    tail = (1 - bootstrap.LEVEL) / 2
    return [float(end) for end in np.quantile(powers[:, column], [tail, 1 - tail])]


def _forecast(study: Study, asked: Sequence[float]) -> dict[str, Any]:
    """Of a run of so much compute, of the best size; or of this size and so many images."""
    points, found, draws = study.points, study.fit, study.draws
    assert points is not None and found is not None and draws is not None
    if len(asked) == 1:
        try:
            size, data = (float(one(asked[0])) for one in laws(points, study.best))
        except ConfigError as error:
            return {"why": f"no best size of {asked[0]:.3g} FLOPs: {error}"}
        compute = asked[0]
    else:
        size, data = asked
        compute = size * data * float(np.median(points.compute / points.size / points.data))
    low, high = draws.interval(draws.predict(size, data))
    return {
        "compute": compute,
        "size": size,
        "images": data,
        "value": float(found.law(size, data)),
        "interval": [low, high],
        "warning": judge.far_beyond(compute, points.compute),
    }


def frontier(points: Points) -> tuple[Array, Array]:
    """Compute and loss of the runs of the size that did best at each budget, all seeds."""
    rows = []
    for group in budgets.budgets(points.compute):
        sizes = points.size[group.rows]
        mean = {s: points.loss[group.rows][sizes == s].mean() for s in np.unique(sizes)}
        rows.append(group.rows[sizes == min(mean, key=lambda s: mean[s])])
    chosen = np.concatenate(rows)
    return points.compute[chosen], points.loss[chosen]


def _comparison(studies: Sequence[Study], draws: int) -> list[dict[str, Any]]:
    """Each further arm beside the first."""
    able = [study for study in studies if study.points is not None]
    out = []
    for other in able[1:]:
        pair = [frontier(one.points) for one in (other, able[0]) if one.points is not None]
        row: dict[str, Any] = {"arm": other.arm, "beside": able[0].arm}
        try:
            row |= judge.compare(pair[0], pair[1], min(draws, 300))._asdict()
        except ConfigError as error:
            row["why"] = str(error)
        out.append(row)
    return out


def _caveats(study: Study) -> list[str]:
    """What the points of an arm cannot carry."""
    if study.points is None:
        return [f"{study.arm}: no law was fitted ({study.why})."]
    points, groups = study.points, budgets.budgets(study.points.compute)
    out = []
    if len(groups) < FEW:
        out.append(f"{len(groups)} budgets: an exponent of N* needs three or more to mean anything")
    edge = len(groups) - sum(one.inside for one in study.best)
    if edge:
        out.append(
            f"at {edge} of {len(groups)} budgets the best size lies at the edge of the sizes that "
            "were trained, or no parabola has a minimum: the true best is not among them"
        )
    span = points.compute.max() / points.compute.min()
    if span < 100:
        out.append(
            f"compute spans a factor of {span:.3g}: exponents are those of this range, and a small "
            "study's are no guide to large models"
        )
    if study.fit is not None:
        out += study.fit.notes
    return [f"{study.arm}: {line}." for line in out]


def figures(page: Mapping[str, Any], studies: Sequence[Study]) -> dict[str, Figure]:
    """The pictures by name; those that nothing can be drawn in are left out."""
    able = [study for study in studies if study.points is not None]
    if not able:
        return {}
    out = {"isoflop": draw.isoflop(able, page["y"]), "fit": draw.law(able, page["y"])}
    out["residuals"] = draw.residuals(able)
    lines = []
    for study in able:
        try:
            pair = laws(study.points, study.best) if study.points is not None else None
        except ConfigError:
            pair = None
        inside = [one for one in study.best if one.inside]
        data = [data_at(study.points, one) for one in inside] if study.points is not None else []
        lines.append((study.arm, inside, data, pair, study.powers))
    if any(inside for _, inside, *_ in lines):
        out["optimum"] = draw.optimum(lines)
    return out


CAPTIONS = {
    "isoflop": "Quality over size at equal compute. Dashed: parabola in log size; star: its "
    "minimum, where it lies between the sizes that were trained.",
    "optimum": "Best size and best number of images over compute; band: 95 % of runs drawn again.",
    "fit": "The law beside the points it was fitted to, a line a size; band: 95 %, runs drawn "
    "again. It is the law's uncertainty, not that of one more run.",
    "residuals": "What the law leaves: above 0 it is too pessimistic. A trend here means that the "
    "law is not of the right form.",
}


def render(page: Mapping[str, Any], studies: Sequence[Study], pictures: Mapping[str, bytes]) -> str:
    """One self-contained HTML page."""
    done = page["status"].get(ledger.DONE, 0)
    rest = {key: n for key, n in page["status"].items() if key != ledger.DONE}
    cards = [("quality", page["y"]), ("finished points", str(done))]
    cards += [(f"points {key}", str(n)) for key, n in rest.items()]
    cards.append(("arms", ", ".join(page["arms"])))
    sections = [_honest(page), _laws(page)]
    shown = {name: [(png, CAPTIONS[name])] for name, png in pictures.items()}
    for name, title in (("isoflop", "Equal compute"), ("optimum", "Best size and data")):
        if name in shown:
            sections.append(Section(title, "", shown[name], _best(page, name)))
    for name, title in (("fit", "Fit"), ("residuals", "Residuals")):
        if name in shown:
            sections.append(Section(title, "", shown[name]))
    sections += [_held(page), *_compared(page), *_foretold(page), _points(studies, page["y"])]
    return render_page(f"Scaling study {page['study']}", cards, sections, dict(page))


def _honest(page: Mapping[str, Any]) -> Section:
    text = "\n\n".join(page["caveats"]) or "Nothing that a rule here would warn of."
    return Section("What these points cannot say", text)


def _laws(page: Mapping[str, Any]) -> Section:
    rows = []
    for arm, found in page["arms"].items():
        for key, ends in found.get("intervals", {}).items():
            rows.append((arm, key, found["law"][key], *ends))
        for key, one in found.get("exponents", {}).items():
            ends = one["interval"] or ("", "")
            rows.append((arm, f"exponent of {key}(C), parabolas", one["value"], *ends))
    text = (
        f"{page['y']} = E + A / N^alpha + B / D^beta, N parameters of the encoder, D images seen, "
        f"by variable projection; 95 % intervals by {page['draws']} bootstraps over runs. a is the "
        "exponent of N* where compute is N D."
    )
    table = (("arm", "parameter", "value", "low", "high"), rows)
    return Section("Laws", text, (), table if rows else None)


def _best(page: Mapping[str, Any], name: str) -> Any:
    if name != "optimum":
        return None
    rows = [
        (arm, one["compute"], one["size"], one["data"], one["loss"], "yes" if one["inside"] else "")
        for arm, found in page["arms"].items()
        for one in found.get("best_sizes", ())
    ]
    return ("arm", "FLOPs", "N*", "D*", page["y"], "inside"), rows


def _held(page: Mapping[str, Any]) -> Section:
    rows, text = [], ["The law of all smaller budgets, asked about the largest one."]
    for arm, found in page["arms"].items():
        if held := found.get("held_out"):
            rows.append((arm, held["compute"], held["rows"], held["error"], held["spread"]))
        elif "not_held_out" in found:
            text.append(f"{arm}: {found['not_held_out']}.")
    head = ("arm", "FLOPs", "points", "mean relative error", "root mean square")
    return Section(
        "Largest budget, held out", "\n\n".join(text), (), (head, rows) if rows else None
    )


def _compared(page: Mapping[str, Any]) -> list[Section]:
    rows, text = [], ["Saturating laws in compute of the size that did best at each budget."]
    for one in page["comparison"]:
        if "why" in one:
            text.append(f"{one['arm']} beside {one['beside']}: {one['why']}.")
            continue
        pair = f"{one['arm']} beside {one['beside']}"
        rows.append((pair, "difference of exponents", *one["exponent"]))
        rows.append((pair, f"compute multiplier at {one['at']:.4g}", *one["multiplier"]))
    head = ("arms", "what", "value", "low", "high")
    found = Section("Comparison", "\n\n".join(text), (), (head, rows) if rows else None)
    return [found] if page["comparison"] else []


def _foretold(page: Mapping[str, Any]) -> list[Section]:
    rows, text = [], []
    for arm, found in page["arms"].items():
        one = found.get("forecast")
        if one is None:
            continue
        if "why" in one:
            text.append(f"{arm}: {one['why']}.")
            continue
        rows.append(
            (arm, one["compute"], one["size"], one["images"], one["value"], *one["interval"])
        )
        if one["warning"]:
            text.append(f"{arm}: the forecast is for {one['warning']}.")
    head = ("arm", "FLOPs", "N", "D", page["y"], "low", "high")
    found = Section("Forecast", "\n\n".join(text), (), (head, rows) if rows else None)
    return [found] if rows or text else []


def _points(studies: Sequence[Study], y: str) -> Section:
    rows = []
    for study in studies:
        values: Sequence[Any] = study.points.loss if study.points is not None else ()
        for i, row in enumerate(study.rows):
            value = float(values[i]) if len(values) else ""
            rows.append((study.arm, row["size"], row["budget"], row["seed"], row["images"], value))
    head = ("arm", "size", "budget", "seed", "images", y)
    return Section("Points", "Those that are finished; points.csv has all.", (), (head, rows))
