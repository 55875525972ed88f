"""Promises of the masks: static shapes, no bias by position, and the reference's statistics."""

import itertools
import json
import time

import numpy as np
import pytest
from scipy.stats import kstest

from jepa_vl.config import Config, ConfigError, defaults, from_dict
from jepa_vl.data import masking
from jepa_vl.data.chance import from_places
from tests.shared import shared


def make_config(grid: int = 14, **masks) -> Config:
    tree = defaults()
    tree.encoder.patch_size, tree.encoder.image_size = 4, 4 * grid
    tree.masks.update(masks)
    return from_dict(tree)


def draw(plan: masking.MaskPlan, images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(seed))
    drawn = masking.draw(plan, images, rng)
    return drawn["ctx_idx"], drawn["tgt_idx"]


@pytest.mark.parametrize("grid", [2, 3, 4, 6, 8, 12, 14, 16, 28])
def test_masks_have_static_shapes_sorted_distinct_cells_and_never_overlap(grid):
    plan = masking.plan_masks(make_config(grid))
    ctx_idx, tgt_idx = draw(plan, 100)
    assert ctx_idx.shape == (100, plan.context_tokens) and ctx_idx.dtype == np.int32
    assert tgt_idx.shape == (100, 4, plan.target_tokens) and tgt_idx.dtype == np.int32
    for idx in (ctx_idx, tgt_idx):
        assert (np.diff(idx, axis=-1) > 0).all()
        assert idx.min() >= 0 and idx.max() < grid * grid
    for context, target in zip(ctx_idx, tgt_idx, strict=True):
        assert not np.intersect1d(context, target).size


@pytest.mark.parametrize(
    ("grid", "context", "target"), [(14, 48, 24), (16, 64, 35), (8, 17, 8), (28, 208, 108)]
)
def test_automatic_sizes(grid, context, target):
    plan = masking.plan_masks(make_config(grid))
    assert (plan.context_tokens, plan.target_tokens) == (context, target)
    assert target == min(h * w for h, w in plan.sizes)


def test_every_patch_is_seen_and_wanted_about_as_often_as_its_mirror_images():
    plan = masking.plan_masks(make_config(14))
    seen, wanted = masking.coverage(*draw(plan, 4000), grid=14)
    np.testing.assert_allclose(seen.mean(), plan.context_tokens / 196)
    np.testing.assert_allclose(wanted.mean(), plan.target_tokens / 196)
    for table in (seen, wanted):
        assert table.min() > 0.004
        for mirror in (table[::-1], table[:, ::-1], table[::-1, ::-1]):
            # 4000 images, or 16,000 dependent blocks: 5 standard deviations.
            assert abs(table - mirror).max() < 5 * np.sqrt(2 * 0.25 / 4000)
        rows = table.mean(axis=1)
        assert abs(rows - rows[::-1]).max() < 0.03  # the reference: 0.75 at the top, 0 below


def test_block_sizes_are_those_that_draws_produce():
    for grid in (6, 14, 16):
        rng = np.random.default_rng(0)
        area = (grid * grid * rng.uniform(0.15, 0.2, 40_000)).astype(int)
        aspect = rng.uniform(0.75, 1.5, 40_000)
        height, width = np.sqrt(area * aspect).round(), np.sqrt(area / aspect).round()
        drawn = set(zip(height.astype(int).tolist(), width.astype(int).tolist(), strict=True))
        sizes = masking.block_sizes(grid, (0.15, 0.2), (0.75, 1.5))
        assert drawn <= set(sizes)
        assert len(set(sizes) - drawn) <= 1  # a sliver of the range may go undrawn
    assert masking.block_sizes(8, (0.25, 0.25), (1.0, 1.0)) == [(4, 4)]
    assert masking.block_sizes(4, (1.0, 1.0), (1.0, 1.0)) == [(4, 4)]


def test_area_and_aspect_are_independent():
    plan = masking.plan_masks(make_config(16))
    sizes = masking._draw_production(plan, from_places(0, np.arange(3000)), 3000).sizes
    drawn = set(map(tuple, sizes.tolist()))
    assert drawn <= set(plan.sizes) and len(drawn) >= len(plan.sizes) - 1


@pytest.mark.parametrize(
    ("key", "masks"),
    [
        ("masks.context_tokens", {"context_tokens": 170}),  # 196 - 40 = 156 at most
        ("masks.context_tokens", {"context_tokens": 150}),  # possible, but hardly ever drawn
        ("masks.context_tokens", {"context_tokens": -1}),
        ("masks.context_tokens", {"target_scale": (0.9, 1.0)}),
        ("masks.target_tokens", {"target_tokens": 25}),
        ("masks.min_keep", {"mode": "reference", "min_keep": 30}),
        ("masks.context_scale", {"mode": "reference", "context_scale": (0.2, 0.3)}),
        ("masks.context_tokens", {"mode": "reference", "context_tokens": 48}),
    ],
)
def test_infeasible_masks_are_refused_by_name(key, masks):
    with pytest.raises(ConfigError) as caught:
        masking.plan_masks(make_config(14, **masks))
    assert caught.value.key == key


def test_the_fallback_is_feasible_when_no_draw_is(monkeypatch):
    plan = masking.plan_masks(make_config(14))
    monkeypatch.setattr(masking, "RETRIES", 1)
    hardest = 196 - max(h * w for h, w in plan.sizes)
    plan = masking.dataclasses.replace(plan, context_tokens=hardest)
    assert masking._draw_production(plan, from_places(0, np.arange(50)), 50).fallback.any()
    ctx_idx, tgt_idx = draw(plan, 200)
    assert ctx_idx.shape == (200, hardest)
    assert not any(np.intersect1d(c, t).size for c, t in zip(ctx_idx, tgt_idx, strict=True))


def test_masks_cost_little_beside_decoding():
    plan = masking.plan_masks(make_config(14))
    costs = []
    for seed in range(5):
        start = time.thread_time()
        masking.at_positions(plan, seed, np.arange(64))
        costs.append((time.thread_time() - start) / 64)
    assert min(costs) < 100e-6  # of CPU; measured 12 us


def test_masks_of_a_position_do_not_depend_on_the_company_they_are_drawn_in(monkeypatch):
    plan, seed = masking.plan_masks(make_config(8)), 2**32 - 1
    monkeypatch.setattr(masking, "RETRIES", 3)  # so that all ways out are taken
    plan = masking.dataclasses.replace(plan, context_tokens=30)
    positions = np.arange(10**12, 10**12 + 300)
    whole = masking._draw_production(plan, from_places(seed, positions), 300)
    assert 0 < whole.fallback.mean() < 1
    masks = masking.at_positions(plan, seed, positions)
    mixed = np.random.default_rng(0).permutation(300)[:100]
    for part in (mixed, mixed[:1], np.arange(1, 300, 4)):
        alone = masking.at_positions(plan, seed, positions[part])
        for name, array in alone.items():
            np.testing.assert_array_equal(array, masks[name][part])
    for other in (
        masking.at_positions(plan, seed - 1, positions),
        masking.at_positions(plan, seed, positions + 1),
    ):
        assert (other["ctx_idx"] != masks["ctx_idx"]).any(axis=1).mean() > 0.9


def test_numbers_of_places_are_uniform_and_independent_of_their_neighbours():
    tables = [
        from_places(seed, np.arange(first, first + 64))(np.arange(64), attempt, 400)
        for seed, first, attempt in ((0, 0, 0), (0, 0, 1), (0, 64, 0), (1, 0, 0))
    ]
    numbers = np.concatenate([table.ravel() for table in tables])
    assert numbers.min() >= 0 and numbers.max() < 1 and len(np.unique(numbers)) == numbers.size
    assert kstest(numbers, "uniform").pvalue > 1e-3
    for one, other in itertools.combinations(tables, 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / one.size**0.5
    rows = np.corrcoef(tables[0]) - np.eye(64)
    assert abs(rows).max() < 5 / 400**0.5


@pytest.mark.parametrize("name", ["multiblock_masks_14x14_b64", "multiblock_masks_16x16_b1"])
def test_reference_mode_has_the_statistics_of_the_public_collator(name):
    golden = np.load(shared(f"golden/{name}.npz"))
    meta = json.loads(str(golden["meta_json"]))
    grid, batch, draws = meta["grid"], meta["batch"], meta["draws"]
    plan = masking.plan_masks(make_config(grid, mode="reference", min_keep=meta["min_keep"]))
    context, target, union = [], [], []
    seen, wanted = np.zeros(grid * grid), np.zeros(grid * grid)
    for step in range(draws):
        masks = masking.reference_masks(plan, batch, np.random.default_rng([1, step]))
        ctx_idx, tgt_idx = masks["ctx_idx"], masks["tgt_idx"]
        context.append(ctx_idx.shape[1])
        target.append(tgt_idx.shape[2])
        seen += np.bincount(ctx_idx.ravel(), minlength=grid * grid)
        wanted += np.bincount(tgt_idx.ravel(), minlength=grid * grid)
        union += [len(np.unique(blocks)) for blocks in tgt_idx]
        for visible, blocks in zip(ctx_idx, tgt_idx, strict=True):
            assert not np.intersect1d(visible, blocks).size
    images = draws * batch
    # Batches, not images, are the independent draws: one size a batch.
    for ours, theirs in (
        (context, golden["context_length_per_batch"]),
        (target, golden["target_length_per_batch"]),
        (union, golden["target_union_size"]),
    ):
        ours = np.asarray(ours, np.float64)
        error = np.sqrt(2 * theirs.var() / draws)
        assert abs(ours.mean() - theirs.mean()) < 4 * error
        for level in (0.05, 0.25, 0.5, 0.75, 0.95):
            # Where our quantile lies in their distribution, between its lower and upper edge.
            value = np.quantile(ours, level)
            low, high = (theirs < value).mean(), (theirs <= value).mean()
            slack = 4 * np.sqrt(2 * level * (1 - level) / draws)
            assert low - slack <= level <= high + slack
    assert set(target) <= set(np.unique(golden["target_length_per_batch"]).tolist())
    for ours, theirs in (
        (seen / images, golden["context_patch_frequency"].ravel()),
        (wanted / (images * plan.target_blocks), golden["target_patch_frequency"].ravel()),
    ):
        assert abs(ours - theirs).max() < 0.035
        assert abs(ours - theirs).mean() < 0.008
    grids = seen.reshape(grid, grid), wanted.reshape(grid, grid)
    assert not any(table[-1].any() or table[:, -1].any() for table in grids)


def test_reference_masks_are_padded_to_static_shapes_that_always_suffice():
    for grid in (6, 8, 14, 16):
        plan = masking.plan_masks(make_config(grid, mode="reference", min_keep=3))
        for step in range(200):
            masks = masking.reference_masks(plan, 3, np.random.default_rng(step))
            padded = masking.pad_reference(plan, masks)
            assert padded["ctx_idx"].shape == (3, plan.context_tokens)
            assert padded["tgt_idx"].shape == (3, 4, plan.target_tokens)
            for part in ("ctx", "tgt"):
                idx, valid = padded[f"{part}_idx"], padded[f"{part}_valid"]
                assert valid.dtype == bool and not idx[~valid].any()
                np.testing.assert_array_equal(idx[valid].ravel(), masks[f"{part}_idx"].ravel())
