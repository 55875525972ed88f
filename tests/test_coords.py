"""The coordinate check: what it watches, and that muP is flat in width, the standard is not."""

import json

import jax
import numpy as np
import pytest

from jepa_vl import objectives
from jepa_vl.cli import scaling_coords
from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.models.watch import watch
from jepa_vl.report import coords as picture
from jepa_vl.report.figures import to_png
from jepa_vl.training import coords
from jepa_vl.training import state as train_state
from tests.tiny import tiny

TINY = ["--config", "tests/configs_tiny.py"]


def test_a_slope_is_the_power_of_the_width_and_its_error_the_scatter():
    widths = [32, 64, 128, 256]
    found = coords.slope(widths, [3.0 * w**0.5 for w in widths])
    assert found.slope == pytest.approx(0.5) and found.error < 1e-9
    noisy = coords.slope(
        widths, [3.0 * w**0.5 * f for w, f in zip(widths, (1.2, 0.8, 1.2, 0.8), strict=True)]
    )
    assert noisy.error > 0.05
    assert np.isnan(coords.slope(widths, [1.0, 0.0, 1.0, 1.0]).slope)


def test_the_modules_of_a_loss_are_seen():
    config = tiny(**{"conditioner.scale_logits": True})
    objective, spec = objectives.build(config), train_state.batch_spec(config)
    state = train_state.shapes(config, objective, spec)

    def look(state, batch):
        with watch() as seen:
            objective.loss(state.params, state.target, {}, batch, jax.random.key(0), 1.0)
        return {f"{top.__name__}/{place}": x for (top, place), x in seen.items()}

    seen = jax.eval_shape(look, state, spec)
    k, t = (spec[f"{name}_idx"].shape[-1] for name in ("ctx", "tgt"))
    assert seen["ViT/block_0"].shape == (8, k, 32)  # the encoder of the context, not the target
    assert seen["ViT/block_0/attn/logits"].shape == (8, 2, k, k)
    assert seen["Predictor/project"].shape[1:] == (t, 32)
    rows = spec["tgt_idx"].shape[1] * (k + t)
    assert seen["Predictor/conditioner_0/logits"].shape[:3] == (8, 1, rows)


def test_widths_scale_predictor_and_heads_and_must_give_whole_numbers():
    config = tiny()
    wide = coords.at_width(config, 96)
    assert (wide.encoder.width, wide.encoder.heads, wide.encoder.mlp_width) == (96, 6, 384)
    assert (wide.predictor.width, wide.predictor.heads) == (48, 6)
    assert wide.text == config.text
    with pytest.raises(ConfigError, match=r"--widths = 40: encoder.heads = 2 x WIDTH / 32"):
        coords.at_width(config, 40)
    narrow = coords.with_mup(wide, config).mup
    assert (narrow.base_width, narrow.base_predictor_width) == (32, 16)
    assert coords.standard(coords.with_mup(wide, config)).mup == config.mup


def made(slopes):
    """A page of two layers, whose changes are powers of the width."""
    widths = [32, 64, 128]
    layers = {}
    for name in ("encoder/block_0", "predictor/project"):
        layers[name] = {
            kind: {
                "change": [[0.0, w**slope, 2 * w**slope] for w in widths],
                "slope": {"change": [slope, 0.01]},
            }
            for kind, slope in slopes.items()
        }
    return {"widths": widths, "steps": 2, "lr": 1e-3, "layers": layers}


def test_the_page_says_and_draws_the_slopes():
    page = made({"standard": 0.5, "mup": -0.02})
    lines = scaling_coords.told(page)
    assert "standard: |slope| 0.50 in the median, 0.50 at most" in lines
    assert "muP: |slope| 0.02 in the median, 0.02 at most" in lines
    row = next(line for line in lines if line.startswith("encoder/block_0"))
    assert row.split() == ["encoder/block_0", "+0.50", "+-", "0.01", "-0.02", "+-", "0.01"]
    assert to_png(picture.figure(page)).startswith(b"\x89PNG")
    assert picture.group("predictor/conditioner_1") == "conditioner"
    assert picture.group("predictor/conditioner_1/logits") == "logits"


@pytest.mark.parametrize(("words", "named"), [
    (["--widths", "64"], "--widths = '64': two or more"),
    (["--widths", "64,32"], "--widths = '64,32': two or more, growing"),
    (["--widths", "64,x"], "--widths = 'x': a whole number"),
    (["--steps", "0"], "--steps = '0': a whole number, at least 1"),
    (["--config.objective=contrastive"], "objective = 'contrastive': one of"),
    (["--widths", "32,33"], "--widths = 33"),
])  # fmt: skip
def test_what_cannot_be_checked_is_one_clear_line(words, named, capsys):
    assert main(["scaling", "coords", *TINY, *words]) == 5
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and named in said


@pytest.mark.usefixtures("quick_compilation")
def test_steps_are_measured_from_the_untrained_model_on():
    found = coords.measure(tiny(objective="ijepa", **{"predictor.depth": 1}), 1)
    assert found.size.keys() == found.change.keys()
    assert {"encoder/block_0", "encoder/block_0/attn/logits", "predictor/project"} <= set(
        found.size
    )
    for name, change in found.change.items():
        assert change.shape == (2,) and change[0] == 0 < change[1], name
        assert found.size[name][0] > 0, name


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_mup_is_flat_in_width_and_the_standard_is_not(tmp_path, capsys):
    """Four widths, five steps; see docs/mup.md for a larger one."""
    words = ["--widths", "32,64,128,256", "--config.train.init=fan_in", "--config.optim.lr=0.004"]
    words += ["--config.conditioner.scale_logits=True", "--out", str(tmp_path)]
    assert main(["scaling", "coords", *TINY, *words]) == 0
    with capsys.disabled():
        print(capsys.readouterr().out)
    page = json.loads((tmp_path / "coords.json").read_text())
    assert (tmp_path / "coords.png").stat().st_size > 10_000

    def slopes(kind):
        return {name: of[kind]["slope"]["change"][0] for name, of in page["layers"].items()}

    standard, flat = slopes("standard"), slopes("mup")
    stream = [name for name in flat if name.rpartition("/")[2].startswith("block_")]
    assert len(stream) == 3
    assert all(abs(flat[name]) < 0.15 for name in stream)
    assert all(standard[name] > 0.25 for name in stream if name.startswith("encoder"))
    assert np.median(np.abs(list(flat.values()))) < 0.15 < np.median(list(standard.values()))
