"""What ``--proof`` writes down, and the table that compares it."""

import json

import jax
import numpy as np
import pytest

from jepa_vl.cli.main import main
from jepa_vl.cli.proof_table import table
from jepa_vl.data import pipeline, sources
from jepa_vl.training import loop, proof
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation", "one_device")


@pytest.fixture
def run(compilations, no_evaluation):
    def start(workdir, stop_after=99, **values):
        values = {"log.proof_every": 2, "checkpoint.every": 2, "log.diagnostics_every": 99} | values
        config = tiny(objective="ijepa", **{"train.compile_cache": compilations} | values)
        with loop.Stop() as stop, loop.Lock(workdir) as lock:
            own = loop.Run(config, workdir, lock)
            own.begin()
            stop.reached = lambda step: step == stop_after
            own.finish(own.train(stop, proof=True))
        return proof.read(workdir)

    return start


def test_each_step_has_a_row_and_a_restart_appends(run, tmp_path, capsys):
    whole = run(tmp_path / "whole")
    assert whole[0] == {"start": 0, "skipped": 0, "processes": 1, "devices": jax.device_count()}
    assert [row["step"] for row in whole[1:]] == [1, 2, 3, 4, 5, 6]
    hashed = [row["step"] for row in whole[1:] if {"param_hash", "target_hash"} <= row.keys()]
    assert hashed == [2, 4, 6]
    assert len({row["sample_hash"] for row in whole[1:]}) == 6

    broken = tmp_path / "broken"
    run(broken, stop_after=3)
    with (broken / proof.FILE).open("a") as file:
        file.write('{"step": 4, "samp')  # a kill while writing
    rows = run(broken)
    assert [row.get("start", row.get("step")) for row in rows] == [0, 1, 2, 3, 3, 4, 5, 6]
    words = ["report", "--proof", "--workdir", str(broken)]
    assert main([*words, "--reference", str(tmp_path / "whole")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].split()[3:] == ["1-3", "3", "3", "equal", "1", "equal", "1", "equal"]
    assert said[2].split()[3:] == ["4-6", "3", "3", "equal", "2", "equal", "2", "equal"]
    assert said[3] == "12 hashes compared, 0 differ"
    assert main(words) == 5 and "the run was never restarted" in capsys.readouterr().err

    other = run(tmp_path / "other", seed=1)
    assert main([*words, "--reference", str(tmp_path / "other")]) == 1
    said = capsys.readouterr().out
    assert "3 of 3 differ" in said and f"-> {rows[1]['sample_hash']}" in said
    assert other[1]["sample_hash"] in said


def test_the_proof_needs_its_file_and_reference_needs_the_proof(tmp_path, capsys):
    assert main(["report", "--proof", "--workdir", str(tmp_path)]) == 5
    assert "holds no proof.jsonl; train with --proof" in capsys.readouterr().err
    assert main(["report", "--workdir", str(tmp_path), "--reference", "x"]) == 5
    assert "--reference = 'x': add --proof" in capsys.readouterr().err


def test_hashes_of_rows_add_up_over_hosts_and_change_with_everything_in_them():
    config = tiny(**{"data.train_size": 64})
    source = sources.open_sources(config)[0]

    def first(host=0, hosts=1):
        with pipeline.make_batches(config, source, 3, host, hosts) as stream:
            return next(stream)

    whole = first()
    parts = sum(int(proof.row_hashes(first(host, 2)).sum(dtype=np.uint64)) for host in range(2))
    total = int(proof.row_hashes(whole).sum(dtype=np.uint64))
    assert parts % 2**64 == total and len(set(proof.row_hashes(whole).tolist())) == 8
    for name in whole:
        changed = {key: value.copy() for key, value in whole.items()}
        changed[name].reshape(8, -1).view(np.uint8)[5, 0] ^= 1
        other = proof.row_hashes(changed) != proof.row_hashes(whole)
        assert other.tolist() == [row == 5 for row in range(8)], name
    assert (
        proof.row_hashes({"a": whole["image"]}) != proof.row_hashes({"b": whole["image"]})
    ).all()


def test_parameters_are_compared_on_the_same_devices_only():
    def rows(*starts):
        for start, devices in starts:
            yield {"start": start, "skipped": 0, "processes": 1, "devices": devices}
            for step in range(start + 1, 5):
                yield {"step": step, "sample_hash": "s", "param_hash": f"{devices}"}

    assert table([*rows((0, 1), (2, 1))], {})[2] == 4
    lines, differing, compared = table([*rows((0, 1), (2, 2), (3, 1), (3, 1))], {})
    assert not differing and compared == 2 + 1 + (1 + 1)
    assert [line.split()[5:] for line in lines[2:]] == [
        ["2", "equal", "-", "-"], ["1", "equal", "-", "-"], ["1", "equal", "1", "equal", "-"],
    ]  # fmt: skip


def test_after_a_rewind_other_images_are_no_difference():
    rows = [
        {"start": 0, "skipped": 0, "processes": 1, "devices": 1},
        *({"step": step, "sample_hash": str(step)} for step in (1, 2, 3)),
        {"start": 1, "skipped": 2, "processes": 2, "devices": 2},
        *({"step": step, "sample_hash": str(step + 2)} for step in (2, 3)),
        {"start": 1, "skipped": 2, "processes": 1, "devices": 1},
        {"step": 2, "sample_hash": "4"}, {"step": 3, "sample_hash": "6"},
    ]  # fmt: skip
    lines, differing, compared = table(json.loads(json.dumps(rows)), {})
    assert compared == 2 and differing == ["step 3: sample_hash 5 -> 6"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["0", "1", "1", "1-3"], ["1", "2", "2", "2-3"], ["1", "1", "1", "2-3"],
    ]  # fmt: skip
    assert lines[3].split()[4:9] == ["2", "1", "of", "2", "differ"]
