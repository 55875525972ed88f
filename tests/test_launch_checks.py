"""Promises of launch/preflight.py and launch/soak.py."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from jepa_vl import objectives
from jepa_vl.schema import MeshConfig
from jepa_vl.sharding import make_mesh
from jepa_vl.training import state as train_state
from jepa_vl.training.checkpoint import Checkpoints, provenance
from tests import tars
from tests.launching import LAUNCH, ROOT, environment, load
from tests.tiny import tiny

preflight, soak = load("preflight"), load("soak")


# launch/preflight.py


def flight(tmp_path, capsys, *words):
    config = "tests/configs_tiny.py"
    page = tmp_path / "page.json"
    words = ["--config", config, "--workdir", str(tmp_path / "w"), "--json", str(page), *words]
    code = preflight.main(words)
    said = capsys.readouterr()
    checks = json.loads(page.read_text())["checks"] if page.exists() else []
    return code, said, {check["name"]: check for check in checks}


def test_preflight_passes_where_all_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, said, checks = flight(tmp_path, capsys, "--devices", "4", "--hosts", "2")
    assert code == 0, said
    assert [*checks] == ["mesh", "data", "workdir", "clock", "disk", "memory"]
    assert checks["mesh"]["details"]["mesh"] == [4, 1, 1]
    assert {check["status"] for check in checks.values()} <= {"ok", "warning"}
    assert all(line.split()[0] in checks for line in said.out.strip().splitlines())


def test_preflight_fails_where_batch_mesh_or_workdir_do_not_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, _, checks = flight(tmp_path, capsys, "--devices", "16")
    assert code == 1 and "must divide by 16" in checks["mesh"]["text"]
    code, _, checks = flight(tmp_path, capsys, "--devices", "4", "--hosts", "3")
    assert code == 1 and "3 hosts" in checks["mesh"]["text"]
    code, _, checks = flight(tmp_path, capsys, "--devices", "4", "--config.mesh.tensor=3")
    assert code == 1 and checks["mesh"]["status"] == "FAIL"
    (tmp_path / "file").touch()
    code, _, checks = flight(tmp_path, capsys, "--devices", "4", "--bucket", f"{tmp_path}/file")
    assert code == 1 and checks["bucket"]["status"] == "FAIL"
    assert preflight.check_workdir("gs://bucket/run")[0].status == "FAIL"


def test_preflight_tells_a_host_whose_clock_is_off(tmp_path):
    _, mine = preflight.check_storage("workdir", str(tmp_path))
    assert preflight.check_clock(mine).status == "ok"
    for name, seconds in (("near", 0.5), ("fast", 40.0)):
        note = {"host": name, "time": time.time() + seconds}
        (mine.parent / f"{name}.json").write_text(json.dumps(note))
        found = preflight.check_clock(mine)
        assert found.status == ("warning" if name == "fast" else "ok")
    assert "fast is ahead" in found.text and found.details["skew"] == pytest.approx(40, abs=2)
    os.utime(mine.parent / "fast.json", (1, 1))  # long ago: says nothing about now
    assert preflight.check_clock(mine).status == "ok"


def test_preflight_counts_shards_and_hosts(tmp_path):
    tars.shards(tmp_path, 1, 24)
    config = tiny(**{"data.kind": "tar", "data.path": str(tmp_path)})
    plan = preflight.Plan(1, 1, 2, "cpu")
    found = preflight.check_data(config, plan)
    assert found.status == "warning" and "in 1 shards for 2 hosts" in found.text
    assert preflight.check_data(config, preflight.Plan(1, 1, 1, "cpu")).status == "ok"


COMPILED = {"fits": True, "hbm_per_device": 16 * 2**30, "bytes_per_device": {"total": 12 * 2**30},
            "bound": {"chip_hours": 1234.5}}  # fmt: skip


@pytest.mark.parametrize(("code", "page", "status", "text"), [
    (0, COMPILED, "ok", "12.00 of 16.00 GiB a device; at the very least 1,234 chip-hours"),
    (1, COMPILED | {"bound": None}, "FAIL", "12.00 of 16.00 GiB a device"),
    (5, None, "FAIL", "jepa-vl compile: the error"),
])  # fmt: skip
def test_preflight_reads_what_the_compiler_found(monkeypatch, code, page, status, text):
    def compile(command, **_):
        assert command[1:4] == ["-m", "jepa_vl", "compile"]
        assert command[command.index("--topology") + 1] == "2xv5e-16"
        if page is not None:
            Path(command[-1]).write_text(json.dumps(page))
        return subprocess.CompletedProcess(command, code, "a table\n", "the error\n")

    monkeypatch.setattr(preflight.subprocess, "run", compile)
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: name)
    words = ["--config", "c", "--workdir", "w", "--topology", "v5litepod-16", "--slices", "2"]
    found = preflight.check_fits(preflight._parse(words))
    assert (found.status, found.text, found.details) == (status, text, page or {})


def test_preflight_warns_where_nothing_can_be_compiled(monkeypatch):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    for topology in ("v4-8", "v5e-8"):
        words = ["--config", "c", "--workdir", "w", "--topology", topology]
        assert preflight.check_fits(preflight._parse(words)).status == "warning"


@pytest.mark.parametrize(("topology", "slices", "expected"), [
    ("v5e-8", 1, (8, 1)), ("v5e-16", 2, (32, 8)), ("v5p-8", 1, (4, 1)), ("v5p-128", 1, (64, 16)),
    ("h100-8", 4, (32, 4)),
])  # fmt: skip
def test_a_plan_has_the_devices_and_hosts_of_its_slices(topology, slices, expected):
    args = ["--config", "c", "--workdir", "w", "--topology", topology, "--slices", str(slices)]
    plan = preflight.plan(preflight._parse(args))
    assert (plan.devices, plan.hosts) == expected
    assert preflight.hardware.of_device(plan.kind).name == topology.split("-")[0]


# launch/soak.py


SUPERVISOR = """for _ in {1..99}; do
mkdir -p killed/checkpoints/$(($(ls killed/checkpoints | wc -l) + 1))
sleep 0.5 && exit 0; echo x >> deaths
done"""


def soaked(tmp_path, monkeypatch, *more):
    """Exit code, kills, deaths and the command lines of a soak of a stand-in for the trainer."""
    lines = []

    def start(words, log):
        lines.append(words)
        return subprocess.Popen(["bash", "-c", SUPERVISOR], cwd=tmp_path, stderr=log.open("w"))

    monkeypatch.setattr(soak, "start", start)
    words = ["--config", "c", "--workdir", str(tmp_path), "--shortest", "0.1", "--longest", "0.3"]
    args, _ = soak._parse([*words, *more])
    code, kills = soak.soak(args, [])
    return code, kills, len((tmp_path / "deaths").read_text().split()), lines


def test_a_soak_kills_what_the_supervisor_starts_and_lets_it_end(tmp_path, monkeypatch):
    code, kills, deaths, lines = soaked(tmp_path, monkeypatch, "--kills", "5")
    assert code == 0 and deaths == len(kills) == 5
    assert [line[-4:] for line in lines] == [["--supervise", "--proof", "--max-restarts", "1000"]]
    code, kills, deaths, _ = soaked(tmp_path, monkeypatch, "--minutes", "0.015")
    assert code == 0 and deaths - 5 == len(kills) > 0


def test_a_soak_changes_the_number_of_processes_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "PREEMPTED", -15)  # the stand-in does not save
    code, kills, _, lines = soaked(tmp_path, monkeypatch, "--kills", "6", "--processes", "1,2,1")
    assert code == 0 and len(kills) == 6
    assert [line[-2:] for line in lines] == [
        ["--max-restarts", "1000"], ["--local-processes", "2"], ["--max-restarts", "1000"],
    ]  # fmt: skip


def test_a_soak_compares_what_each_step_saw(tmp_path):
    def write(name, hashes):
        (tmp_path / name).mkdir()
        rows = [{"start": 0}, *({"step": k, "sample_hash": h} for k, h in hashes)]
        (tmp_path / name / "proof.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    write("a", [(1, "x"), (2, "y")])
    write("same", [(1, "x"), (1, "x"), (2, "y")])
    write("other", [(1, "x"), (1, "z"), (2, "y")])
    write("short", [(1, "x")])
    found = {name: soak.same_samples(tmp_path / "a", tmp_path / name) for name in
             ("same", "other", "short")}  # fmt: skip
    assert found == {"same": (3, []), "other": (3, [1]), "short": (1, [2])}


def test_a_soak_tells_one_bit_of_difference(tmp_path, quick_compilation):
    config = tiny()
    objective, mesh = objectives.build(config), make_mesh(MeshConfig(), jax.devices()[:1])
    state = train_state.create(config, objective, train_state.batch_spec(config), mesh)
    norm = state.params["encoder"]["norm"]
    off = {**norm, "bias": norm["bias"].at[0].add(1e-30)}
    params = {**state.params, "encoder": {**state.params["encoder"], "norm": off}}
    other = dataclasses.replace(state, params=params)
    for name, held, step in (("a", state, 2), ("b", state, 2), ("c", other, 2), ("d", state, 3)):
        saved = Checkpoints(tmp_path / name)
        saved.save(held, step, {}, provenance(config))
        saved.close()
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert soak.differences(a, b) == []
    assert soak.differences(a, c) == ["params/encoder/norm/bias"]
    assert soak.differences(a, d) == ["step 2 and 3"]


@pytest.mark.slow
def test_a_run_that_is_killed_for_a_while_ends_with_the_bits_of_an_unbroken_one(tmp_path):
    words = ["--config", "tests/configs_tiny.py", "--workdir", str(tmp_path), "--kills", "3"]
    words += ["--shortest", "0.1", "--longest", "2"]  # a start takes longer
    words += ["--config.train.steps=60", "--config.checkpoint.every=5", "--config.data.workers=1"]
    done = subprocess.run(
        [sys.executable, LAUNCH / "soak.py", *words], cwd=ROOT, text=True, capture_output=True,
        env=environment(tmp_path, JAX_PLATFORMS="cpu", XLA_FLAGS=""), timeout=900,
    )  # fmt: skip
    assert done.returncode == 0 and "the same bits as without" in done.stdout, done.stdout
    # Of three kills the first and the last waited for a checkpoint of their own.
    saved = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("kill ")]
    assert len(saved) == 3 and 0 < saved[0] <= saved[1] < saved[2] < 60
