"""``jepa-vl runs`` and ``--version``: text files alone, whatever state a run is in."""

import json
import os
import re
import subprocess
import time

import pytest

from jepa_vl import versions
from jepa_vl.cli.main import main
from jepa_vl.config import config_hash, to_dict
from jepa_vl.training import run_files
from tests.test_cli import python, refused
from tests.tiny import tiny


def write_run(folder, steps=6, result=None, rows=None, **values):
    """A workdir as training leaves it, without its checkpoints."""
    config = tiny(**values)
    folder.mkdir(parents=True)
    meta = {"config": to_dict(config), "config_hash": config_hash(config), "git": "abc+"}
    (folder / "config.json").write_text(json.dumps({**meta, "versions": {}, "began": 1.7e9}))
    if rows is None:
        rows = [{"step": 0, "knn/target": 0.25, "knn/pixels": 0.1, "rankme/target": 4.0}]
        rows += [{"step": step, "loss": 1 / step, "goodput": 0.5} for step in range(1, steps)]
        rows += [{"step": steps, "loss": None, "knn/target": 0.75, "rankme/target": 7.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if result is not None:
        (folder / "result.json").write_text(json.dumps({"steps": steps, **result}))
    return folder


def table(capsys) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]


def test_the_table_of_runs_tells_quality_beside_its_floors_and_the_alarm(tmp_path, capsys):
    share = {"status": "done", "goodput": {"share": 0.625}}
    write_run(tmp_path / "b", result=share, objective="ijepa")
    killed = write_run(tmp_path / "deep/a", steps=4)
    alarms = [{"event": "alarm", "rule": "rank", "step": 1, "message": "m"}, {"event": "rewind"}]
    alarms += [{"event": "alarm", "rule": "captions", "step": 3, "message": "m"}]
    lines = "".join(json.dumps(row) + "\n" for row in alarms)
    (killed / "events.jsonl").write_text(lines + '{"event": "ala')
    export = tmp_path / "export"  # has a config.json too
    export.mkdir()
    (export / "config.json").write_text('{"model_type": "ijepa"}')
    long_ago = time.time() - 7300
    for name in ("config.json", "metrics.jsonl", "events.jsonl"):
        os.utime(killed / name, (long_ago, long_ago))
    out = tmp_path / "rows.json"
    assert main(["runs", "ls", "--root", str(tmp_path), "--json", str(out)]) == 0
    head, *rows, written = table(capsys)
    assert written == [str(out)] and len(rows) == 2
    b, a = (dict(zip(head, row, strict=False)) for row in rows)
    assert (b["run"], b["objective"], b["step"], b["status"]) == ("b", "ijepa", "6/6", "done")
    assert (b["kNN"], b["untrained"], b["pixels"]) == ("0.750", "0.250", "0.100")
    assert (b["RankMe"], b["goodput"]) == ("7.0", "62%") and "alarm" not in b
    assert (a["run"], a["step"], a["status"]) == ("deep/a", "4/6", "unfinished")
    assert (a["age"], a["alarm"]) == ("2 h", "captions (step 3)") and a["goodput"] == "50%"
    kept = json.loads(out.read_text())
    assert [row["knn"] for row in kept] == [0.75, 0.75] and kept[0]["run"] == str(tmp_path / "b")


def test_a_run_that_has_gone_on_is_not_what_its_old_result_says(tmp_path):
    folder = write_run(tmp_path / "run", steps=6, result={"status": "preempted", "steps": 3})
    told = run_files.summary("RUN", folder)
    assert (told["step"], told["status"]) == (6, "unfinished")
    (folder / "result.json").write_text('{"status": "done", "steps": 7}')
    told = run_files.summary("RUN", folder)
    assert (told["step"], told["status"]) == (7, "done")


def test_torn_empty_and_absent_files_leave_gaps_and_no_error(tmp_path, capsys):
    torn = write_run(tmp_path / "torn")
    with (torn / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "knn/target": 0.9, "los')
    assert run_files.summary("RUN", torn)["knn"] == 0.75
    write_run(tmp_path / "empty", rows=[])
    (write_run(tmp_path / "absent") / "metrics.jsonl").unlink()
    (torn / "result.json").write_text("{")
    assert main(["runs", "ls", "--root", str(tmp_path)]) == 0
    assert [row[3:6] for row in table(capsys)[1:]] == [
        ["0/6", "unfinished", "-"], ["0/6", "unfinished", "-"], ["6/6", "unfinished", "0.750"],
    ]  # fmt: skip


def test_of_long_metrics_a_few_lines_are_read(tmp_path, monkeypatch):
    rows = [{"step": 0, "knn/target": 0.25}, *({"step": i, "loss": 1.0} for i in range(1, 9000))]
    folder = write_run(tmp_path / "run", rows=rows)
    count, loads = [], json.loads
    monkeypatch.setattr(run_files.json, "loads", lambda text: count.append(1) or loads(text))
    told = run_files.summary("RUN", folder)
    assert (told["step"], told["knn"], told["loss"]) == (8999, 0.25, 1.0)
    assert len(count) < 30


def test_show_tells_changes_of_the_configuration_and_events(tmp_path, capsys):
    folder = write_run(tmp_path / "run", **{"optim.lr": 0.5})
    (folder / "events.jsonl").write_text('{"event": "keep", "step": 3, "message": "kept"}\n')
    out = tmp_path / "run.json"
    assert main(["runs", "show", str(folder), "--json", str(out)]) == 0
    rows = table(capsys)
    assert ["optim.lr", "0.5"] in rows and ["knn", "0.75"] in rows
    assert ["step 3: kept"] in rows and ["seed", "0"] in rows
    kept = json.loads(out.read_text())
    assert kept["changed"]["optim.lr"] == 0.5 and "optim.b1" not in kept["changed"]
    assert kept["events"][0]["event"] == "keep" and kept["status"] == "unfinished"


def test_compare_tells_the_keys_that_differ_and_the_numbers(tmp_path, capsys):
    one = write_run(tmp_path / "one", seed=1)
    two = write_run(tmp_path / "two", steps=4, **{"optim.lr": 0.5})
    meta = json.loads((two / "config.json").read_text())
    del meta["config"]["seed"], meta["config"]["log"]["proof_every"]  # of an older version
    (two / "config.json").write_text(json.dumps(meta))
    out = tmp_path / "both.json"
    assert main(["runs", "compare", str(one), "--json", str(out), str(two)]) == 0
    rows = table(capsys)
    assert ["key", "one", "two"] in rows
    assert ["optim.lr", "0.001", "0.5"] in rows and ["seed", "1", "0"] in rows
    assert ["step", "6", "4"] in rows and not any(row[0] == "optim.b1" for row in rows)
    told = json.loads(out.read_text())["configuration"]
    assert told == {"optim.lr": [0.001, 0.5], "seed": [1, 0]}


def test_the_page_of_several_runs_has_their_numbers_differences_and_curves(tmp_path, capsys):
    one = write_run(tmp_path / "one", result={"status": "done"}, seed=1)
    two = write_run(tmp_path / "two", steps=4, **{"optim.lr": 0.5})
    out = tmp_path / "both.html"
    assert main(["report", str(one), "--out", str(out), str(two)]) == 0
    assert capsys.readouterr().out.split() == [str(out)]
    html = out.read_text()
    heads = ["Runs", "Numbers", "Proof", "Configuration", "Curves", "Provenance"]
    assert re.findall(r"<h2>(.+?)</h2>", html) == heads
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    rows = [cells[i : i + 3] for i in range(0, len(cells), 3)]
    assert ["optim.lr", "0.001", "0.5"] in rows and ["seed", "1", "0"] in rows
    assert ["the run has ended", "✓ holds", "? cannot be told"] in rows
    assert ["status", "done", "unfinished"] in rows and ["steps skipped", "", ""] not in rows
    assert ["kNN accuracy, the same network before its first step", "0.25", "0.25"] in rows
    widget, told = map(json.loads, re.findall(r'application/json"[^>]*>(.+?)</script>', html))
    assert told["configuration"] == {"optim.lr": [0.001, 0.5], "seed": [1, 0]}
    assert all([line["name"] for line in p["lines"]] == ["one", "two"] for p in widget["panels"])
    assert "loss" in {panel["title"] for panel in widget["panels"]}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["{}", "{}/"], "stands there twice"),
        (["{}", "{}/one"], "holds no run"),
        (["{}/one", "--workdir", "{}"], "--workdir = '{}': give it, or RUN, not both"),
        (["{}/one", "{}", "--proof"], "--proof = '': of one run, not of several"),
        (["{}/none"], "no such folder"),
    ],
)
def test_what_cannot_be_set_side_by_side_is_refused(words, part, tmp_path, capsys):
    write_run(tmp_path / "one")
    line = refused(capsys, "report", *(word.format(tmp_path) for word in words))
    assert part.format(tmp_path) in line


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["ls"], "--root = 'runs': no such folder"),
        (["ls", "--root", "{}"], "holds no run"),
        (["show"], "give one workdir"),
        (["show", "{}"], "holds no run"),
        (["show", "{}/none"], "no such folder"),
        (["show", "a", "b"], "give one workdir"),
        (["compare", "{}"], "give two workdirs, or more"),
        (["compare", "{}", "{}/"], "stands there twice"),
        (["show", "--jsn", "x"], "did you mean --json?"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, monkeypatch, capsys, words, part):
    monkeypatch.chdir(tmp_path)
    assert part in refused(capsys, "runs", *(word.format(tmp_path) for word in words))


def test_neither_runs_nor_version_imports_jax(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    code = f"""
import sys
from jepa_vl.cli.main import main
assert main(["runs", "ls", "--root", {str(tmp_path)!r}]) == 0
assert main(["runs", "compare", {str(tmp_path / "a")!r}, {str(tmp_path / "b")!r}]) == 0
assert main(["--version"]) == 0
heavy = {{"jax", "flax", "grain", "matplotlib", "tensorflow", "torch"}} & set(sys.modules)
assert not heavy, heavy
"""
    lines = python(code).splitlines()
    for name in ("python", "commit", *versions.LIBRARIES):
        assert any(line.split()[:1] == [name] for line in lines), name


def test_the_commit_is_that_of_the_checkout_and_of_no_other(tmp_path, monkeypatch):
    def git(*words):
        who = ("-c", "user.name=n", "-c", "user.email=n@e")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    git("init")
    monkeypatch.setattr(versions, "CHECKOUT", tmp_path / "site-packages")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages/a").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    assert versions.git_commit() == ""  # installed within a checkout of something else
    assert "not run from a checkout" in versions.told()
    monkeypatch.setattr(versions, "CHECKOUT", tmp_path)
    clean = versions.git_commit()
    assert re.fullmatch("[0-9a-f]{12}", clean)
    (tmp_path / "site-packages/a").write_text("2")
    assert versions.git_commit() == clean + "+"
