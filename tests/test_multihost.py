"""Several processes are one run: the same images, the same end, one stop, whatever dies."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jepa_vl import tree
from jepa_vl.cli import configs, supervise
from jepa_vl.cli.proof_table import table
from jepa_vl.config import ConfigError
from jepa_vl.data import faults, pipeline, sources
from jepa_vl.training import distributed, lock, loop, proof
from jepa_vl.training.checkpoint import load

ROOT = Path(__file__).resolve().parents[1]
CONFIG, DEVICES = "tests/configs_hosts.py", 4
SCRIPT = ROOT / "launch" / "local_multiprocess.sh"
WRITTEN = (
    "config.json",
    "metrics.jsonl",
    "proof.jsonl",
    "restarts.jsonl",
    "result.json",
)  # beside checkpoints


def environment(processes: int, **more: str) -> dict[str, str]:
    """Of one of so many processes, which share the devices."""
    flags = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    # The runs are compared with each other alone, so compilation may be quick.
    own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    own |= {"PYTHONPATH": str(ROOT), "JEPA_VL_HEARTBEAT_SECONDS": "10"}
    own |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | own | more


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The command line of a workdir; compilations are shared."""
    cache = f"--config.train.compile_cache={tmp_path_factory.mktemp('cache')}"
    return lambda workdir, *more: [
        "train", "--config", CONFIG, "--workdir", str(workdir), cache, *more
    ]  # fmt: skip


@pytest.fixture(scope="module")
def single(words, tmp_path_factory):
    """The run of one process with all devices."""
    workdir = tmp_path_factory.mktemp("single")
    command = [sys.executable, "-m", "jepa_vl", *words(workdir)]
    subprocess.run(command, cwd=ROOT, env=environment(1), check=True, timeout=300)
    return workdir


def side_by_side(commands: list[list[str]], **more: str) -> list[tuple[int, str]]:
    """Runs processes of one run; exit codes and what they say on stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told = {"JEPA_VL_COORDINATOR": f"127.0.0.1:{free.getsockname()[1]}"}
    told["JEPA_VL_PROCESSES"] = str(len(commands))
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "jepa_vl", *command], cwd=ROOT, text=True,
            env=environment(len(commands), **told, **more, JEPA_VL_PROCESS=str(k)),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for k, command in enumerate(commands)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return list(zip([process.returncode for process in started], said, strict=True))


def supervised(processes: int, command: list[str], **more: str) -> subprocess.CompletedProcess:
    options = ["--processes", str(processes), "--devices", str(DEVICES // processes), "--"]
    more |= {"PYTHON": sys.executable, "JEPA_VL_GRACE_SECONDS": "1"}
    return subprocess.run(
        [SCRIPT, *options, *command[1:]],
        cwd=ROOT, env=environment(processes, **more), capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def noted(notes: Path, processes: int) -> dict[int, int]:
    """position -> index of all that was read; processes share no position, a repeat is the same."""
    seen: dict[int, int] = {}
    for process in range(processes):
        own: dict[int, int] = {}
        for positions, indices in lines(notes / f"{process}.jsonl"):
            for position, index in zip(positions, indices, strict=True):
                assert own.setdefault(position, index) == index
        assert not seen.keys() & own.keys()
        seen |= own
    return seen


def expected(start: int, stop: int, *overrides: configs.Override) -> dict[int, int]:
    """The same of one process, from step ``start`` to ``stop``."""
    config = configs.load(CONFIG, overrides)
    with pipeline.make_batches(config, sources.open_sources(config)[0], start) as stream:
        batches = [next(stream) for _ in range(stop - start)]
    pairs = [zip(x["position"].tolist(), x["index"].tolist(), strict=True) for x in batches]
    return {position: index for pair in pairs for position, index in pair}


def assert_same_end(a: Path, b: Path) -> None:
    """States equal to 1e-5, each leaf by its norm."""
    (_, left, steps), (_, right, _) = load(a), load(b)
    assert int(left.step) == int(right.step) == steps
    flat = tree.flatten(right)
    for name, leaf in tree.flatten(left).items():
        x, y = np.asarray(leaf, np.float64), np.asarray(flat[name], np.float64)
        if name == "recent":  # NaN where there has been no loss yet
            np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
            x, y = np.nan_to_num(x), np.nan_to_num(y)
        if name.endswith("/k/bias"):  # softmax does not see it: its gradient is rounding alone
            assert max(np.abs(x).max(), np.abs(y).max()) < 1e-6, name
        else:
            gap = np.linalg.norm(x - y)
            assert gap <= 1e-5 * np.linalg.norm(y), (name, gap)


def one_killed(words, single, tmp_path, processes: int) -> None:
    notes, workdir = tmp_path / "notes", tmp_path / "run"
    notes.mkdir()
    done = supervised(
        processes, [*words(workdir), "--proof"], NOTES=str(notes), STRIKE="SIGKILL:1:6"
    )
    assert done.returncode == 0, done.stderr
    assert "process 1 on" in done.stderr
    story = lines(workdir / "restarts.jsonl")
    others = [row for row in story[:-1] if row["process"] != 1]
    assert story[0]["process"] == 1 and story[0]["cause"] == "SIGKILL"
    assert all(row["cause"].endswith(", as process 1 had died") for row in others)
    assert len(others) == processes - 1 and all(row["restart"] == 1 for row in story[:-1])
    assert 4 <= story[0]["step"] <= 6 and story[-1]["exit"] == 0
    assert noted(notes, processes) == expected(0, 8)
    assert_same_end(workdir, single)
    rows = lines(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(9))
    before = lines(single / "metrics.jsonl")
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(
            [row[name] for row in rows[1:]], [row[name] for row in before[1:]], rtol=1e-5
        )
    files = {path.name for path in workdir.iterdir()}
    assert files == {"checkpoints", lock.FILE, *WRITTEN}
    assert json.loads((workdir / "result.json").read_text())["status"] == "done"
    starts, differing, compared = table(proof.read(workdir), {})
    assert len(starts) == 3 and compared >= 1 and not differing
    config = configs.load(CONFIG, ())
    source = sources.open_sources(config)[0]
    with pipeline.make_batches(config, source, 0) as stream:  # those of one process
        wanted = {step: int(proof.row_hashes(next(stream)).sum(dtype=np.uint64)) for step in
                  range(1, 9)}  # fmt: skip
    rows = [row for row in proof.read(workdir) if "step" in row]
    assert all(int(row["sample_hash"], 16) == wanted[row["step"]] for row in rows)


def test_two_processes_of_which_one_is_killed_end_as_one_process(words, single, tmp_path):
    one_killed(words, single, tmp_path, processes=2)


def test_the_script_tells_its_command_and_refuses_what_it_does_not_know():
    def said(*words: str) -> tuple[int, str, str]:
        environment = os.environ | {"PYTHON": "python"}
        done = subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    train = ("--", "--config", "a.py:x=1", "--workdir", "a b")
    assert said("--processes", "4", "--dry-run", *train) == (0, (
        "env JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2 "
        "python -m jepa_vl train --config a.py:x=1 --workdir a\\ b "
        "--supervise --local-processes 4\n"
    ), "")  # fmt: skip
    assert said("--help")[0] == 0
    for words in (("--devices", "0", *train), ("--devces", "2", *train), ("--dry-run",)):
        code, out, error = said(*words)
        assert (code, out, error.count("\n")) == (5, "", 1)


@pytest.mark.slow
def test_four_processes_of_which_one_is_killed_end_as_one_process(words, single, tmp_path):
    one_killed(words, single, tmp_path, processes=4)


@pytest.mark.slow
def test_hosts_with_a_supervisor_each_meet_again(words, single, tmp_path):
    notes, workdir = tmp_path / "notes", tmp_path / "run"
    notes.mkdir()
    command = words(workdir, "--supervise")
    ends = side_by_side([command] * 2, NOTES=str(notes), STRIKE="SIGKILL:1:6")
    assert [code for code, _ in ends] == [0, 0], ends
    causes = {row["process"]: row["cause"] for row in lines(workdir / "restarts.jsonl")[:2]}
    assert causes.keys() == {0, 1} and causes[1] == "SIGKILL"
    # By jax.distributed, or by a collective that failed before it.
    abort, error = (f"{end}{supervise.OF_OTHERS}" for end in ("SIGABRT", "exit code 1"))
    assert causes[0] in (abort, error)
    assert noted(notes, 2) == expected(0, 8)
    assert_same_end(workdir, single)


def test_sigterm_to_one_stops_all_after_the_same_step_and_one_process_goes_on(words, tmp_path):
    notes, workdir = tmp_path / "notes", tmp_path / "run"
    notes.mkdir()
    settings = {"train.steps": "1000", "checkpoint.every": "1000", "log.every": "1000"}
    more = [f"--config.{key}={value}" for key, value in settings.items()]
    ends = side_by_side(
        [words(workdir, *more)] * 2, NOTES=str(notes), STRIKE="SIGTERM:1:3", PAUSE="0.05"
    )
    assert [code for code, _ in ends] == [3, 3], ends
    result = json.loads((workdir / "result.json").read_text())
    (step,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert (result["status"], result["steps"]) == ("preempted", step) and 3 <= step < 1000
    overrides = [configs.Override(key, value) for key, value in settings.items()]
    overrides.append(configs.Override("mesh.fsdp", "4"))
    assert noted(notes, 2) == expected(0, step, *overrides)

    run = loop.Run(configs.load(CONFIG, overrides), workdir, loop.Lock(workdir))
    run.begin()
    assert dict(run.mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1} and run.start == step
    kept, state = load(workdir)[1], tree.flatten(run.state)
    for name, leaf in tree.flatten(kept).items():
        np.testing.assert_array_equal(np.asarray(state[name]), np.asarray(leaf), err_msg=name)
    with pipeline.make_batches(run.config, run.train_source, run.start, *run.part) as stream:
        assert next(stream)["position"].tolist() == list(range(step * 8, step * 8 + 8))
    run.keeper.close()
    run.writer.close()


def test_two_processes_go_on_from_one_with_another_batch(words, single, tmp_path):
    workdir, notes = tmp_path / "run", tmp_path / "notes"
    notes.mkdir()
    shutil.copytree(single, workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    (workdir / "result.json").unlink()
    settings = {"train.batch_size": "16", "train.steps": "4", "optim.warmup_steps": "1"}
    settings |= {"loss.ramp_steps": "1"}
    more = [f"--config.{key}={value}" for key, value in settings.items()]
    ends = side_by_side([words(workdir, *more)] * 2, NOTES=str(notes))
    assert [code for code, _ in ends] == [0, 0], ends
    assert noted(notes, 2) == {k: v for k, v in expected(0, 8).items() if k >= 32}
    assert load(workdir)[2] == 4 and (workdir / "checkpoints_batch8_step4").is_dir()
    assert [row["step"] for row in lines(workdir / "metrics.jsonl")] == [0, 1, 2, 3, 4]


def test_hosts_that_share_no_folder_or_no_configuration_are_refused(words, tmp_path):
    apart = side_by_side([words(tmp_path / "a"), words(tmp_path / "b")])
    rule = "process 1 cannot see what process 0 writes here; all need one shared folder"
    assert [code for code, _ in apart] == [5, 5], apart
    assert all(rule in said and "Traceback" not in said for _, said in apart)
    unlike = side_by_side([words(tmp_path / "c"), words(tmp_path / "c", "--config.seed=1")])
    assert [code for code, _ in unlike] == [5, 5], unlike
    assert all("differs between process 0 and process 1" in said for _, said in unlike)


def mesh_of(processes: list[list[int]]):
    """A mesh (data, 1, tensor) of devices of these processes."""
    devices = [[SimpleNamespace(process_index=number) for number in row] for row in processes]
    shape = {"data": len(processes), "fsdp": 1, "tensor": len(processes[0])}
    return SimpleNamespace(devices=np.array(devices)[:, None], shape=shape)


def test_processes_read_the_rows_that_their_devices_hold(monkeypatch):
    def part(rows, process):
        monkeypatch.setattr(distributed.jax, "process_index", lambda: process)
        return distributed.data_part(mesh_of(rows))

    assert [part([[0], [0], [1], [1]], k) for k in (0, 1)] == [(0, 2), (1, 2)]
    assert [part([[1], [0], [1], [0]], k) for k in (0, 1)] == [(1, 2), (0, 2)]
    assert [part([[0, 1], [2, 3]], k) for k in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert part([[0, 1]], 1) == (0, 1)
    with pytest.raises(ConfigError, match="share all of them or none"):
        part([[0], [0], [1]], 0)
    with pytest.raises(ConfigError, match="share all of them or none"):
        part([[0, 0], [0, 1], [1, 1]], 0)


def test_bad_samples_of_all_hosts_are_counted_once_and_listed_by_each(monkeypatch, tmp_path):
    counts = {"image": 2, "json": 1}, {"image": 1}
    logs = [faults.Log(1.0, counts=own) for own in counts]
    rows = [[log.counts[cause] for cause in faults.CAUSES] for log in logs]
    monkeypatch.setattr(distributed, "alone", lambda: False)
    monkeypatch.setattr(distributed, "gather", lambda _: np.array(rows, np.int32))
    for process, log in enumerate(logs):
        monkeypatch.setattr(distributed.jax, "process_index", lambda number=process: number)
        for _ in range(2):  # of each checkpoint anew
            distributed.share_counts(log)
        assert log.total() == {"image": 3, "json": 1} and log.metrics()["data/bad"] == 4
        assert log.counts == counts[process]
        name = distributed.list_of_bad_samples(tmp_path).name
        assert name == ("bad_samples.jsonl", "bad_samples.1.jsonl")[process]
