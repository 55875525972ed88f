"""``jepa-vl scaling fit``: a law, its intervals, and what it is worth."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli import configs, outputs
from jepa_vl.cli.columns import columns
from jepa_vl.cli.numbers import positive, whole
from jepa_vl.config import ConfigError, one_of
from jepa_vl.scaling import bootstrap, budgets, judge, law, ledger, table
from jepa_vl.scaling.fit import METHODS, fit


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Fits the table or the ledger, prints and writes what was found.

    Raises:
      ConfigError: the points cannot be read or do not tell five parameters, or an option.
    """
    method = args.method or "vp"
    one_of("--method", method, METHODS)
    draws, seed = whole("--draws", args.draws or "1000", 20), whole("--seed", args.seed or "0", 0)
    asked = _asked(args.predict)
    out = outputs.json_file(args)
    points, source = _points(args)
    points, dropped = judge.drop_highest(
        points, whole("--drop-highest", args.drop_highest or "0", 0)
    )
    page = found(points, method, draws, seed, asked)
    page |= source | {"dropped_rows": [row + 1 for row in dropped]}
    print("\n".join(told(page)))
    outputs.write(out, page)
    return 0


def _points(args: argparse.Namespace) -> tuple[law.Points, dict[str, Any]]:
    """What is fitted, and where it comes from."""
    if bool(args.csv) == bool(args.ledger):
        raise ConfigError("--csv", args.csv or "", "give --csv FILE or --ledger PATH")
    of_table = {"--size": args.size, "--data": args.data, "--loss": args.loss, "--run": args.run}
    of_ledger = {"--y": args.y, "--arm": args.arm}
    for option, value in (of_ledger if args.csv else of_table).items():
        if value is not None:
            raise ConfigError(option, value, f"of {'--ledger' if args.csv else '--csv'}")
    if args.csv:
        for option in ("--size", "--data", "--loss"):
            if not of_table[option]:
                raise ConfigError(option, of_table[option] or "", "give COLUMN, of the table")
        table.check_column(args.loss, args.force)
        path = Path(args.csv).expanduser()
        read = law.read_csv(path, args.size, args.data, args.loss, args.run or "")
        return read, {"csv": args.csv}
    path = Path(args.ledger).expanduser()
    rows = ledger.read(path / ledger.FILE if path.is_dir() else path)
    y = args.y or "knn_error"
    read = table.points(rows, y, args.arm or "", args.force)
    return read, {"ledger": args.ledger, "y": y, "arm": args.arm or table.arms(rows)[0]}


def _asked(text: str | None) -> tuple[float, float] | None:
    if not text:
        return None
    size, comma, data = text.partition(",")
    if not comma:
        raise ConfigError("--predict", text, "SIZE,DATA, two numbers above 0")
    return positive("--predict", size), positive("--predict", data)


def found(
    points: law.Points, method: str, draws: int, seed: int, asked: tuple[float, float] | None
) -> dict[str, Any]:
    """All that the points say, fit for JSON."""
    best = fit(points, method)
    drawn = bootstrap.draw(points, best, method, draws, seed)
    page: dict[str, Any] = {
        "method": method, **best.law._asdict(), "a": best.law.exponent,
        "objective": best.objective, "points": len(points.loss), "runs": int(points.run.max()) + 1,
        "intervals": {name: list(ends) for name, ends in drawn.intervals().items()},
        "draws": draws, "seed": seed, "notes": list(best.notes),
        "best_sizes": [one._asdict() for one in budgets.best_sizes(points)],
    }  # fmt: skip
    try:
        held = judge.hold_out(points, method)
        page["held_out"] = held._asdict() | {"law": held.law._asdict()}
    except ConfigError as error:
        page["notes"].append(f"no budget was held out: {error}")
    if asked is not None:
        page["forecast"] = {
            "size": asked[0], "data": asked[1], "loss": float(best.law(*asked)),
            "interval": list(drawn.interval(drawn.predict(*asked))),
        }  # fmt: skip
        warning = judge.far_beyond(asked[0] * asked[1], points.size * points.data)
        page["notes"] += [f"the forecast is for {warning}"] if warning else []
    return page


def told(page: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    rows = [("", "value", "95 % interval")]
    for name, (low, high) in page["intervals"].items():
        rows.append((name, f"{page[name]:.6g}", f"{low:.6g} to {high:.6g}"))
    what = {"vp": "mean squared error of L", "huber": "Huber's loss of log L, summed"}
    lines = [
        f"L = E + A / N^alpha + B / D^beta, by {page['method']}, of {page['points']} points of "
        f"{page['runs']} runs; N* ~ (N D)^a",
        *columns(rows, (1,)),
        f"objective {page['objective']:.8g} ({what[page['method']]})",
    ]
    if page["best_sizes"]:
        lines += ["", "best sizes by parabolas:"]
        best = [("FLOPs" if "ledger" in page else "N D", "N*", "L*")]
        for one in page["best_sizes"]:
            best.append((f"{one['compute']:.4g}", f"{one['size']:.4g}", f"{one['loss']:.4g}"))
        lines += columns(best, (0, 1, 2))
    if held := page.get("held_out"):
        lines.append(
            f"\nlargest budget, foretold from the others: {held['rows']} points, relative error "
            f"{held['error']:+.2%} in the mean, {held['spread']:.2%} root mean square"
        )
    if forecast := page.get("forecast"):
        low, high = forecast["interval"]
        lines.append(
            f"forecast for N = {forecast['size']:g}, D = {forecast['data']:g}: "
            f"{forecast['loss']:.4f}, 95 % interval of the law {low:.4f} to {high:.4f}"
        )
    if page.get("dropped_rows"):
        lines.append(f"left out, of the highest loss: rows {page['dropped_rows']}")
    return lines + [f"note: {note}" for note in page["notes"]]
