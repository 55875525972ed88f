"""Each objective through the whole road: train, kill, resume, result, report."""

import json
import re

import jax
import numpy as np
import pytest

from jepa_vl.cli.main import main
from jepa_vl.data import sources
from jepa_vl.evaluators import features
from jepa_vl.training import loop
from jepa_vl.training.checkpoint import load
from tests.test_step import Bench, batches
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")
METHODS = ("tijepa", "crossmodal", "contrastive")
SPREADS = {"tijepa": ["target_std"]}
FOUR = {"train.steps": 4, "checkpoint.every": 2, "log.diagnostics_every": 4, "eval.every": 4}


def words(method, **overrides):
    options = FOUR | {"mesh.data": 8} | overrides
    flags = [f"--config.{name}={value}" for name, value in options.items()]
    return ["--config", f"tests/configs_tiny.py:objective={method}", *flags]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_its_result_and_its_report(method, tmp_path):
    assert main(["train", "--workdir", str(tmp_path), *words(method)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["steps"], result["compiles"]) == ("done", 4, 1)
    assert (result["objective"], result["dead_share"]) == (method, None)
    numbers = [*(result["knn"][name] for name in ("target", "untrained")), result["text_gain"]]
    assert all(isinstance(number, float) for number in numbers)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in SPREADS.get(method, ["target_std/image", "target_std/text"]):
        assert all(row[name] > 0 for row in rows[1:])
    assert "regulariser_gradient_ratio" not in rows[-1]
    predicts = {"tijepa": {""}, "crossmodal": {"", "text"}, "contrastive": set()}[method]
    for start, joint in (("unexplained", "/"), ("rankme/predictor", "_")):
        keys = {start + (joint + modality if modality else "") for modality in predicts}
        assert {key for key in rows[-1] if key.startswith(start)} == keys
        assert all(rows[-1][key] > 0 for key in keys)
    assert ("text_gain_noise" in rows[-1]) == bool(predicts)
    assert main(["report", "--workdir", str(tmp_path)]) == 0
    found = re.findall(r"<h2>(.+?)</h2>", (tmp_path / "report.html").read_text())
    masks = ["Masks"] if method == "tijepa" else []
    assert found == [
        "Result", "Proof", "Curves", "Health", "Time", *masks, "Patch features as colours",
        "Nearest neighbours", "Configuration",
    ]  # fmt: skip


def test_a_run_that_is_stopped_after_two_steps_and_goes_on_equals_an_unbroken_one(
    tmp_path, monkeypatch
):
    config = tiny(objective="tijepa", **FOUR)  # its frozen towers are made again
    assert loop.train(config, tmp_path / "whole") == loop.DONE
    examine = loop.Run.examine

    def stopped(self, step):
        stop.requested = step == 2
        return examine(self, step)

    with loop.Stop() as stop, monkeypatch.context() as patched:
        patched.setattr(loop, "Stop", lambda: stop)
        patched.setattr(loop.Run, "examine", stopped)
        assert loop.train(config, tmp_path / "broken") == loop.PREEMPTED
    assert load(tmp_path / "broken")[2] == 2
    assert loop.train(config, tmp_path / "broken") == loop.DONE
    (_, left, steps), (_, right, _) = load(tmp_path / "whole"), load(tmp_path / "broken")
    assert steps == 4
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_on_one_batch_and_the_step_compiles_once(method):
    overrides = {"mesh.data": 1, "train.steps": 40, "optim.ema": 1.0}
    bench = Bench(tiny(objective=method, **overrides))
    losses = [m["loss"] for m in bench.run(batches(bench.config, 1) * 25)]
    assert losses[-1] < 0.95 * losses[0]
    assert bench.step._cache_size() == 1


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_looks_through_the_target_not_through_what_is_trained(method):
    bench = Bench(tiny(objective=method, **{"mesh.data": 1}))
    bench.run(batches(bench.config, 2))
    objective, frozen = bench.objective, bench.frozen
    encode = features.make_encode(objective.encoder, bench.mesh)
    held_out = sources.open_sources(bench.config)[1]
    images = np.stack([held_out[i]["image"][:32, :32] for i in range(4)])
    online = objective.target_of(bench.state.params)
    ema, now = (
        np.asarray(encode(objective.encoder_params(weights, frozen), images))
        for weights in (bench.state.target, online)
    )
    assert ema.shape[0] == 4 and ema.ndim == 2 and np.all(np.isfinite(ema))
    assert np.max(np.abs(ema - now)) > 1e-6
