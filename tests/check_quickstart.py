"""Refuses a quickstart that did not learn: ``python tests/check_quickstart.py WORKDIR``."""

import json
import sys
from pathlib import Path


def problems(result: dict) -> list[str]:
    """What the README promises and this result breaks."""
    knn, ranks = result["knn"], result["rankme"]
    promises = {
        "the run is done": result["status"] == "done",
        "one compilation of the step": result["compiles"] == 1,
        "kNN beats the untrained network by 0.1": knn["target"] >= knn["untrained"] + 0.1,
        "the text is used": result["text_gain"] > 0,
        "O is alive": result["dead_share"] < 0.5,
        "RankMe has not fallen": ranks["end"] >= ranks["start"],
    }
    return [promise for promise, kept in promises.items() if not kept]


if __name__ == "__main__":
    found = json.loads((Path(sys.argv[1]) / "result.json").read_text())
    print(json.dumps(found, indent=2))
    broken = problems(found)
    sys.exit("not true: " + "; ".join(broken) if broken else 0)
