"""``jepa-vl scaling report``: a study as one page, its pictures and all of its points."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli import configs, outputs
from jepa_vl.cli.numbers import positive, whole
from jepa_vl.cli.train import writable
from jepa_vl.config import ConfigError
from jepa_vl.scaling import ledger, table

DRAWS = "1000"


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Writes report.html, report.json, points.csv and the figures.

    Raises:
      ConfigError: no ledger, no finished point, a quality that no law should be fitted to, or an
        option.
    """
    path = Path(args.ledger).expanduser()
    path = path / ledger.FILE if path.is_dir() else path
    out = writable("--out", args.out)
    draws = whole("--draws", args.draws or DRAWS, 20)
    y = args.y or "knn_error"
    table.check_quality(y, args.force)
    rows = ledger.read(path)
    arms = table.arms(rows)
    if not arms:
        raise ConfigError("--ledger", str(path), "has no finished point yet")
    asked = _asked(args.forecast)
    from jepa_vl.report import scaling as page
    from jepa_vl.report.figures import to_png

    studies = [_study(rows, y, arm, draws, args.force) for arm in arms]
    found = page.collect(path.parent.name, y, rows, studies, asked, draws)
    out.mkdir(parents=True, exist_ok=True)
    pictures = {name: to_png(figure) for name, figure in page.figures(found, studies).items()}
    for name, png in pictures.items():
        (out / f"{name}.png").write_bytes(png)
    (out / "points.csv").write_text(table.to_csv(rows))
    (out / "report.html").write_text(page.render(found, studies, pictures))
    outputs.write(out / "report.json", found)
    print(out / "report.html")
    return 0


def _asked(text: str | None) -> tuple[float, ...]:
    """FLOPs, or SIZE,IMAGES."""
    if not text:
        return ()
    numbers = tuple(positive("--forecast", word) for word in text.split(","))
    if len(numbers) > 2:
        raise ConfigError("--forecast", text, "FLOPs, or SIZE,IMAGES of a run")
    return numbers


def _study(rows: Sequence[ledger.Row], y: str, arm: str, draws: int, forced: bool) -> Any:
    """One arm: its points, and its fit where they carry one."""
    from jepa_vl.report import scaling as page

    try:
        points = table.points(rows, y, arm, forced)
    except ConfigError as error:
        return page.Study(arm, table.finished(rows, arm), why=str(error))
    return page.fitted(arm, table.finished(rows, arm), points, draws)
