"""Promises of the scripts in benchmarks/: they run, and tell what they measured, and how."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tiny import tiny

ROOT = Path(__file__).parents[1]
SPREAD = {"median", "min", "max", "all"}


def run(
    script: str, out: Path, options: dict, words: Sequence[str] = (), optimised: bool = False
) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    if optimised:
        environment.pop("XLA_FLAGS", None)  # the eight devices of the tests
    else:  # most promises here are not of speed
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
    args = [f"--{name}={value}" for name, value in {**options, "out": out}.items()]
    command = [sys.executable, str(ROOT / "benchmarks" / script), *args, *words]
    subprocess.run(command, check=True, env=environment, timeout=120, cwd=out.parent)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("pipeline") / "out.json"
    small = {"make": "12x250x190", "sizes": 64, "batch": 8, "batches": 8, "warmup": 1}
    small |= {"workers": 0, "repeats": 2, "stage-images": 24, "rss": 64}
    return run("input_pipeline.py", out, small)


def test_the_input_pipeline_is_measured_beside_others(pipeline):
    assert {"question", "machine", "data", "settings", "load_at_start", "memory"} < pipeline.keys()
    assert pipeline["data"]["made"] and 200 < pipeline["data"]["mean_width"] < 260
    found = pipeline["sizes"]["64"]
    assert {"ours pillow", "loop"} <= found["arms"].keys()
    for arm in found["arms"].values():
        for key in ("images_per_second", "ms_per_image", "cpu_ms_per_image", "load"):
            assert arm[key].keys() == SPREAD and len(arm[key]["all"]) == 2
        speed = arm["images_per_second"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    for name, ratios in found["ratios"].items():
        assert " over " in name and ratios.keys() == {"time", "cpu"}
        assert ratios["time"].keys() == {"of_minima", "of_medians"}


def test_the_cost_of_an_image_is_told_by_part(pipeline):
    """What adds up, not what is small: a quotient of times on a busy machine proves nothing."""
    stages = pipeline["sizes"]["64"]["stages"]["ours pillow"]
    cost = stages["cpu_ms_per_image"]
    whole = cost["element"] + cost["masks"] + cost["batch_and_transport"]
    assert cost.keys() >= {"read", "decode", "crop_and_resize", "masks", "captions", "other"}
    assert all(
        cost[part] > 0 for part in ("read", "decode", "crop_and_resize", "masks", "captions")
    )
    assert stages["mask_share"] == pytest.approx(cost["masks"] / whole)
    others = ("element", "masks", "batch_and_transport")
    parts = sum(value for name, value in cost.items() if name not in others)
    assert parts == pytest.approx(cost["element"])


def test_memory_is_followed(pipeline):
    points = pipeline["memory"]["images_mib"]
    assert [images for images, _ in points] == list(range(8, 73, 8))
    if sys.platform == "linux":
        assert all(mib > 20 for _, mib in points)
        assert pipeline["memory"]["mib_per_10000_images"] is not None


def test_arms_take_turns_and_their_spread_is_kept(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    measure = importlib.import_module("measure")
    calls, costs = [], iter([4.0, 1.0, 2.0, 3.0, 6.0, 1.5])
    arms = {name: (lambda name=name: calls.append(name) or {"ms": next(costs)}) for name in "ab"}
    found = measure.interleave(arms, 3)
    assert calls == list("ababab")
    slow, fast = (measure.summary(found[name]["ms"]) for name in "ab")
    assert slow == {"median": 4.0, "min": 2.0, "max": 6.0, "all": [4.0, 2.0, 6.0]}
    assert measure.ratio(slow, fast) == {"of_minima": 2.0, "of_medians": 4.0 / 1.5}
    assert measure.summary([1.0, None])["median"] is None


def test_decoders_are_compared_with_pillow(tmp_path):
    small = {"make": "4x120x90", "images": 4, "sizes": 32, "repeats": 2}
    found = run("decoders.py", tmp_path / "out.json", small)
    assert found["decode"].keys() == {"1/1", "1/2", "1/4"}
    for table in (*found["decode"].values(), *found["resize"].values(), *found["crop"].values()):
        assert table["pillow"]["largest_difference"] == 0
        assert table["pillow"]["times_as_fast"]["of_minima"] == 1
        assert all(row["cpu_ms"].keys() == SPREAD for row in table.values())
        assert all(row["largest_difference"] <= 1 for row in table.values())


def test_a_run_tells_how_long_it_waits_for_data(tmp_path, monkeypatch, quick_compilation):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    data_wait, make = (importlib.import_module(name) for name in ("data_wait", "photographs"))
    make.make_folder(tmp_path, 24, 60, 40)
    whole = data_wait.make_config(data_wait.parse([f"--data={tmp_path}", "--steps=5"]))
    assert (whole.encoder.width, whole.encoder.image_size, whole.train.steps) == (384, 224, 8)

    def small(args):
        data = {"data.kind": "folder", "data.path": args.data, "data.workers": args.workers}
        rare = {"log.diagnostics_every": 99, "eval.every": 99, "checkpoint.every": 99}
        return tiny(objective="ijepa", **data, **rare, **{"train.steps": 4})

    monkeypatch.setattr(data_wait, "make_config", small)
    data_wait.main([f"--data={tmp_path}", "--warmup=1", f"--out={tmp_path / 'out.json'}"])
    found = json.loads((tmp_path / "out.json").read_text())
    assert {"question", "machine", "settings", "load_at_start", "load_at_end"} < found.keys()
    told = found["run"]
    assert 0 < told["data_wait"] < 1 and len(told["step_seconds"]["all"]) == 3
    assert told["data_wait_of_a_step"].keys() == SPREAD
    assert told["images_per_second"] > 0 and told["whole_run"]["seconds"]["step"] > 0


def test_the_cost_of_a_checkpoint_is_told_beside_a_step(tmp_path):
    small = {"variant": "", "batch": 8, "repeats": 2, "saves": 4}
    found = run("checkpoints.py", tmp_path / "out.json", small)
    for name in ("blocking", "steps_beside", "amortised"):
        assert found[name].keys() == SPREAD and len(found[name]["all"]) == 2
    seconds = found["seconds"]
    for share, save, step in zip(
        found["blocking"]["all"], seconds["save"]["all"], seconds["step"]["all"], strict=True
    ):
        assert share == pytest.approx(save / step)
    assert [number for number, _ in found["memory"]["mib"]] == list(range(1, 5))
    assert found["state_mb"] > 0.1


@pytest.mark.slow
def test_a_step_is_measured_beside_others_in_turns(tmp_path):
    """Without torch: two arms of ours, the second of which does twice the work."""
    options = {"size": "tiny", "batch": 8, "repeats": 2, "steps": 1}
    words = [f"--arm=ours{more}" for more in ("", " objective=tcjepa text.captions=2 text.words=4")]
    found = run("step.py", tmp_path / "out.json", options, words)
    assert {"question", "machine", "settings", "arms"} == found.keys()
    plain, captions = found["arms"].values()
    assert plain["flops"] == 1.0 < captions["flops"]
    for arm in (plain, captions):
        for key in ("ms", "cpu_seconds", "rss_mib", "others", "load"):
            assert arm[key].keys() == SPREAD and len(arm[key]["all"]) == 2
        assert arm["ms"]["min"] > 0 and arm["first_step_s"] > 0
        assert arm["temporaries_mib"] > 0.1
    assert plain["ratios"]["of_minima"] == plain["ratios"]["rss"] == 1.0
    ratios = captions["ratios"]
    assert ratios["of_minima"] == pytest.approx(captions["ms"]["min"] / plain["ms"]["min"])
    rounds = zip(captions["ms"]["all"], plain["ms"]["all"], strict=True)
    assert ratios["of_rounds"]["all"] == pytest.approx([a / b for a, b in rounds])


@pytest.mark.slow
def test_captions_take_about_the_time_that_their_flops_say(tmp_path):
    """0.9 of the FLOPs' ratio on a quiet machine; the slack is for others on the same cores.

    Not beside torch: its threads wait for each other without end where others have the cores.
    """
    options = {"size": "tiny", "batch": 8, "repeats": 5, "steps": 5}
    arms = ("ours", "ours objective=tcjepa text.captions=2 text.words=8")
    words = [f"--arm={arm}" for arm in arms]
    found = run("step.py", tmp_path / "out.json", options, words, optimised=True)
    ours, captions = (found["arms"][arm] for arm in arms)
    assert captions["flops"] > 1.5 * ours["flops"]
    assert captions["ms"]["min"] / ours["ms"]["min"] < 2 * captions["flops"] / ours["flops"]


@pytest.mark.slow
def test_a_start_is_timed_without_and_with_compilations_kept(tmp_path):
    words = ["--", "--config.train.steps=2", "--config.data.workers=0"]
    options = {"config": ROOT / "tests/configs_tiny.py", "repeats": 1}
    found = run("start.py", tmp_path / "out.json", options, words)
    assert {"question", "machine", "settings", "arms", "cold_over_warm"} == found.keys()
    for arm in ("cold", "warm"):
        told = found["arms"][arm]
        assert 0 < told["to_step_0_s"]["min"] <= told["to_step_1_s"]["min"]
    cold, warm = (found["arms"][arm]["to_step_1_s"]["min"] for arm in ("cold", "warm"))
    assert found["cold_over_warm"]["of_minima"] == pytest.approx(cold / warm)
    assert cold / warm > 0.9  # what is kept never costs


def test_an_arm_that_cannot_be_built_ends_the_measurement(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        run("step.py", tmp_path / "out.json", {"size": "tiny"}, ["--arm=ours train.steps=0"])
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_evaluators_are_timed_beside_the_features_they_read(tmp_path):
    few = {"eval.train_images": 32, "eval.val_images": 32}
    words = [f"--set={key}={value}" for key, value in few.items()]
    options = {"config": ROOT / "tests/configs_tiny.py", "tasks": "knn,fewshot", "repeats": 2}
    found = run("evaluators.py", tmp_path / "out.json", options, words)
    assert found["images"] == {"train": 32, "held_out": 32}
    assert found["arms"].keys() == {"forward", "features", "knn", "fewshot"}
    features = found["arms"]["features"]
    for arm in found["arms"].values():
        assert arm["images_per_second"] == pytest.approx(64 / arm["s"]["median"])
        share = arm["s"]["min"] / features["s"]["min"]
        assert arm["of_features"]["of_minima"] == pytest.approx(share) and share > 0
    # Features are read once; what votes on them takes a small part of that (0.008, 0.003).
    assert all(found["arms"][task]["of_features"]["of_minima"] < 1 for task in ("knn", "fewshot"))


@pytest.mark.slow
def test_captions_cost_by_cache_and_tower_what_their_words_say(tmp_path):
    small = {"size": "tiny", "captions": 4, "words": 32, "mean-words": 6, "packed": 48}
    small |= {"batch": 4, "images": 16, "repeats": 2}
    found = run("text_cost.py", tmp_path / "out.json", small)
    assert found["arms"].keys() == {"cache", "padded", "packed"}
    # 128 places against 48; attention over a whole row costs some of it.
    assert 1.5 < found["flops"]["padded"] / found["flops"]["packed"] < 128 / 48
    stored = found["bytes"]
    assert stored["batch_float32"] == 2 * stored["batch_bfloat16"] == 4 * 128 * 32
    assert stored["cached_bfloat16"] < stored["batch_bfloat16"] / 3
    for chip in found["break_even_mb_per_second"].values():
        assert chip["packed"] / chip["padded"] == pytest.approx(
            found["flops"]["padded"] / found["flops"]["packed"]
        )


@pytest.mark.slow
def test_steps_and_memory_of_a_long_run_are_told_by_tenths(tmp_path):
    words = ["--", "--config.data.workers=0"]
    options = {"config": ROOT / "tests/configs_tiny.py", "steps": 20}
    found = run("steady.py", tmp_path / "out.json", options, words)
    assert [row["to_step"] for row in found["tenths"]] == list(range(4, 21, 2))
    second, *_, last = found["tenths"]
    assert found["last_over_second"]["ms"] == pytest.approx(last["ms"] / second["ms"])
    assert second["ms"] > 0
    if sys.platform == "linux":
        assert last["rss_mib"] > 100 and found["mib_per_1000_steps"] is not None


def test_the_table_of_levers_tells_each_that_was_compiled_beside_what_it_changes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    levers = importlib.import_module("levers")
    one = {"milliseconds": 30.0, "bytes_moved": 6e9, "temporaries": 2**30, "scopes": {}}
    few = one | {"milliseconds": 9.0}
    own = {"block, MLP: backward": {"milliseconds": 6.0, "gigabytes": 1.0}}
    cases = {
        "as it is | predictor": one | {"scopes": own},
        "8 images at a time (x 4) | predictor": few,
    }
    rows = levers.table({"cases": cases}).splitlines()
    assert "| as it is | predictor | 10.00 | +0% | 2.00 | 1.00 |" in rows
    assert "| 8 images at a time (x 4) | predictor | 12.00 | +20% | 8.00 | 1.00 |" in rows
    assert "| block, MLP | predictor | 0.00, 0.00, 2.00 |" in rows
    assert levers.scope("jit(f)/transpose(jvp(P))/rematted_computation/Layer/block/attn/q/dot") == (
        "block, attention: recomputed"
    )


def test_the_table_of_a_search_tells_all_that_was_tried_and_marks_the_best(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    pods = importlib.import_module("pods")

    def tried(batch, fits, mfu):
        return {
            "batch_size": batch, "remat": "dots", "fsdp": 16, "fits": fits,
            "mesh": {"data": 4, "fsdp": 16, "tensor": 1}, "seconds_at_peak": {"network": 0.0152},
            "bytes_per_device": {"total": 4 * 2**30},
            "estimate": {"mfu": mfu, "images_per_second": 10267.4, "mfu_of_cycles": 0.28},
        }  # fmt: skip

    refused = {"batch_size": 2048, "remat": "dots", "fsdp": 3, "refused": "does not divide"}
    ways = [tried(2048, True, 0.24), tried(2048, False, 0.5), tried(4096, True, 0.3), refused]
    text = pods.search_section({"cases": {"L/16 on v5e-64": ways}})
    start = "| L/16 | v5e-64 | 2048 | dots | 4 x 16 | "
    assert start + "yes | 4.00 | 15.2 | 10,267 | **0.24** | 0.28 |" in text
    assert start + "**no** | 4.00 | 15.2 | 10,267 | 0.50 | 0.28 |" in text
    told = pods.settings_section({"cases": {"L/16, train.gather=step": tried(2048, True, 0.23)}})
    assert "| L/16 | `train.gather=step` | 4.00 | 15.2 | 10,267 | 0.23 | 0.28 |" in told
    assert text.count("**0.") == 1 and "| 3 | refused | - | - | - | - | - |" in text


@pytest.mark.slow
def test_the_time_of_a_step_is_told_by_kind(tmp_path):
    found = run("profile_step.py", tmp_path / "out.json", {"size": "tiny", "steps": 1})
    kinds = found["kinds"]
    assert {"products of the MLP", "GELU", "update of the state"} < kinds.keys()
    assert sum(row["share"] for row in kinds.values()) == pytest.approx(1)
    assert all(row["ms"] > 0 and row["runs"] >= 1 for row in kinds.values())
