"""``eval.tasks``: evaluators of ``jepa-vl eval`` while a run goes on."""

import json
from pathlib import Path

import jax
import pytest

from jepa_vl.cli.main import main
from jepa_vl.training import online
from tests.test_cli import SPREAD, TINY, refused
from tests.tiny import tiny

# These runs are all compilation.
pytestmark = pytest.mark.usefixtures("quick_module")

STEPS = ("--config.train.steps=3", "--config.eval.train_images=64")


def train(objective: str, tasks: str, workdir: Path) -> list[str]:
    words = ["train", "--config", f"{TINY}:objective={objective}", "--workdir", str(workdir)]
    return [*words, SPREAD, *STEPS, f"--config.eval.tasks={tasks}"]


@pytest.mark.parametrize(
    ("objective", "tasks"), [("ijepa", ("fewshot",)), ("contrastive", ("lidar", "retrieval"))]
)
def test_a_task_finds_while_training_what_it_finds_afterwards(objective, tasks, tmp_path):
    assert main(train(objective, ",".join(tasks), tmp_path)) == 0
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


def test_tasks_that_train_parts_of_their_own_run_in_one_process_alone(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    online.check(tiny(**{"eval.tasks": ("fewshot",)}))
    with pytest.raises(Exception, match="eval --watch"):
        online.check(tiny(**{"eval.tasks": ("retrieval",)}))
