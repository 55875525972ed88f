"""Whole commands on the tiny configuration: previews, a run from train to report."""

import json
import re
from pathlib import Path

import pytest

from jepa_vl.cli import configs
from jepa_vl.cli.main import main
from jepa_vl.config import to_dict
from jepa_vl.data import sources
from tests.test_cli import SPREAD, TINY, TRAIN, refused
from tests.tiny import tiny

# These runs are all compilation; no number of theirs is compared.
pytestmark = pytest.mark.usefixtures("quick_module")


def preview(what: str, out: Path, *words: str) -> None:
    assert main(["preview", "--config", TINY, "--what", what, "--out", str(out), *words]) == 0


def test_preview_config_is_json_that_resolves_to_itself(capsys, tmp_path):
    preview("config", tmp_path, "--config.train.steps=9")
    shown = json.loads(capsys.readouterr().out)
    again = configs.load(TINY, [configs.Override("train.steps", "9")])
    assert shown["config"]["train"]["steps"] == 9
    assert shown["config"] == json.loads(json.dumps(to_dict(again)))
    assert re.fullmatch(r"[0-9a-f]{12}", shown["config_hash"])


def test_preview_params_counts_every_parameter(capsys, tmp_path):
    preview("params", tmp_path)
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    leaves = [int(row[-1].replace(",", "")) for row in rows if "(" in " ".join(row)]
    table = {row[0]: row[1] for row in rows if len(row) > 1}
    assert f"{sum(leaves):,}" == table["total"]
    assert {"encoder", "predictor", "text"} <= table.keys()


def test_preview_shardings_names_every_leaf_of_the_state(capsys, tmp_path):
    preview("shardings", tmp_path, SPREAD, "--config.mesh.fsdp=4")
    out = capsys.readouterr().out
    assert re.search(
        r"^params/encoder/block_0/attn/q/kernel +\(32, 32\) +P\('fsdp', None\)", out, re.M
    )
    assert re.search(r"^target/patch_kernel ", out, re.M) and "opt_state/" in out
    assert "mesh {'data': 2, 'fsdp': 4, 'tensor': 1}" in out


def test_preview_flops_adds_up(capsys, tmp_path):
    preview("flops", tmp_path)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = {row[0]: list(map(float, row[1:4])) for row in rows if row and row[-1].endswith("%")}
    total = table.pop("total")
    assert table.keys() == {"target", "encoder", "predictor", "conditioner"}
    for column in range(3):
        assert sum(row[column] for row in table.values()) == pytest.approx(total[column], abs=5e-4)
    assert total[0] + total[1] == pytest.approx(total[2], abs=2e-4)
    assert table["target"][1] == 0 < table["encoder"][1]


@pytest.mark.parametrize("mode", ["production", "reference"])
def test_preview_masks_writes_its_pictures(capsys, tmp_path, mode):
    words = [f"--config.masks.mode={mode}", "--config.masks.min_keep=2"]
    preview("masks", tmp_path, *words, "--config.encoder.patch_size=4")
    out = capsys.readouterr().out
    assert f"mode             {mode}" in out and "K = " in out
    for name in ("masks.png", "coverage.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert str(tmp_path / name) in out


@pytest.mark.parametrize("objective", ["tcjepa", "ijepa"])
def test_preview_batch_shows_arrays_and_the_captions_drawn(capsys, tmp_path, objective):
    preview("batch", tmp_path, f"--config.objective={objective}")
    out = capsys.readouterr().out
    assert "(8, 32, 32, 3)  uint8" in out
    assert (tmp_path / "batch.png").exists()
    source = sources.open_sources(tiny())[0]
    index = int(re.search(r"^image (\d+)", out, re.M).group(1))
    said = [text for text in source[index]["captions"] if f"  {text}\n" in out]
    assert len(said) == (2 if objective == "tcjepa" else 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The workdir of a run from the command line."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    assert main([*TRAIN, str(workdir), SPREAD]) == 0
    return workdir


def test_a_run_leaves_the_files_that_scripts_rely_on(run):
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["steps"], result["compiles"]) == ("done", 6, 1)
    assert result["seconds"] > 0
    numbers = [result["knn"][name] for name in ("target", "untrained", "pixels")]
    numbers += [result["rankme"][name] for name in ("start", "end")]
    numbers += [result["text_gain"], result["dead_share"]]
    assert all(isinstance(number, float) for number in numbers)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(7))
    assert all("loss" in row for row in rows[1:])


def test_a_run_is_shown_as_its_files_tell_it(run, tmp_path, capsys):
    assert main(["runs", "show", str(run), "--json", str(tmp_path / "run.json")]) == 0
    told, result = json.loads((tmp_path / "run.json").read_text()), _result(run)
    assert (told["status"], told["step"], told["steps"]) == ("done", 6, 6)
    assert told["knn"] == result["knn"]["target"] and told["pixels"] == result["knn"]["pixels"]
    assert told["untrained"] == result["knn"]["untrained"]
    assert (told["rankme_start"], told["rankme"]) == tuple(
        result["rankme"][name] for name in ("start", "end")
    )
    assert told["goodput"] == result["goodput"]["share"] and told["seconds"] == result["seconds"]
    assert all(told[name] is not None for name in ("loss", "unexplained", "bad_steps", "began"))


def _result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def page(workdir: Path, **how: str) -> str:
    words = [f"--{name}={value}" for name, value in how.items()]
    assert main(["report", "--workdir", str(workdir), *words]) == 0
    html = Path(how.get("out", workdir / "report.html")).read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)|url\(|@import", html)  # self-contained
    return html


def headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.+?)</h2>", html)


def test_the_report_shows_what_the_run_learnt(run, capsys):
    html = page(run)
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert headings(html) == [
        "Result", "Proof", "Curves", "Health", "Time", "Masks", "Words on patches",
        "Pointing game", "Patch features as colours", "Nearest neighbours", "Configuration",
    ]  # fmt: skip
    stills, of_words, of_patches = 2 + 12 + 1, 6, 1
    assert html.count("data:image/png;base64,") >= stills + of_words + of_patches
    told = json.loads(re.search(r'data-kind="words"><script[^>]*>(.+?)</script>', html).group(1))
    assert told["layers"] == ["all 2, averaged", "1", "2"] and len(told["images"]) == 6
    data = json.loads(re.search(r'id="run">(.+?)</script>', html).group(1))
    assert data["result"]["status"] == "done"
    told = {check["claim"]: check["verdict"] for check in data["proof"]}
    assert told["the run has ended"] == told["the step is compiled once"] == "✓ holds"
    game = data["pointing"]["all"]
    assert 0 < game["chance"] < 1 and 0 <= game["maps"] <= 1


def test_the_report_of_a_killed_run_says_what_is_missing(run, tmp_path, capsys):
    killed = tmp_path / "killed"
    killed.mkdir()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (killed / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    (killed / "config.json").write_text((run / "config.json").read_text())
    html = page(killed, out=str(tmp_path / "deep/er.html"))
    assert headings(html) == [
        "Result", "Proof", "Curves", "Health", "Left out", "Configuration",
    ]  # fmt: skip
    assert "running, or killed" in html and "holds no checkpoint" in html
    assert "holds no checkpoint" in capsys.readouterr().out
    assert not (killed / "checkpoints").exists()


def test_the_report_leaves_out_text_where_none_is_read(tmp_path):
    workdir = tmp_path / "ijepa"
    words = ["--config.train.steps=1", "--config.encoder.depth=1", "--config.predictor.depth=1"]
    argv = ["train", "--config", f"{TINY}:objective=ijepa", "--workdir", str(workdir), SPREAD]
    assert main([*argv, *words]) == 0
    html = page(workdir)
    assert headings(html) == [
        "Result", "Proof", "Curves", "Health", "Time", "Masks", "Patch features as colours",
        "Nearest neighbours", "Configuration",
    ]  # fmt: skip
    assert json.loads((workdir / "result.json").read_text())["text_gain"] is None


def test_a_conditioner_that_tells_no_words_apart_trains_and_is_reported_without_word_maps(tmp_path):
    workdir = tmp_path / "adaln"
    words = ["--config.train.steps=1", "--config.encoder.depth=1", "--config.predictor.depth=1"]
    words += ["--config.conditioner.kind=adaln", "--config.anticollapse.rank=1"]
    assert main(["train", "--config", TINY, "--workdir", str(workdir), SPREAD, *words]) == 0
    assert headings(page(workdir)) == [
        "Result", "Proof", "Curves", "Health", "Time", "Masks", "Patch features as colours",
        "Nearest neighbours", "Configuration",
    ]  # fmt: skip
    result = json.loads((workdir / "result.json").read_text())
    assert isinstance(result["text_gain"], float) and result["dead_share"] is None


def test_a_finished_run_is_resumed_and_another_configuration_refused(run, capsys):
    before = (run / "metrics.jsonl").read_text()
    assert main([*TRAIN, str(run), SPREAD]) == 0
    assert (run / "metrics.jsonl").read_text() == before
    capsys.readouterr()
    line = refused(capsys, *TRAIN, str(run), SPREAD, "--config.seed=1")
    assert "another configuration" in line and "seed: 0 -> 1" in line
