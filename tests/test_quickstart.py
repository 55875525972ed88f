"""What the README says of its first command, on the built-in data: it learns, within minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ONE_DEVICE = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    train = ["train", "--config", "configs/quickstart.py", "--workdir", str(folder)]
    for words in (train, ["report", "--workdir", str(folder)]):
        command = [sys.executable, "-m", "jepa_vl", *words]
        subprocess.run(command, cwd=ROOT, env=os.environ | ONE_DEVICE, check=True)
    return folder


@pytest.mark.slow
def test_the_quickstart_learns(workdir):
    result = json.loads((workdir / "result.json").read_text())
    print(json.dumps(result, indent=2))
    knn, ranks = result["knn"], result["rankme"]
    assert result["status"] == "done" and result["compiles"] == 1
    # README.md has what was measured; the margins leave room for another processor.
    assert knn["target"] >= knn["untrained"] + 0.15
    assert knn["target"] >= knn["pixels"] + 0.5
    gains = _logged(workdir, "text_gain")
    assert gains[-1] == result["text_gain"] > max(gains[: len(gains) // 2]) > 0
    assert result["dead_share"] < 0.5
    assert ranks["end"] >= ranks["start"]


def _logged(workdir: Path, name: str) -> list[float]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows if name in row]


@pytest.mark.slow
def test_the_report_of_the_quickstart_is_one_page_with_its_pictures(workdir):
    page = (workdir / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 8
    assert 'src="http' not in page and 'href="http' not in page
