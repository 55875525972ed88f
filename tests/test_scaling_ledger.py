"""The ledger of a study loses nothing and holds nothing twice, whatever is killed."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jepa_vl.config import ConfigError
from jepa_vl.scaling import budgets, ledger, table

POINTS = 40
# Appends all points in an order of its own, and tells of each row that append has returned for.
WRITER = """
import os, random, sys, time
from pathlib import Path
from jepa_vl.scaling.ledger import Ledger
path, told, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
told = os.open(told, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
order = list(range(int(sys.argv[4])))
random.Random(seed).shuffle(order)
for point in order:
    row = {"study": "s", "arm": "a", "size": "1x1", "budget": 1.0, "seed": point,
           "config_hash": "h", "status": "done", "by": seed, "long": "x" * 20_000}
    if Ledger(path).append(row):
        os.write(told, f"{point} {seed}\\n".encode())
    time.sleep(random.random() / 50)
sys.stdin.read()  # stays, to be killed or let go
"""


def row(**values):
    named = {"study": "s", "arm": "a", "size": "8x1", "budget": 1e9, "seed": 0, "config_hash": "h"}
    return named | {"status": "done"} | values


def test_eight_writers_and_kills_at_random_tear_lose_and_double_nothing(tmp_path):
    path, told = tmp_path / "ledger.jsonl", tmp_path / "told"
    rng, seeds = random.Random(0), iter(range(1000))

    def start():
        words = [sys.executable, "-c", WRITER, str(path), str(told), str(next(seeds)), str(POINTS)]
        return subprocess.Popen(words, stdin=subprocess.PIPE)

    writers = [start() for _ in range(8)]
    while not (path.exists() and path.stat().st_size):
        assert all(writer.poll() is None for writer in writers)
        time.sleep(0.01)
    for _ in range(16):
        time.sleep(rng.uniform(0.01, 0.1))
        victim = rng.randrange(8)
        writers[victim].kill()
        assert writers[victim].wait() == -signal.SIGKILL
        writers[victim] = start()
    # What a power cut may leave: half a row, which no writer was told of.
    with path.open("ab") as file:
        file.write(b'{"study": "s", "arm"')
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0] * 8

    lines = path.read_bytes().split(b"\n")
    rows = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == b"" and all(len(row["long"]) == 20_000 for row in rows)
    assert sorted(row["seed"] for row in rows) == list(range(POINTS))
    claimed = [tuple(map(int, line.split())) for line in told.read_text().splitlines()]
    assert set(claimed) <= {(row["seed"], row["by"]) for row in rows}


@pytest.mark.parametrize("tail", [b'{"study"', b'{"study": "s"}', b"\x00\x00"])
def test_a_torn_last_line_is_left_out_and_cut_off_by_the_next_writer(tmp_path, tail):
    book = ledger.Ledger(tmp_path / "deep" / "ledger.jsonl")
    assert book.rows() == [] and book.append(row())
    whole = book.path.read_bytes()
    with book.path.open("ab") as file:
        file.write(tail)
    assert len(book.rows()) == 1
    assert not book.append(row()) and book.path.read_bytes() == whole
    assert book.append(row(seed=1)) and [r["seed"] for r in book.rows()] == [0, 1]


def test_a_done_point_stays_done_and_a_failed_one_may_be_done_later(tmp_path):
    book = ledger.Ledger(tmp_path / "ledger.jsonl")
    assert book.append(row(status="failed", reason="one"))
    assert book.append(row(status="failed", reason="two"))
    (counted,) = ledger.latest(book.rows()).values()
    assert counted["reason"] == "two"
    assert book.append(row()) and not book.append(row(status="failed"))
    assert [r["status"] for r in book.rows()] == ["failed", "failed", "done"]
    assert table.finished(book.rows()) == [row()]


def test_a_full_disk_leaves_no_half_row(tmp_path, monkeypatch):
    book, write = ledger.Ledger(tmp_path / "ledger.jsonl"), os.write
    book.append(row())
    whole = book.path.read_bytes()
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:9]))
    with pytest.raises(OSError, match="disk is full"):
        book.append(row(seed=1))
    assert book.path.read_bytes() == whole


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"study": "s"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(row()) + "\n" + line + "\n")
    with pytest.raises(ConfigError, match=f"line 2 of {path}"):
        ledger.read(path)
    with pytest.raises(ConfigError, match=r"--ledger = .*absent"):
        ledger.read(tmp_path / "absent")


def study(noise=(0.01, 0.01, 0.01)):
    """3 sizes x 3 budgets x 2 seeds around a law; FLOPs are not 6 N D."""
    rows = []
    for budget, spread in zip((1e12, 1e13, 1e14), noise, strict=True):
        for size in (1e4, 3e4, 1e5):
            for seed in (0, 1):
                images = budget / (7 * size**0.9)
                error = 0.2 + 3 * size**-0.3 + 9 * images**-0.3 + (seed - 0.5) * spread
                knn = {"task": "knn", "features": "encoder", "metrics": {"k20": 1 - error}}
                floor = {"task": "knn", "features": "pixels", "metrics": {"k20": 0.3}}
                rows.append(row(
                    size=f"{size:g}", budget=budget, seed=seed, images=images,
                    parameters={"encoder": size}, flops={"run": budget}, evals=[floor, knn],
                    train={"loss": 0.5},
                ))  # fmt: skip
    return rows


def test_points_are_of_finished_rows_with_flops_as_compute():
    rows = study()
    points = table.points([*rows, row(seed=9, status="failed")], "knn_error")
    assert len(points.loss) == 18 and sorted(set(points.compute)) == [1e12, 1e13, 1e14]
    assert points.loss[0] == pytest.approx(0.2 + 3 * 1e4**-0.3 + 9 * points.data[0] ** -0.3 - 0.005)
    # By N D the sizes of a budget differ by 10 ** 0.1: FLOPs hold them together.
    assert [len(b.rows) for b in budgets.budgets(budgets.compute_of(points))] == [6, 6, 6]


def test_weights_come_from_the_noise_between_seeds_drawn_to_the_common_one():
    points = table.points(study((0.04, 0.01, 0.01)), "knn_error")
    # Two seeds at +-s/2: variance s ** 2 / 2; three sizes a budget give three degrees of freedom.
    noisy, calm = 0.04**2 / 2, 0.01**2 / 2
    common = (noisy + 2 * calm) / 3
    wanted = [(3 * v + table.PRIOR * common) / (3 + table.PRIOR) for v in (noisy, calm, calm)]
    np.testing.assert_allclose(points.weight, 1 / np.repeat(wanted, 6), rtol=1e-9)
    single = table.points([r for r in study() if r["seed"] == 0], "knn_error")
    assert (single.weight == 1).all()


def test_the_raw_training_loss_is_refused_unless_forced():
    with pytest.raises(ConfigError, match="--y = 'train_loss': the training loss of a JEPA"):
        table.points(study(), "train_loss")
    assert (table.points(study(), "train_loss", forced=True).loss == 0.5).all()
    with pytest.raises(ConfigError, match="did you mean 'knn_error'"):
        table.points(study(), "knn_eror")
    with pytest.raises(ConfigError, match=r"--y = 'probe_error': measured .* has knn"):
        table.points(study(), "probe_error")


def test_the_loss_against_a_frozen_reference_is_taken_as_it_is():
    result = {"task": "reference", "features": "encoder", "metrics": {"loss": 0.7, "r2": 0.2}}
    rows = [r | {"evals": [*r["evals"], result]} for r in study()]
    assert (table.points(rows, "reference_loss").loss == 0.7).all()


def test_a_law_is_of_one_arm():
    rows = study() + [r | {"arm": "b"} for r in study()]
    with pytest.raises(ConfigError, match="--arm = '': one of a, b"):
        table.points(rows, "knn_error")
    assert len(table.points(rows, "knn_error", arm="b").loss) == 18
    with pytest.raises(ConfigError, match="--arm = 'c'"):
        table.points(rows, "knn_error", arm="c")


def test_the_csv_has_a_line_a_point_done_or_not():
    rows = [*study(), row(seed=9, status="failed"), row(seed=9, status="failed", reason="again")]
    lines = list(csv.DictReader(io.StringIO(table.to_csv(rows))))
    assert len(lines) == 19 and lines[-1]["reason"] == "again" and not lines[-1]["knn_error"]
    first = lines[0]
    assert (first["size"], first["flops.run"], first["knn.k20.pixels"]) == (
        "10000",
        "1000000000000.0",
        "0.3",
    )
    assert float(first["knn_error"]) == pytest.approx(1 - float(first["knn.k20"]))
