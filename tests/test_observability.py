"""What a run tells about its own time: rates, waits, goodput, traces; and that telling is free."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.profiler import ProfileData

from jepa_vl import hardware, objectives, sharding
from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.data import pipeline
from jepa_vl.training import flops, goodput, loop, profiling, rows, speed
from jepa_vl.training import state as train_state
from jepa_vl.training.goodput import PARTS, Clock
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
RARELY = {"log.diagnostics_every": 100, "eval.every": 100, "checkpoint.every": 100}
SMALL = {"objective": "ijepa", "predictor.depth": 1, **RARELY}


@pytest.fixture
def bare(monkeypatch, compilations, no_evaluation):
    monkeypatch.setitem(SMALL, "train.compile_cache", compilations)


def train(workdir, profile=None, **values):
    assert loop.train(tiny(**{**SMALL, **values}), workdir, profile) == loop.DONE
    result = json.loads((workdir / "result.json").read_text())
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return result, [json.loads(line) for line in lines]


def test_the_parts_of_a_runs_time_add_up_to_its_wall_clock(tmp_path, bare):
    began = time.monotonic()
    result, found = train(tmp_path)
    wall, seconds = time.monotonic() - began, result["goodput"]["seconds"]
    assert seconds.keys() == PARTS.keys()
    assert sum(seconds.values()) == pytest.approx(wall, rel=0.02, abs=0.1)
    assert sum(seconds.values()) == pytest.approx(result["seconds"], abs=0.1)
    for part in ("init", "compile", "data_wait", "step", "checkpoint"):
        assert seconds[part] > 0, part
    assert seconds["lost"] == seconds["profile"] == 0
    assert result["goodput"]["share"] == pytest.approx(seconds["step"] / wall, rel=0.1)
    logged = [row for row in found if "loss" in row]
    assert [row["step"] for row in logged] == list(range(1, 7))
    for row in logged:
        assert 0 <= row["goodput"] < 1 and 0 <= row["data_wait"] < 1
        assert row["tokens_per_second"] > row["images_per_second"] > 0
        assert not {"mfu", "memory/in_use", "memory/peak"} & row.keys()  # a CPU tells neither


def test_a_slow_source_shows_as_waiting_for_data(tmp_path, bare, monkeypatch):
    take = pipeline.TrainStream.__next__

    def slow(self):
        time.sleep(0.2)
        return take(self)

    monkeypatch.setattr(pipeline.TrainStream, "__next__", slow)
    result, found = train(tmp_path)
    assert all(row["data_wait"] > 0.5 for row in found if row["step"] > 1)
    assert result["goodput"]["seconds"]["data_wait"] > 5 * 0.2
    assert result["images_per_second"] < 8 / 0.2


def test_a_row_is_fetched_while_the_next_step_runs_and_before_a_checkpoint(
    tmp_path, bare, monkeypatch
):
    told, begin, write, save = [], loop.Run.begin, rows.MetricsWriter.write, loop.Run.save

    def observed(self):
        begin(self)
        step = self.step

        def started(*args):
            told.append(("step", self.done + 1))
            return step(*args)

        started._cache_size = step._cache_size
        self.step = started

    monkeypatch.setattr(loop.Run, "begin", observed)
    monkeypatch.setattr(
        rows.MetricsWriter, "write", lambda *a: told.append(("row", a[1])) or write(*a)
    )
    monkeypatch.setattr(loop.Run, "save", lambda *a: told.append(("save", a[1])) or save(*a))
    result, found = train(tmp_path, **{"train.steps": 5, "checkpoint.every": 3, "log.every": 2})
    assert told == [
        ("row", 0), ("step", 1), ("step", 2), ("row", 1), ("step", 3), ("row", 2), ("save", 3),
        ("step", 4), ("step", 5), ("row", 4), ("row", 5), ("save", 5),
    ]  # fmt: skip
    assert [row["step"] for row in found] == [0, 1, 2, 4, 5] and result["compiles"] == 1
    for row in found[1:]:  # each with what was known of its own step
        assert row["data/bad"] == 0 and row["lr"] > 0
    assert len({row["lr"] for row in found[1:]}) == 4


@pytest.fixture
def guarded(bare, monkeypatch):
    """From the second step on the loop may move no array but by name, either way."""
    call, array = loop.Run._gave_up, type(jax.device_put(0))

    def refuse(self):
        raise RuntimeError("Disallowed device-to-host transfer")

    def guard(self, metrics):
        jax.config.update("jax_transfer_guard", "disallow")
        # The guard lets the memory of a CPU be read, since nothing is moved.
        for name in ("__int__", "__float__", "__bool__", "__index__", "item", "tolist"):
            monkeypatch.setattr(array, name, refuse)
        return call(self, metrics)

    monkeypatch.setattr(loop.Run, "_gave_up", guard)
    yield
    jax.config.update("jax_transfer_guard", "allow")


def test_steps_run_without_an_implicit_transfer(tmp_path, guarded):
    result, found = train(tmp_path)
    assert result["steps"] == 6 and len(found) == 7


def reads_metrics(monkeypatch):
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda found: get(jax.tree.map(float, found)))


def computes_on_metrics(monkeypatch):
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda found: get(jax.tree.map(lambda x: x + 1, found)))


def leaves_the_batch_on_the_host(monkeypatch):
    names = ("image", "ctx_idx", "tgt_idx")
    monkeypatch.setattr(loop, "to_device", lambda batch, mesh: {n: batch[n] for n in names})


@pytest.mark.parametrize(
    ("fault", "way"),
    [
        (reads_metrics, "device-to-host"),
        (computes_on_metrics, "host-to-device"),
        (leaves_the_batch_on_the_host, "host-to-device"),
    ],
)
def test_the_guard_notices_an_implicit_transfer(tmp_path, guarded, monkeypatch, fault, way):
    fault(monkeypatch)
    with pytest.raises(Exception, match=f"Disallowed {way} transfer"):
        train(tmp_path)


def test_mfu_is_the_models_flops_over_the_peak_of_all_devices(tmp_path, bare, monkeypatch):
    chip = hardware.Chip("ours", "cpu", flops=1e9)
    monkeypatch.setattr(hardware, "of_device", lambda kind: chip)
    counted, count = [], flops.count
    monkeypatch.setattr(flops, "count", lambda *a: counted.append(count(*a).total) or count(*a))
    _, found = train(tmp_path, **{"mesh.data": 8})
    assert len(counted) == 1
    for row in found[1:]:
        seconds_of_a_step = 8 / row["images_per_second"]
        expected = counted[0] / (seconds_of_a_step * 1e9 * 8)
        assert row["mfu"] == pytest.approx(expected)


def test_memory_is_told_where_the_device_tells_it(monkeypatch):
    assert speed.memory() == {}
    device = SimpleNamespace(memory_stats=lambda: {"bytes_in_use": 3, "peak_bytes_in_use": 5})
    monkeypatch.setattr(speed.jax, "local_devices", lambda: [device])
    assert speed.memory() == {"memory/in_use": 3, "memory/peak": 5}


def test_a_window_of_speed_is_not_slower_for_what_happened_between_its_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
    config, clock = tiny(), Clock()
    mesh, spec = sharding.make_mesh(config.mesh), train_state.batch_spec(config)
    found = speed.Speed(config, spec, mesh, clock, 10, lambda: 0)
    for part, seconds in (("data_wait", 1), ("step", 2), ("evaluation", 50), ("other", 1)):
        with clock.part(part):
            now[0] += seconds
    waited = found.waited()
    with clock.part("data_wait"):  # for the batch of step 15, while step 14 was going on
        now[0] += 0.5
    row = found.row(14, waited)
    assert (row["images_per_second"], row["data_wait"]) == (4 * 8 / 4, 1 / 4)
    with clock.part("step"):
        now[0] += 2
    row = found.row(15, found.waited())
    assert (row["images_per_second"], row["data_wait"]) == (8 / 2.5, 0.5 / 2.5)


def test_tokens_are_patches_that_encoders_and_predictor_process():
    count = {}
    for name in objectives.REGISTRY:
        config = tiny(objective=name)
        count[name] = speed.tokens_of_an_image(config, train_state.batch_spec(config))
    spec = train_state.batch_spec(tiny())
    k, (m, c) = spec["ctx_idx"].shape[1], spec["tgt_idx"].shape[1:]
    assert count["ijepa"] == count["tcjepa"] == count["tijepa"] == k + 16 + m * (k + c)
    assert count["contrastive"] == 16
    assert count["crossmodal"] == 2 * 16 + 2 * (16 + 16)  # two captions, nothing shown
    shown = tiny(objective="crossmodal", **{"crossmodal.context_fraction": 0.25})
    assert speed.tokens_of_an_image(shown, spec) == 16 + 4 + 16 + 2 * 16 + 2 * 16


def events(folder: Path) -> dict[str, list]:
    """Steps in the only trace below a folder: numbers of the steps, names of the parts."""
    (file,) = folder.rglob("*.xplane.pb")
    found: dict[str, list] = {"steps": [], "names": []}
    for plane in ProfileData.from_file(str(file)).planes:
        for event in (event for line in plane.lines for event in line.events):
            found["names"].append(event.name)
            if event.name == profiling.EVENT:
                found["steps"].append(dict(event.stats)["step_num"])
    return found


def test_a_window_of_steps_is_traced_and_read_back(tmp_path, bare):
    result, _ = train(tmp_path, profiling.window("3:4", 6))
    found = events(tmp_path / "profiles/steps_3_4")
    assert found["steps"] == [3, 4]
    assert {"data_wait", "step"} <= set(found["names"])
    assert result["goodput"]["seconds"]["profile"] > 0


def test_a_file_asks_a_run_for_a_trace_and_is_taken_away(tmp_path, bare, monkeypatch, capsys):
    examine, wanted = loop.Run.examine, {2: "", 4: "2", 7: "soon"}

    def ask(self, step):
        if step in wanted:
            (self.workdir / "profile").write_text(wanted[step])
        return examine(self, step)

    monkeypatch.setattr(loop.Run, "examine", ask)
    monkeypatch.setattr(profiling, "STEPS", 1)
    monkeypatch.setattr(profiling, "EFFORT", 1e9)  # looks at each step, however fast
    train(tmp_path, **{"train.steps": 8, "log.progress": "lines"})
    assert not (tmp_path / "profile").exists()
    folders = {path.name for path in (tmp_path / "profiles").iterdir()}
    assert folders == {"steps_3_3", "steps_5_6"}
    assert events(tmp_path / "profiles/steps_3_3")["steps"] == [3]
    assert events(tmp_path / "profiles/steps_5_6")["steps"] == [5, 6]
    assert "warning: no profile:" in capsys.readouterr().out


def test_a_trace_that_cannot_be_taken_does_not_stop_the_run(tmp_path, bare, capsys):
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(tmp_path / "another", profiler_options=options)
    try:
        train(tmp_path / "run", profiling.window("2:3", 6), **{"log.progress": "lines"})
    finally:
        jax.profiler.stop_trace()
    assert "warning: no profile:" in capsys.readouterr().out
    assert not (tmp_path / "run/profiles").exists()


def test_other_processes_are_traced_when_told_so_and_look_for_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling.jax, "process_index", lambda: 1)
    (tmp_path / "profile").write_text("")
    for text, expected in (("2:3", None), ("2:3:all", (2, 3, True))):
        asked = profiling.window(text, 5)
        profiler = profiling.Profiler(tmp_path, asked, Clock(), print, lambda: None)
        assert profiler._due(2) == expected
    assert (tmp_path / "profile").exists()


def test_looking_for_the_file_takes_a_hundredth_of_the_time_however_far_away(tmp_path, monkeypatch):
    now, looks = [0.0], []

    class Far(type(tmp_path)):
        def is_file(self):
            looks.append(now[0])
            now[0] += 0.5
            return False

    monkeypatch.setattr(profiling.time, "monotonic", lambda: now[0])
    clock = SimpleNamespace()
    profiler = profiling.Profiler(Far(tmp_path), None, clock, print, lambda: None)
    while now[0] < 200:
        profiler._due(1)
        now[0] += 1
    assert len(looks) in (4, 5)


@pytest.mark.parametrize("text", ["3", "4:3", "0:2", "2:7", "a:b", "1:2:some", "1:2:all:3", "-1:2"])
def test_a_bad_window_is_refused_in_one_line(tmp_path, capsys, text):
    with pytest.raises(ConfigError):
        profiling.window(text, 6)
    workdir = str(tmp_path / "run")
    words = ["train", "--config", "tests/configs_tiny.py", "--workdir", workdir]
    assert main([*words, f"--profile={text}"]) == 5
    error = capsys.readouterr().err
    assert f"--profile = {text!r}: " in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_summary_of_a_run_and_its_rows_agree(tmp_path, bare, capsys):
    result, found = train(tmp_path, **{"log.progress": "lines"})
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("goodput ")]
    assert said == [goodput.in_words(result["goodput"])]
    shares = [row["goodput"] for row in found if "goodput" in row]
    assert np.isclose(shares[-1], result["goodput"]["share"], atol=0.2)
