"""The study of learning rates over widths: what it measures, what it leaves alone, what it says."""

import json

import numpy as np
import pytest

from jepa_vl.methods import METHODS
from jepa_vl.objectives import REGISTRY
from studies import lr_transfer

RATES = [0.001, 0.004, 0.016]
WORDS = ["--rates", ",".join(map(str, RATES)), "--steps", "5", "--seeds", "2"]


@pytest.fixture
def measured(monkeypatch):
    """Models whose best rate is 0.004 by muP, and 0.004 x 32 / width without."""
    seen = []

    class Model:
        def __init__(self, config, mesh):
            self.width = config.encoder.width
            self.best = 0.004 if config.mup.base_width else 0.004 * 32 / self.width

        def loss(self, rate, seed, batches):
            seen.append((self.width, rate, seed))
            if rate > 4 * self.best:
                return None
            return 1.0 + seed / 10 + 0.1 * float(np.log(rate / self.best)) ** 2

    monkeypatch.setattr(lr_transfer, "Model", Model)
    monkeypatch.setattr(lr_transfer, "feed", lambda config, mesh, seed: [])
    yield seen
    for registry in (METHODS, REGISTRY):  # other tests list what is registered
        del registry[lr_transfer.STUDENT]


def test_each_cell_is_measured_once_and_a_stopped_study_goes_on(tmp_path, measured, capsys):
    assert lr_transfer.main(["--out", str(tmp_path), "--widths", "32,64", *WORDS]) == 0
    # The narrowest is the same model by both.
    assert len(measured) == 3 * len(RATES) * 2 and len(set(measured)) == 2 * len(RATES) * 2
    file = tmp_path / "lr_transfer.json"
    page = json.loads(file.read_text())
    assert page["loss"]["muP"]["32"] == page["loss"]["standard"]["32"]
    assert page["loss"]["standard"]["64"]["0.016"] == [None, None]
    del page["loss"]["muP"]["64"]["0.004"]
    file.write_text(json.dumps(page))
    measured.clear()
    assert lr_transfer.main(["--out", str(tmp_path), "--widths", "32,64", *WORDS]) == 0
    assert measured == [(64, 0.004, 0), (64, 0.004, 1)]
    assert (tmp_path / "lr_transfer.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()


def test_drift_is_the_power_of_the_width_and_regret_what_the_narrow_rate_costs(
    tmp_path, measured, capsys
):
    rates = "0.0005,0.001,0.002,0.004,0.008"
    words = ["--widths", "32,64,128", "--rates", rates, "--steps", "5", "--seeds", "1"]
    assert lr_transfer.main(["--out", str(tmp_path), *words]) == 0
    found = json.loads((tmp_path / "lr_transfer.json").read_text())["judged"]
    assert found["muP"]["drift"] == pytest.approx(0, abs=1e-9)
    assert found["muP"]["regret"] == pytest.approx(0, abs=1e-9)
    assert found["standard"]["drift"] == pytest.approx(-1, abs=1e-6)
    # Of width 128 the best is 0.001; at 0.004 the loss is 0.1 log(4)^2 above 1.
    assert found["standard"]["regret"] == pytest.approx(0.1 * np.log(4) ** 2)
    assert found["standard"]["best"]["128"] == pytest.approx(0.001)
    capsys.readouterr()
