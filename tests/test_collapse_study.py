"""Promises of benchmarks/collapse.py: what breaks a run, and how it judges what the alarm said."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl.config import flat, to_dict
from jepa_vl.data import pipeline, sources
from jepa_vl.objectives import base
from tests.tiny import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("collapse")


def test_a_broken_run_differs_from_a_healthy_one_in_what_its_name_says(study):
    def values(name):
        return flat(to_dict(study.make_config("shapes_world", "", name, 3)))

    healthy = values(study.HEALTHY)
    assert healthy["seed"] == 3 and healthy["train.steps"] == study.SMALL["train.steps"]
    for name in study.COLLAPSES:
        found = values(name)
        changed = {key for key in healthy if found[key] != healthy[key]}
        assert changed == {*study.TIMES.get(name, ()), *study.VALUES.get(name, ())}
        assert changed or name in study.PATCHES
        for key, factor in study.TIMES.get(name, {}).items():
            assert found[key] == pytest.approx(factor * healthy[key])


def test_constant_images_are_those_of_training_alone(study):
    config = tiny()
    source = sources.open_sources(config)[0]
    element, rng = pipeline.TrainElement(config, source), np.random.default_rng(0)
    with study.PATCHES["constant images"]():
        broken = element.make(0, rng)["image"]
        held_out = next(pipeline.eval_batches(config, source, [0], 1))["image"]
    assert np.unique(broken).tolist() == [127] and broken.shape == (32, 32, 3)
    assert len(np.unique(held_out)) > 2 and len(np.unique(element.make(0, rng)["image"])) > 2


def test_without_the_stop_gradient_targets_are_trained(study):
    x = jnp.linspace(-1.0, 2.0, 6).reshape(1, 6)

    def slope():
        return jnp.abs(jax.grad(lambda x: base.as_targets(x)[0, 0])(x)).max()

    assert slope() == 0
    seen = []

    class Loss:
        def loss(self, params, target, *args):
            seen.append((slope(), target))

    broken = type("Broken", (study.NoStopGradient,), {"__init__": lambda self: None})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.tcjepa.TCJepa, "loss", Loss.loss)
        broken.loss({"encoder": "online"}, "target")
    assert seen[0][0] > 0 and seen[0][1] == "online"
    assert slope() == 0


def run_of(study, folder, name, stds, knn):
    """What a run of 20 steps a row leaves."""
    folder.mkdir()
    rows = [
        {"step": 20 * i, "held_out_loss": 3.0, "unexplained": 0.5, "std/target": std,
         "knn/target": k, "lr": 0.1}
        for i, (std, k) in enumerate(zip(stds, knn, strict=True))
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "cost.json").write_text('{"diagnostics_seconds": 0.3, "step_seconds": 0.1}')
    config = tiny(**{"log.diagnostics_every": 20, "eval.val_images": 400})
    return study.told(folder, config, name, 0)


def test_an_alarm_is_in_time_if_it_comes_before_the_knn_falls(study, tmp_path):
    fine, falling = [0.5] * 5, [0.5, 0.4, 0.05, 0.04, 0.03]
    cases = {
        "yes": ("lr x 30", falling, [0.5, 0.5, 0.5, 0.5, 0.3]),
        "before it falls by two errors": ("lr x 30", falling, [0.5, 0.49, 0.48, 0.47, 0.3]),
        "too late": ("lr x 30", falling, [0.5, 0.4, 0.3, 0.2, 0.1]),
        "missed": ("lr x 30", fine, [0.5, 0.4, 0.3, 0.2, 0.1]),
        "no collapse, no alarm": ("momentum 0", fine, [0.5, 0.49, 0.6, 0.7, 0.8]),
        "silent": (study.HEALTHY, fine, [0.5, 0.6, 0.7, 0.8, 0.9]),
        "false alarm": (study.HEALTHY, falling, [0.5, 0.6, 0.7, 0.8, 0.9]),
    }
    runs = {case: run_of(study, tmp_path / str(i), *cases[case]) for i, case in enumerate(cases)}
    assert {case: study.in_time(run) for case, run in runs.items()} == {c: c for c in cases}
    assert runs["yes"]["alarms"][0]["step"] == 60
    assert (runs["yes"]["knn_falls"], runs["silent"]["knn_falls"]) == (80, None)
    assert runs["yes"]["share_as_measured"] == pytest.approx(3 / 20)
    lines = study.table(list(runs.values()))
    assert "| lr x 30 | 0 | 60, std |" in lines[2] and lines[2].endswith("| 80 | 80 | yes |")
    assert "0.30 s" in lines[-1] and "15% of the steps' time" in lines[-1]
