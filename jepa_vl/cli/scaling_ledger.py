"""``jepa-vl scaling ledger``: how far a study is, and all its points as a table."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jepa_vl.cli import configs, outputs
from jepa_vl.cli.columns import columns
from jepa_vl.config import ConfigError
from jepa_vl.scaling import ledger, table


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Prints a line a point; writes the table.

    Raises:
      ConfigError: no such ledger, or a file that cannot be written.
    """
    path = Path(args.ledger).expanduser()
    path = path / ledger.FILE if path.is_dir() else path
    rows, out = ledger.read(path), outputs.file("--csv", args.csv) if args.csv else None
    found = list(ledger.latest(rows).values())
    if not found:
        raise ConfigError("--ledger", str(path), "at least one row")
    lines = [("arm", "size", "FLOPs", "seed", "images", "kNN error", "seconds", "status")]
    for row in found:
        error = table.QUALITIES["knn_error"](row)
        lines.append((
            row["arm"], row["size"], f"{row['budget']:.3g}", str(row["seed"]),
            f"{row.get('images') or 0:,}", "" if error is None else f"{error:.3f}",
            f"{row.get('seconds') or 0:,.0f}", row["status"],
        ))  # fmt: skip
    print("\n".join(columns(lines, (2, 3, 4, 5, 6))))
    counts = Counter(row["status"] for row in found)
    hours = sum(row.get("chip_hours") or 0 for row in found)
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    print(f"{told}; {hours:,.2f} chip-hours")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(table.to_csv(rows))
        print(out)
    return 0
