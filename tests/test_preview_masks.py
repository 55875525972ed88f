"""What the preview of masks says, and the one helper that draws them."""

import re

import numpy as np
import pytest

from jepa_vl.cli import preview_masks
from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.data import masking, pipeline, sources
from tests.test_cli import TINY
from tests.tiny import tiny

EIGHT = {"encoder.image_size": 64, "masks.min_keep": 2}  # 8 x 8 patches


@pytest.mark.parametrize("mode", ["production", "reference"])
def test_one_helper_draws_either_mode_with_static_shapes(mode):
    plan = masking.plan_masks(tiny(**EIGHT, **{"masks.mode": mode}))
    masks = masking.draw(plan, 5, np.random.default_rng(0))
    assert masks["ctx_idx"].shape == (5, plan.context_tokens)
    assert masks["tgt_idx"].shape == (5, 4, plan.target_tokens)
    assert ("ctx_valid" in masks) == ("tgt_valid" in masks) == (mode == "reference")
    if mode == "production":  # no image is drawn like another
        assert len(np.unique(masks["ctx_idx"], axis=0)) == 5
        return
    collated = masking.reference_masks(plan, 5, np.random.default_rng(0))
    for name, array in masking.pad_reference(plan, collated).items():
        np.testing.assert_array_equal(masks[name], array)


def test_padding_is_marked_and_does_not_count_as_coverage():
    plan = masking.plan_masks(tiny(**EIGHT, **{"masks.mode": "reference"}))
    masks = masking.draw(plan, 6, np.random.default_rng(2))
    context, target = (masking.mark_padding(masks, name) for name in ("ctx", "tgt"))
    for name, marked in (("ctx", context), ("tgt", target)):
        np.testing.assert_array_equal(marked == -1, ~masks[f"{name}_valid"])
        assert (marked == -1).any()
    seen, wanted = masking.coverage(context, target, plan.grid)
    np.testing.assert_allclose(seen.sum(), masks["ctx_valid"].sum() / 6)
    np.testing.assert_allclose(wanted.sum(), masks["tgt_valid"].sum() / (6 * 4))
    production = {"ctx_idx": np.arange(3)[None]}
    np.testing.assert_array_equal(masking.mark_padding(production, "ctx"), [[0, 1, 2]])


@pytest.mark.parametrize("mode", ["production", "reference"])
def test_masks_of_an_evaluated_image_depend_on_seed_and_index_alone(mode):
    config = tiny(**EIGHT, **{"masks.mode": mode})
    held_out = sources.open_sources(config)[1]
    (batch,) = pipeline.eval_batches(config, held_out, [7, 2], 2)
    plan = masking.plan_masks(config)
    for row, index in enumerate((7, 2)):
        own = masking.draw(plan, 1, np.random.default_rng([config.seed, index]))
        for name, array in own.items():
            np.testing.assert_array_equal(batch[name][row], array[0])


def preview(capsys, tmp_path, *words):
    argv = ["preview", "--config", TINY, "--what", "masks", "--out", str(tmp_path), *words]
    assert main(argv) == 0
    return capsys.readouterr().out


def test_the_preview_shows_coverage_histograms_and_bias_of_both_modes(capsys, tmp_path):
    words = [f"--config.{name}={value}" for name, value in EIGHT.items()]
    out = preview(capsys, tmp_path, *words)
    heads = ("production: context", "production: target", "reference: context", "reference: target")
    assert re.search(r"^row +" + " +".join(heads) + "$", out, re.M)
    rows = re.findall(r"^([0-7]|all) +(\d\.\d+) +(\d\.\d+) +(\d\.\d+) +(\d\.\d+)$", out, re.M)
    assert [row[0] for row in rows] == [*map(str, range(8)), "all"]
    last = [float(x) for x in rows[7][1:]]
    assert min(last[:2]) > 0 and last[2:] == [0, 0]  # the collator never reaches the last row
    for mode in preview_masks.MODES:
        for what in ("context tokens an image", "tokens of a target block"):
            part = out.split(f"{mode}: {what}\n")[1].split("\n\n")[0]
            shares = [float(x) for x in re.findall(r"([\d.]+)%", part)]
            assert abs(sum(shares) - 100) < 0.5 and "#" in part
    never = re.search(r"^patches that are never target +(\d+) +(\d+)$", out, re.M).groups()
    assert never == ("0", "15")  # the last row and the last column


def test_a_mode_that_is_not_possible_is_said_to_be_so(capsys, tmp_path):
    out = preview(capsys, tmp_path)  # 4 x 4 patches, min_keep = 10
    assert "mode reference cannot be compared: masks.min_keep = 10" in out
    assert "reference: context" not in out and "production: context" in out


def test_a_histogram_has_every_count_in_one_bin():
    counts = np.array([3, 3, 4, 9, 20])
    lines = preview_masks.histogram(counts)
    assert [line.strip().split("  ")[0] for line in lines][:2] == ["3 to 5", "6 to 8"]
    assert "60.0%" in lines[0] and lines[0].endswith("#" * preview_masks.BAR)
    assert preview_masks.histogram(np.full(4, 7)) == [f"7  100.0%  {'#' * preview_masks.BAR}"]


def test_bias_compares_halves_and_counts_patches_that_are_left_out():
    share = np.array([[0.4, 0.4], [0.2, 0.0]])
    found = preview_masks.bias(share, np.full((2, 2), 0.1))
    assert found["context, upper over lower half"] == "4.00"
    assert found["context, most over least likely patch"] == "inf"
    assert found["patches that are never context"] == "1"
    assert found["target, upper over lower half"] == "1.00"
    assert found["patches that are never target"] == "0"


def test_masks_that_cannot_be_drawn_are_refused_where_a_configuration_is_read():
    from jepa_vl.cli import configs

    for overrides, key in (
        ({"masks.mode": "reference"}, "masks.min_keep"),
        ({"masks.context_tokens": "15"}, "masks.context_tokens"),
        ({"masks.target_tokens": "9"}, "masks.target_tokens"),
    ):
        with pytest.raises(ConfigError) as caught:
            configs.load(TINY, [configs.Override(*item) for item in overrides.items()])
        assert caught.value.key == key
