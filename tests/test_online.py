"""``eval.tasks``: evaluators of ``jepa-vl eval`` while a run goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jepa_vl.cli.main import main
from jepa_vl.training.watchdog import Watchdog
from tests.test_cli import SPREAD, TINY, refused
from tests.test_multihost import CONFIG, ROOT, environment, lines, side_by_side

# These runs are all compilation.
pytestmark = pytest.mark.usefixtures("quick_module")

STEPS = ("--config.train.steps=3", "--config.eval.train_images=64")


def train(objective: str, tasks: str, workdir: Path) -> list[str]:
    words = ["train", "--config", f"{TINY}:objective={objective}", "--workdir", str(workdir)]
    return [*words, SPREAD, *STEPS, f"--config.eval.tasks={tasks}"]


@pytest.mark.parametrize(
    ("objective", "tasks"), [("ijepa", ("fewshot",)), ("contrastive", ("lidar", "retrieval"))]
)
def test_a_task_finds_while_training_what_it_finds_afterwards(
    objective, tasks, tmp_path, monkeypatch
):
    heard = []
    with monkeypatch.context() as patched:
        patched.setattr(Watchdog, "working", lambda self: heard.append(1))
        assert main(train(objective, ",".join(tasks), tmp_path)) == 0
    assert len(heard) > 4 * len(tasks)  # the watchdog hears of batches and parts, at both steps
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    rows = {row["step"]: row for row in lines}
    words = ("--task", ",".join(tasks), "--floor", "none", "--no-cache")
    for step in (0, 3):
        assert main(["eval", "--workdir", str(tmp_path), "--step", str(step), *words]) == 0
        page = json.loads((tmp_path / f"eval_{step}_target.json").read_text())
        wanted = {
            f"eval/{result['task']}/{name}": value
            for result in page["results"]
            for name, value in result["metrics"].items()
        }
        assert {name.split("/")[1] for name in wanted} == set(tasks)
        found = {name: rows[step][name] for name in rows[step] if name.startswith("eval/")}
        assert found == pytest.approx(wanted, rel=1e-4)
    assert not any(name.startswith("eval/") for name in rows[1])


@pytest.mark.parametrize(
    ("tasks", "part"),
    [
        ("knm", "eval.tasks = 'knm': one of"),
        ("knn,knn", "each evaluator once"),
        ("retrieval", "retrieval"),
    ],
)
def test_a_task_that_cannot_be_is_refused_before_the_first_step(tasks, part, tmp_path, capsys):
    assert part in refused(capsys, *train("ijepa", tasks, tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


# Of the kinds of evaluators: what trains heads, a copy of the encoder and a decoder of its own,
# and what reads words.
OF_PATCHES = "mae_lars,attentive_one,finetune,segmentation,captioning,grounding"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "tasks"), [("tcjepa", OF_PATCHES), ("contrastive", "lidar,retrieval")]
)
def test_two_processes_find_while_training_what_one_finds(objective, tasks, tmp_path):
    settings = {
        "objective": objective, "eval.tasks": tasks, "eval.every": 2, "train.steps": 2,
        "eval.train_images": 40, "eval.val_images": 20, "eval.batch_size": 7, "eval.crops": 1,
        "eval.probe_steps": 4, "eval.probe_batch": 16, "eval.decoder_steps": 2, "eval.beam": 2,
        "eval.decoder_layers": 1, "mesh.fsdp": 4, "optim.warmup_steps": 1, "loss.ramp_steps": 1,
        "checkpoint.every": 2,
    }  # fmt: skip
    more = [f"--config.{key}={value}" for key, value in settings.items()]

    def command(workdir: str) -> list[str]:
        return ["train", "--config", CONFIG, "--workdir", str(tmp_path / workdir), *more]

    one = [sys.executable, "-m", "jepa_vl", *command("one")]
    subprocess.run(one, cwd=ROOT, env=environment(1), check=True, timeout=300)
    ends = side_by_side([command("two")] * 2)
    assert [code for code, _ in ends] == [0, 0], ends
    alone, both = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for before, after in zip((alone[0], alone[-1]), (both[0], both[-1]), strict=True):
        wanted = {name: before[name] for name in before if name.startswith("eval/")}
        assert {name.split("/")[1] for name in wanted} == set(tasks.split(","))
        found = {name: after[name] for name in after if name.startswith("eval/")}
        assert found == pytest.approx(wanted, rel=1e-4)
