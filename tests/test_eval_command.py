"""``jepa-vl eval`` on runs of the tiny configuration: numbers, protocols, refusals."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jepa_vl.cli.eval import DEFAULT
from jepa_vl.cli.main import main
from jepa_vl.data import sources
from jepa_vl.evaluators.results import unpack
from jepa_vl.training.checkpoint import load
from tests.test_cli import SPREAD, TINY, TRAIN, refused
from tests.tiny import tiny

# These runs are all compilation.
pytestmark = pytest.mark.usefixtures("quick_module")

OTHER_NUMBERS = r"^C$|_on$|_spread$|_images$"  # beside the accuracies of the held-out part
KINDS = ("encoder", "untrained", "pixels")
TRAINING = ("--config.eval.k=10", "--config.eval.train_images=64", "--config.train.steps=3")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A run of three steps, which the loop's kNN measured at 0 and 3, with k = 10."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main([*TRAIN, str(folder), SPREAD, *TRAINING]) == 0
    return folder


def evaluate(workdir: Path, *words: str, file: str) -> dict:
    assert main(["eval", "--workdir", str(workdir), *words]) == 0
    return json.loads((workdir / file).read_text())


def score(page: dict, evaluator: str, name: str, kind: str = "encoder") -> float:
    (found,) = [r for r in page["results"] if (r["task"], r["features"]) == (evaluator, kind)]
    return found["metrics"][name]


@pytest.fixture(scope="module")
def newest(workdir) -> dict:
    return evaluate(workdir, "--floor", "all", file="eval_3_target.json")


def test_the_offline_vote_equals_the_loops_on_the_same_images(workdir, newest):
    online = json.loads((workdir / "result.json").read_text())["knn"]
    untrained = evaluate(workdir, "--step", "0", "--task", "knn", file="eval_0_target.json")
    assert score(newest, "knn", "k10") == online["target"]
    assert score(newest, "knn", "k10", "pixels") == online["pixels"]
    assert score(untrained, "knn", "k10") == online["untrained"]


@pytest.mark.parametrize(
    ("objective", "pooled"),
    [
        ("ijepa", "after the final LayerNorm"),
        ("tijepa", "of the crosser, which reads no caption and has no final LayerNorm"),
        ("crossmodal", "after the final LayerNorm"),
        ("contrastive", "after the final LayerNorm"),
    ],
)
def test_every_other_objective_is_measured_through_the_encoder_that_its_loop_measures(
    objective, pooled, tmp_path
):
    argv = ["train", "--config", f"{TINY}:objective={objective}", "--workdir", str(tmp_path)]
    assert main([*argv, SPREAD, *TRAINING]) == 0
    online = json.loads((tmp_path / "result.json").read_text())["knn"]
    names = ("--task", "knn", "--floor", "none")
    page = evaluate(tmp_path, *names, file="eval_3_target.json")
    untrained = evaluate(tmp_path, *names, "--step", "0", file="eval_0_target.json")
    context = evaluate(tmp_path, *names, "--branch", "context", file="eval_3_context.json")
    assert score(page, "knn", "k10") == online["target"]
    assert score(untrained, "knn", "k10") == online["untrained"]
    assert [len(x["results"]) for x in (page, untrained, context)] == [1, 1, 1]
    assert page["objective"] == objective
    assert page["results"][0]["protocol"]["pooling"] == f"mean over all patches, {pooled}"


def test_trap_45_every_result_states_its_whole_protocol(newest):
    measured = {(r["task"], r["features"]) for r in newest["results"]}
    assert measured == {(name, kind) for name in DEFAULT for kind in KINDS}
    train, held_out = sources.open_sources(tiny())
    for result in newest["results"]:
        protocol = result["protocol"]
        assert {"pooling", "normalisation", "transform"} <= protocol.keys()
        if result["task"] == "lidar":
            assert (protocol["n"], protocol["q"], protocol["delta"]) == (16, 10, 1e-4)
            assert "crops" in protocol["transform"]
        else:
            assert protocol["classes"] == len(train.classes)
        assert protocol["seed"] == 0
        parts = {"train": (train, 64), "held_out": (held_out, 16)}
        if result["task"] == "lidar":
            del parts["train"]
        for part, (source, images) in parts.items():
            assert protocol[part] == {
                "name": source.name, "fingerprint": source.fingerprint, "images": images
            }  # fmt: skip
        if result["features"] != "pixels":
            assert (protocol["branch"], protocol["layers"]) == ("target", 1)
        else:
            assert "branch" not in protocol
    assert (newest["step"], newest["branch"], newest["objective"]) == (3, "target", "tcjepa")
    assert re.fullmatch("[0-9a-f]{12}", newest["config_hash"])


def test_the_table_shows_the_numbers_of_the_file(workdir, capsys):
    page = evaluate(
        workdir, "--branch", "context", "--task", "fast,knn", file="eval_3_context.json"
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 3, context encoder" and lines[-2].endswith("eval_3_context.json")
    rows = {tuple(line.split()[:2]): line.split()[2] for line in lines[3:-3]}
    measured = [r for r in page["results"] if r["features"] == "encoder"]
    assert rows.keys() == {(r["task"], name) for r in measured for name in r["metrics"]}
    for (evaluator, name), text in rows.items():
        assert text == f"{score(page, evaluator, name):.4g}"
    assert {r["protocol"]["branch"] for r in measured} == {"context"}


def test_every_accuracy_has_an_interval_around_it_its_images_and_its_floors(newest):
    untrained, pixels = (
        {r["task"]: r["metrics"] for r in newest["results"] if r["features"] == kind}
        for kind in KINDS[1:]
    )
    for result in newest["results"]:
        if result["task"] == "lidar":  # no accuracy
            assert result["hits"] == result["ci"] == {} and "majority" not in result["baselines"]
            continue
        accuracies = {name for name in result["metrics"] if not re.search(OTHER_NUMBERS, name)}
        assert result["hits"].keys() == result["ci"].keys() == accuracies != set()
        for name, (low, high) in result["ci"].items():
            right = unpack(result["hits"][name])
            assert right.mean() == pytest.approx(result["metrics"][name])
            assert right.shape[1] == result["protocol"]["held_out"]["images"]
            assert 0 <= low <= result["metrics"][name] <= high <= 1
        floors = result["baselines"]
        assert floors["majority"].keys() == accuracies
        assert all(0 < share < 1 for share in floors["majority"].values())
        if result["features"] == "encoder":
            for kind, found in (("untrained", untrained), ("pixels", pixels)):
                metrics = found[result["task"]]
                assert floors[kind] == {name: metrics[name] for name in result["ci"]}


def test_a_result_names_its_images_its_checkpoint_and_its_versions(workdir, newest, tmp_path):
    def measured(name, *words):
        out = tmp_path / name
        words = ("--task", "knn", "--floor", "none", "--json", str(out), *words)
        (result,) = evaluate(workdir, *words, file=out)["results"]
        return result

    hashes = ("data_hash", "checkpoint_hash")
    assert all(re.fullmatch("[0-9a-f]{16}", r[k]) for r in newest["results"] for k in hashes)
    assert "jax" in newest["versions"]
    first, untrained = measured("first"), measured("untrained", "--step", "0")
    other = measured("other", "--seed", "1")
    fewer = measured("fewer", "--config.eval.train_images=50")
    results = (first, untrained, other, fewer)
    assert len({result["checkpoint_hash"] for result in results}) == 2
    assert (first["seed"], other["seed"]) == (0, 1)
    # Another seed draws the same images where all are taken.
    same = {result["data_hash"] for result in results[:3]}
    assert len(same) == 1 and fewer["data_hash"] not in same


def compared(capsys, first, second):
    capsys.readouterr()
    assert main(["eval", "compare", "--first", str(first), "--second", str(second)]) == 0
    return capsys.readouterr().out.splitlines()


def test_two_results_stand_side_by_side_with_a_paired_interval(workdir, newest, capsys, tmp_path):
    files = [tmp_path / name for name in ("target.json", "context.json")]
    for file, branch in zip(files, ("target", "context"), strict=True):
        evaluate(
            workdir,
            "--branch",
            branch,
            "--task",
            "fast,knn,lidar",
            "--floor",
            "none",
            "--json",
            str(file),
            file=file,
        )
    lines = compared(capsys, *files)
    assert "target encoder" in lines[0] and "context encoder" in lines[1]
    pages = [json.loads(file.read_text()) for file in files]
    for name in ("k10", "k20"):
        (row,) = [line for line in lines if line.startswith("knn") and f" {name} " in line]
        first, second = (score(page, "knn", name) for page in pages)
        for text in (f"{first:.4g}", f"{second:.4g}", f"{second - first:+.4g}"):
            assert f" {text} " in row
    assert not [line for line in lines if line.startswith("lidar")]  # no share of images
    same = [line for line in compared(capsys, files[0], files[0]) if line.startswith("fast")]
    assert same[0].endswith("+0  [0, 0]")


def test_results_that_cannot_be_compared_are_refused_with_the_reason(workdir, capsys, tmp_path):
    def result(name, *words):
        file = tmp_path / f"{name}.json"
        words = ("--floor", "none", "--json", str(file), *words)
        evaluate(workdir, *words, file=file)
        return file

    first = result("first", "--task", "knn")
    page = json.loads(first.read_text())
    (tmp_path / "old.json").write_text(json.dumps({"results": []}))
    (tmp_path / "text.json").write_text("no JSON")
    page["results"][0]["protocol"]["temperature"] = 0.1
    (tmp_path / "cold.json").write_text(json.dumps(page))
    del page["results"][0]["hits"], page["results"][0]["protocol"]
    page["results"][0]["protocol"] = json.loads(first.read_text())["results"][0]["protocol"]
    (tmp_path / "bare.json").write_text(json.dumps(page))
    result("seed", "--task", "knn", "--seed", "1")
    result("fewer", "--task", "knn", "--config.eval.val_images=9")
    result("task", "--task", "fast")
    for name, part in (
        ("fewer", "other images were measured: 16 of shapes_world/val (seed 0) and 9 of"),
        ("seed", "other protocol of knn: seed 0 and 1"),
        ("task", "it has fast and not knn"),
        ("cold", "other protocol of knn: temperature 0.07 and 0.1"),
        ("bare", "cannot be compared image by image"),
        ("old", "is no result of `jepa-vl eval`"),
        ("text", "cannot be read"),
        ("none", "cannot be read"),
    ):
        words = ("--first", str(first), "--second", str(tmp_path / f"{name}.json"))
        capsys.readouterr()
        assert part in refused(capsys, "eval", "compare", *words)


def test_the_branches_are_one_encoder_before_training_and_two_after(workdir):
    for step, same in ((0, True), (3, False)):
        _, state, _ = load(workdir, step)
        pairs = zip(
            jax.tree.leaves(state.target), jax.tree.leaves(state.params["encoder"]), strict=True
        )
        assert all(np.array_equal(a, b) for a, b in pairs) == same


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Labelled images without captions: two classes, red and blue, 20 each."""
    folder = tmp_path_factory.mktemp("pictures")
    rng, lines = np.random.default_rng(0), []
    for i in range(40):
        pixels = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
        pixels[..., 0 if i % 2 else 2] += 180
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "label": "red" if i % 2 else "blue"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def test_other_images_are_measured_without_captions_and_written_where_asked(
    workdir, pictures, tmp_path
):
    out = tmp_path / "deep/er.json"
    words = ["--config.data.kind=folder", f"--config.data.path={pictures}", "--json", str(out)]
    words += [
        "--config.data.holdout=0.4",
        "--task",
        "fast",
        "--floor",
        "all",
        "--config.eval.k=3",
    ]
    assert main(["eval", "--workdir", str(workdir), *words]) == 0
    page = json.loads(out.read_text())
    assert score(page, "fast", "accuracy", "pixels") == 1.0
    protocol = page["results"][0]["protocol"]
    assert protocol["classes"] == 2 and "#held-out" in protocol["held_out"]["name"]
    assert protocol["train"]["images"] + protocol["held_out"]["images"] == 40


def test_lidar_needs_no_labels(workdir, pictures, tmp_path, capsys):
    folder = shutil.copytree(pictures, tmp_path / "bare")
    lines = [{"image": f"{i}.png"} for i in range(40)]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["--config.data.kind=folder", f"--config.data.path={folder}", "--config.eval.k=3"]
    words += ["--config.data.holdout=0.4", "--task", "lidar", "--json", str(tmp_path / "out.json")]
    scores = []
    for branch in ("target", "context"):
        command = ["eval", "--workdir", str(workdir), "--branch", branch, *words]
        assert main(command) == 0
        page = json.loads((tmp_path / "out.json").read_text())
        scores.append(score(page, "lidar", "lidar"))
        protocol = page["results"][0]["protocol"]
        assert protocol["branch"] == branch and 1 < protocol["n"] <= 16
    assert 1 <= min(scores) < max(scores) <= 32
    assert "held_out: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--step", "two"], "--step = 'two': a whole number"),
        (["--step", "7"], "has checkpoints of steps 3"),
        (["--layers", "0"], "--layers = '0': a whole number, at least 1"),
        (["--layers", "2"], "--layers = 2: at most 1"),
        (["--branch", "contest"], "did you mean 'context'?"),
        (["--task", "knn,fats"], "did you mean 'fast'?"),
        (["--json", "."], "is a folder"),
        (["--seed", "-1"], "--seed = '-1': a whole number"),
        (["--config.train.steps=9"], "eval reads the configuration of the run and takes --config"),
        (["--config.data.pth=x"], "did you mean data.path?"),
        (["--config.data.kind=tar"], "needs the folder"),
        (["--config.eval.train_images=5", "--task", "knn"], "needs 10"),
        (["--floors"], "did you mean --floor?"),
        (["--floor", "cheep"], "did you mean 'cheap'?"),
        (["--task", "knn,knn"], "each evaluator once"),
        (["--data", "tar"], "--data = 'tar': kind 'tar' needs a folder: KIND:PATH"),
        (["--data", "shapes_world:x"], "lies nowhere"),
        (["--data", "foldr:x"], "did you mean 'folder'?"),
        (["--watch", "--step", "3"], "not with --watch"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(workdir, capsys, words, part):
    before = sorted(path.name for path in workdir.iterdir())
    capsys.readouterr()
    assert part in refused(capsys, "eval", "--workdir", str(workdir), *words)
    assert sorted(path.name for path in workdir.iterdir()) == before


def test_a_folder_without_a_run_is_refused(capsys, tmp_path, workdir):
    assert "--workdir = '': give DIR" in refused(capsys, "eval")
    assert "no such folder" in refused(capsys, "eval", "--workdir", str(tmp_path / "no"))
    assert "holds no checkpoint" in refused(capsys, "eval", "--workdir", str(tmp_path))
    shutil.copy(workdir / "config.json", tmp_path)
    assert "holds no checkpoint" in refused(capsys, "eval", "--workdir", str(tmp_path))
