"""Promises of a change of batch: no image is lost or seen twice, and steps follow the images."""

import json

import numpy as np
import pytest

from jepa_vl import tree
from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError, to_dict
from jepa_vl.training import loop, rebatch
from jepa_vl.training.checkpoint import load
from tests.tiny import tiny


def train(workdir, batch: int, steps: int, *words: str) -> int:
    settings = {
        "train.batch_size": batch,
        "train.steps": steps,
        "optim.warmup_steps": steps // 4,
        "loss.ramp_steps": steps // 4,
        "log.diagnostics_every": 100,
        "eval.every": 100,
    }
    shared = [f"--config.{key}={value}" for key, value in settings.items()]
    return main(["train", "--config", "tests/configs_tiny.py:objective=ijepa", "--workdir",
                 str(workdir), *shared, *words])  # fmt: skip


@pytest.mark.slow
def test_another_batch_goes_on_at_the_same_image_and_refuses_what_does_not_fit(
    tmp_path, monkeypatch, capsys, quick_compilation
):
    seen, to_device, examine = [], loop.to_device, loop.Run.examine

    def noted(batch, mesh):
        seen.append(batch["position"].tolist())
        return to_device(batch, mesh)

    def killed(self, step):
        if step == 5:
            self.keeper.wait()
            raise KeyboardInterrupt
        return examine(self, step)

    monkeypatch.setattr(loop, "to_device", noted)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "examine", killed)
        assert train(tmp_path, 8, 8, "--config.checkpoint.every=2") == 130
    before = load(tmp_path)[1]
    capsys.readouterr()

    def refused(batch: int, steps: int, *rules: str) -> None:
        assert train(tmp_path, batch, steps) == 5
        error = capsys.readouterr().err
        assert all(rule in error for rule in rules), error

    refused(16, 8, "train.steps: 4 -> 8", "optim.warmup_steps: 1 -> 2")
    refused(24, 4, "train.batch_size = 24", "train.steps = 8 steps of 8 images")
    refused(64, 1, "train.batch_size = 64", "no")
    assert load(tmp_path)[2] == 4  # nothing was touched

    seen.clear()
    assert train(tmp_path, 16, 4, "--config.checkpoint.keep_last=9") == 0
    assert seen == [list(range(32, 48)), list(range(48, 64))]
    state, step = load(tmp_path)[1:]
    assert step == 4 == int(state.step) and int(before.step) == 4
    folders = sorted(path.name for path in tmp_path.glob("checkpoints*"))
    assert folders == ["checkpoints", "checkpoints_batch8_step4"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    first = tree.flatten(load(tmp_path, 2)[1])
    for name, leaf in tree.flatten(before).items():
        if name != "step":
            np.testing.assert_array_equal(leaf, first[name], err_msg=name)
    assert int(first["step"]) == 2


def test_a_change_that_was_cut_short_is_no_new_run(tmp_path):
    (tmp_path / "checkpoints_batch8_step4").mkdir()
    with pytest.raises(ConfigError, match="rename its checkpoints_batch8_step4 to checkpoints"):
        rebatch.check_whole(tmp_path)


@pytest.mark.parametrize(
    ("step", "old", "new", "now"), [(6, 8, 16, 3), (3, 16, 8, 6), (5, 8, 8, 5), (5, 8, 16, None)]
)
def test_steps_follow_images(step, old, new, now):
    if now is None:
        with pytest.raises(ConfigError, match="has seen 40 images, no multiple of it"):
            rebatch.continue_at(step, old, new)
    else:
        assert rebatch.continue_at(step, old, new) == now


def test_the_same_batch_leaves_the_saved_configuration_as_it_is():
    config = tiny()
    assert rebatch.saved_as(to_dict(config), config) == to_dict(config)
