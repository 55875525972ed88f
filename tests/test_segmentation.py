"""Linear segmentation: its parts against torch and numpy, and scenes whose answer is known."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.config import ConfigError
from jepa_vl.data import dense, sources
from jepa_vl.data.shapes_world import ShapesWorld
from jepa_vl.evaluators import heads, miou, pixels, segmentation, spread, subject
from jepa_vl.evaluators.network import Network
from jepa_vl.training import state as train_state
from tests.tiny import tiny

SHORT = {
    "eval.probe_steps": 60, "eval.probe_batch": 8, "eval.train_images": 24, "eval.val_images": 10,
    "eval.crops": 0, "eval.batch_size": 8, "data.train_size": 24, "encoder.patch_size": 2,
    "masks.context_tokens": 32,
}  # fmt: skip


class Oracle:
    """Knows the class of each pixel of the scenes that were given to it, or nothing at all."""

    FEATURES = "the truth"

    def __init__(self, worlds, blind: bool = False):
        scenes = [(w[i]["image"], w.segments(i)) for w in worlds for i in range(len(w))]
        self.known = jnp.asarray([self._sum(jnp.asarray(image)) for image, _ in scenes])
        truth = np.stack([mask[1::2, 1::2].ravel() for _, mask in scenes])
        self.tokens = jnp.asarray(np.eye(9, dtype=np.float32)[truth])
        if blind:
            self.tokens = jax.random.normal(jax.random.key(0), self.tokens.shape)

    @staticmethod
    def _sum(image):
        place = jnp.arange(image.size, dtype=jnp.uint32).reshape(image.shape)
        weight = place * jnp.uint32(2654435761) + jnp.uint32(1)
        return jnp.sum(image.astype(jnp.uint32) * weight, dtype=jnp.uint32)

    def apply(self, variables, images):
        found = jax.vmap(self._sum)(images)
        return self.tokens[jnp.argmax(found[:, None] == self.known[None], axis=1)]


def network(encoder: Any, devices: int = 1, **values) -> Network:
    config = tiny(**{**SHORT, **values})
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    return Network(config, encoder, mesh, *sources.open_sources(config))


@pytest.mark.parametrize("blind", [False, True])
def test_an_oracle_reaches_the_ceiling_of_its_patches_and_noise_the_floor(blind):
    config = tiny(**SHORT)
    train, held_out = sources.open_sources(config)
    net = network(Oracle((train, held_out), blind))
    found = segmentation.Segmentation(net.config, net).measure({})
    low, high = found.ci["miou"]
    assert low <= found.scores["miou"] <= high
    floor = found.baselines["majority"]
    if blind:
        assert found.scores["miou"] < floor["miou"] + 0.05
    else:
        truth = [held_out.segments(i) for i in range(10)]  # pyright: ignore[reportAttributeAccessIssue]
        best = [np.repeat(np.repeat(m[1::2, 1::2], 2, 0), 2, 1) for m in truth]
        counts = [miou.confusion(b, m, 9) for b, m in zip(best, truth, strict=True)]
        ceiling = miou.scores(np.sum(counts, axis=0))["miou"]
        assert found.scores["miou"] > ceiling - 0.1 > 3 * floor["miou"]
    assert floor["pixel_accuracy"] > 0.6  # background


def test_the_head_is_torchs_batch_norm_and_1x1_convolution_enlarged_bilinearly():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    tokens = rng.normal(1, 2, (3, 16, 6)).astype(np.float32)
    masks = rng.integers(0, 5, (3, 12, 12)).astype(np.int32)
    masks[masks == 4] = miou.IGNORED
    head = segmentation.Head(*(rng.normal(size=s).astype(np.float32) for s in (6, 6, (6, 4), 4)))
    norm, conv = torch.nn.BatchNorm2d(6), torch.nn.Conv2d(6, 4, 1)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(head.scale))
        norm.bias.copy_(torch.tensor(head.shift))
        conv.weight.copy_(torch.tensor(head.weight.T)[..., None, None])
        conv.bias.copy_(torch.tensor(head.bias))
    x = torch.tensor(tokens).transpose(1, 2).reshape(3, 6, 4, 4)
    theirs = torch.nn.functional.interpolate(conv(norm(x)), (12, 12), mode="bilinear")
    normed = (tokens - tokens.mean((0, 1))) / np.sqrt(tokens.var((0, 1)) + segmentation.EPS)
    ours = segmentation.logits(head, jnp.asarray(normed), 12)
    np.testing.assert_allclose(ours, theirs.detach().permute(0, 2, 3, 1), atol=1e-4)
    loss = torch.nn.functional.cross_entropy(
        theirs, torch.tensor(masks).long(), ignore_index=miou.IGNORED
    )
    found = segmentation.cross_entropy(ours, jnp.asarray(masks))
    assert float(found) == pytest.approx(loss.item(), rel=1e-5)


def test_training_is_torchs_adamw_where_nothing_is_dropped(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(segmentation, "DROPOUT", 0.0)
    rng = np.random.default_rng(0)
    tokens = rng.normal(1, 2, (6, 16, 5)).astype(np.float32)
    masks = rng.integers(0, 3, (6, 8, 8)).astype(np.int32)
    plan = heads.Plan(5, 4, segmentation.schedule, False, segmentation.EPS, 0)
    ours = segmentation.fit(tokens, masks, 3, plan)
    norm, conv = torch.nn.BatchNorm2d(5), torch.nn.Conv2d(5, 3, 1)
    first = heads.INIT_STD * np.random.default_rng(0).normal(size=(5, 3))
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(first.T)[..., None, None])
        conv.bias.zero_()
    adam = torch.optim.AdamW([*norm.parameters(), *conv.parameters()], weight_decay=1e-3)
    ((rows, _),) = heads.batches(6, 1, plan)
    for step, row in enumerate(rows):
        for group in adam.param_groups:
            group["lr"] = 1e-3 * plan.factor(step / 5)
        x = torch.tensor(tokens[row]).transpose(1, 2).reshape(4, 5, 4, 4)
        said = torch.nn.functional.interpolate(conv(norm(x)), (8, 8), mode="bilinear")
        loss = torch.nn.functional.cross_entropy(said, torch.tensor(masks[row]).long())
        adam.zero_grad()
        loss.backward()
        adam.step()
    np.testing.assert_allclose(ours.head.weight.T, conv.weight.detach()[..., 0, 0], atol=1e-5)
    np.testing.assert_allclose(ours.head.scale, norm.weight.detach(), atol=1e-5)
    np.testing.assert_allclose(ours.mean, norm.running_mean, atol=1e-5)
    np.testing.assert_allclose(ours.variance, norm.running_var, rtol=1e-5)


def test_miou_is_that_of_sets_of_pixels_and_absent_classes_do_not_count():
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 4, (2, 3, 20, 20))
    truth[truth == 3] = miou.IGNORED
    each = np.stack([miou.confusion(f, t, 6) for f, t in zip(found, truth, strict=True)])
    scores = miou.scores(each.sum(axis=0))
    known = truth != miou.IGNORED
    shares = []
    for c in range(6):
        a, b = (truth == c) & known, (found == c) & known
        if (a | b).any():
            shares.append((a & b).sum() / (a | b).sum())
    assert scores["miou"] == pytest.approx(np.mean(shares)) and scores["classes_scored"] == 4
    assert scores["pixel_accuracy"] == pytest.approx((truth == found)[known].mean())
    low, high = miou.interval(each)
    assert low < scores["miou"] < high
    sklearn = pytest.importorskip("sklearn.metrics")
    theirs = sklearn.jaccard_score(truth[known], found[known], average="macro")
    assert scores["miou"] == pytest.approx(theirs)


def test_ade20k_counts_from_one():
    mask = np.array([[0, 1, 150, 255]], np.uint8)
    assert miou.reduced(mask, True).tolist() == [[255, 0, 149, 255]]
    assert miou.reduced(mask, False).tolist() == [[0, 1, 150, 255]]


def test_windows_cover_an_image_and_crops_keep_masks_and_images_together():
    seen = np.zeros((40, 53), int)
    for top, left in dense.windows(40, 53, 32, 21):
        seen[top : top + 32, left : left + 32] += 1
    assert seen.min() == 1 and dense.windows(32, 32, 32, 21) == [(0, 0)]
    image = np.random.default_rng(0).integers(1, 256, (20, 30, 3)).astype(np.uint8)
    mask = (np.arange(30)[None] // 15 * np.ones((20, 1))).astype(np.uint8)
    image[..., 0] = np.where(mask, 200, 50)
    for seed in range(20):
        shown, truth = dense.random_crop(image, mask, 24, np.random.default_rng(seed))
        assert shown.shape == (24, 24, 3) and truth.shape == (24, 24)
        assert not shown[truth == miou.IGNORED].any()
        clear = (np.abs(shown[..., 0].astype(int) - 200) < 5) | (shown[..., 0] == 50)
        told = clear & (truth != miou.IGNORED)
        assert np.mean((shown[..., 0] > 125)[told] == truth[told]) > 0.99


def test_numbers_depend_neither_on_the_batch_nor_on_the_devices():
    config = tiny()
    objective = objectives.build(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    state = train_state.create(config, objective, train_state.batch_spec(config), mesh)
    params = jax.device_get(state.target)
    plain = {"encoder.patch_size": 8, "masks.context_tokens": 0, "eval.probe_steps": 10}
    found = []
    for size, devices in ((7, 1), (64, 1), (7, 8)):
        how = {**plain, "eval.batch_size": size, "eval.crops": 2}
        net = network(objective.encoder, devices, **how)
        found.append(segmentation.Segmentation(net.config, net).measure(params))
    assert all(other.scores == found[0].scores for other in found[1:])


@pytest.mark.parametrize("batch", [8, 5])
def test_devices_share_the_batches_that_they_divide_and_train_the_head_of_one(batch, monkeypatch):
    rng, seen, rows = np.random.default_rng(0), [], spread.rows

    def watched(data, *index):
        found = rows(data, *index)
        jax.debug.inspect_array_sharding(found, callback=seen.append)
        return found

    tokens = rng.normal(1, 2, (13, 16, 6)).astype(np.float32)
    masks = rng.integers(0, 3, (13, 8, 8)).astype(np.int32)
    plan = heads.Plan(4, batch, segmentation.schedule, False, segmentation.EPS, 0)
    alone = segmentation.fit(tokens, masks, 3, plan)
    monkeypatch.setattr(spread, "rows", watched)
    mesh = sharding.make_mesh(tiny().mesh, jax.devices())
    found = segmentation.fit(tokens, masks, 3, plan, mesh)
    assert seen and all(place.is_fully_replicated == (batch % 8 > 0) for place in seen)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_data_without_masks_and_a_lone_image_are_one_line_or_a_number():
    config = tiny(**SHORT)
    train, held_out = sources.open_sources(config)
    net = network(None)
    net.train = sources.Subset(train, [0])
    net.held_out = sources.Subset(held_out, [0])
    net.encoder = Oracle((net.train, net.held_out))
    found = segmentation.Segmentation(net.config, net).measure({})
    assert 0 <= found.scores["miou"] <= 1 and found.scores["classes_scored"] <= 9
    bare = dataclasses.make_dataclass("Bare", ["name"])("bare")
    net.train = net.held_out = bare
    with pytest.raises(ConfigError, match="needs masks"):
        segmentation.Segmentation(net.config, net)
    net.train, net.held_out = train, ShapesWorld(0, 2, 32)
    net.held_out.segment_classes = ("background",)
    with pytest.raises(ConfigError, match="other classes"):
        segmentation.Segmentation(net.config, net)


def test_raw_pixels_of_patches_are_a_floor():
    config = tiny(**{"eval.probe_steps": 4})
    images, mesh = subject.Images(config), subject.local_mesh()
    floor = subject.pixels(config, images, mesh)
    assert floor.serves("segmentation") and not floor.serves("finetune")
    drawn = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(1, 32, 32, 3)
    found = np.asarray(pixels.PatchPixels(8).apply({}, drawn))
    assert found.shape == (1, 16, 192)
    np.testing.assert_allclose(found[0, 6], drawn[0, 8:16, 16:24].ravel() / 255, rtol=1e-6)
    flat = np.full((2, 32, 32, 3), 255, np.uint8)
    boxes = pixels.PixelNetwork(config, mesh, *images.parts).pooled({}, flat)
    assert boxes.shape == (2, 768)
    np.testing.assert_allclose(boxes[1, :3], [2.249, 2.429, 2.640], atol=1e-3)
    measured, protocol = floor.measure("segmentation")
    assert 0 <= measured.scores["miou"] <= 1 and "layers" not in protocol
