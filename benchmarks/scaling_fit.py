"""How much faster is variable projection than many starts, and is it as good?

Command:    python benchmarks/scaling_fit.py --csv chinchilla_234.csv --out RESULT.json
Needs:      a table with columns N, D and loss.

"seconds": CPU seconds of a fit by each method, interleaved. "ratio": huber over vp. "squares" is
the mean squared error of L at both optima, which variable projection minimises.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import measure
import numpy as np

from jepa_vl.scaling.fit import METHODS, fit
from jepa_vl.scaling.law import read_csv


def main() -> None:
    """Measures and writes."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--out", default="", help="JSON file; printed if absent")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    points, found = read_csv(args.csv, "N", "D", "loss"), {}

    def arm(method: str) -> measure.Sample:
        began = time.process_time()
        found[method] = fit(points, method)
        return {"seconds": time.process_time() - began}

    arms = {method: partial(arm, method) for method in METHODS}
    rounds = measure.interleave(arms, args.repeats)
    seconds = {method: measure.summary(values["seconds"]) for method, values in rounds.items()}
    squares = {
        method: float(np.square(best.law(points.size, points.data) - points.loss).mean())
        for method, best in found.items()
    }
    page = {
        "machine": measure.machine("numpy", "scipy"),
        "points": len(points.loss),
        "laws": {method: best.law._asdict() for method, best in found.items()},
        "objective": {method: best.objective for method, best in found.items()},
        "squares": squares,
        "seconds": seconds,
        "load": [value for values in rounds.values() for value in values["load"]],
        "ratio": measure.ratio(seconds["huber"], seconds["vp"]),
    }
    measure.write(page, args.out)


if __name__ == "__main__":
    main()
