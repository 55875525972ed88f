"""Mistakes that a port of these methods invites, in training and data; one test each.

The numbers are those of the project's list of traps; ``test_traps.py`` has those of the models.
"""

import io
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jepa_vl import objectives, sharding, tree
from jepa_vl.data import masking, masking_reference, pipeline, sources, transforms
from jepa_vl.evaluators.subject import Model
from jepa_vl.models import vit
from jepa_vl.models.conditioner import Reading
from jepa_vl.objectives import base, losses
from jepa_vl.objectives.tcjepa import reading_metrics
from jepa_vl.schema import VARIANTS
from jepa_vl.training import loop, online, schedules
from jepa_vl.training import state as train_state
from jepa_vl.training.step import make_step
from tests.tiny import tiny

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


class Toy:
    """An objective whose gradient is the batch: for the step around it."""

    def init(self, rng, batch):
        del rng, batch
        encoder = {
            "patch_kernel": jnp.full((1, 1, 1, 2), 0.5),
            "norm": {"scale": jnp.ones(2)},
            "fc1": {"kernel": jnp.full((2, 2), -0.3), "bias": jnp.full(2, 0.2)},
        }
        return {"encoder": encoder, "predictor": {"mask_token": jnp.ones(2)}}

    def load_initial(self):
        return {}

    def target_of(self, params):
        return params["encoder"]

    def loss(self, params, target, frozen, batch, rng, ramp):
        del frozen, rng, ramp
        value = jnp.mean(batch["pull"]) * sum(jnp.sum(x) for x in jax.tree.leaves(params))
        seen = target["norm"]["scale"][0]
        return value, {"loss": value, "target": seen}, {}


def toy(lr_scale=1.0, **overrides):
    """``advance(pull) -> metrics`` and a box with the state, for a toy of a configuration."""
    config = tiny(objective="ijepa", **{"mesh.data": 1}, **overrides)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    batch = {"pull": jnp.ones(8)}
    box = SimpleNamespace(state=train_state.create(config, Toy(), batch, mesh), config=config)
    like = train_state.abstract(config, Toy(), batch, mesh)
    step = make_step(config, Toy(), mesh, like, lr_scale)

    def advance(pull):
        with jax.set_mesh(mesh):
            box.state, metrics = step(box.state, {}, {"pull": np.full(8, pull, np.float32)})
        return {name: float(x) for name, x in metrics.items()}

    return advance, box


def leaves(part):
    return {name: np.array(x, np.float64) for name, x in tree.flatten(part).items()}


def test_trap_11_schedules_count_from_one_as_the_reference():
    """10 steps an epoch, 3 epochs, one of them warm-up."""
    values = {"steps": 30, "batch_size": 8}
    optim = {"warmup_steps": 10, "start_lr": 1e-4, "lr": 1e-3, "final_lr": 1e-6}
    config = tiny(
        **{f"train.{k}": v for k, v in values.items()},
        **{f"optim.{k}": v for k, v in optim.items()},
    )
    for t in range(1, 31):
        now = schedules.at(config, np.int32(t - 1))
        if t < 10:
            lr = 1e-4 + t / 10 * 9e-4
        else:
            lr = 1e-6 + (1e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * (t - 10) / 20))
        decay = 0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi * t / 30))
        np.testing.assert_allclose(now.lr, lr, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(now.weight_decay, decay, rtol=1e-5)
    np.testing.assert_allclose(schedules.at(config, np.int32(9)).lr, 1e-3, rtol=1e-6)


def test_trap_12_twenty_steps_equal_adamw_whose_decay_is_multiplied_by_the_learning_rate():
    advance, box = toy(**{"train.steps": 20, "optim.lr": 0.1, "optim.start_lr": 0.01})
    params = leaves(box.state.params)
    first, second = ({name: 0 * x for name, x in params.items()} for _ in range(2))
    config = box.config
    for t in range(1, 21):
        pull = math.sin(3 * t)
        now = schedules.at(config, np.int32(t - 1))
        lr, decay = float(now.lr), float(now.weight_decay)
        advance(pull)
        for name, p in params.items():
            first[name] = 0.9 * first[name] + 0.1 * pull
            second[name] = 0.999 * second[name] + 0.001 * pull**2
            update = first[name] / (1 - 0.9**t)
            update = update / (np.sqrt(second[name] / (1 - 0.999**t)) + 1e-8)
            matrix = name.endswith(("kernel", "mask_token"))
            params[name] = p - lr * update - lr * decay * p * matrix
    for name, x in leaves(box.state.params).items():
        np.testing.assert_allclose(x, params[name], rtol=2e-5, err_msg=name)


def test_trap_14_the_target_is_float32_follows_the_update_and_starts_at_the_first_momentum():
    advance, box = toy(**{"train.steps": 20, "optim.lr": 0.1, "train.dtype": "bfloat16"})
    target = leaves(box.state.target)
    for i in range(5):
        momentum = 0.996 + i * (1 - 0.996) / 20
        metrics = advance(1.0)
        assert metrics["ema_momentum"] == pytest.approx(momentum, abs=1e-7)
        assert metrics["target"] == pytest.approx(target["norm/scale"][0], rel=1e-6)
        params = leaves(box.state.params["encoder"])
        target = {n: momentum * x + (1 - momentum) * params[n] for n, x in target.items()}
        for name, x in tree.flatten(box.state.target).items():
            assert x.dtype == jnp.float32
            np.testing.assert_allclose(x, target[name], rtol=1e-6, err_msg=name)


def test_trap_13_mask_token_and_patch_kernel_decay_and_position_tables_are_no_parameters():
    advance, box = toy(**{"train.steps": 20, "optim.weight_decay": 0.4, "optim.lr": 0.1})
    start = leaves(box.state.params)
    for _ in range(10):
        advance(0.0)
    for name, x in leaves(box.state.params).items():
        shrunk = np.all(np.abs(x) < np.abs(start[name]))
        assert shrunk == name.endswith(("kernel", "mask_token")), name
    config = tiny(**{"encoder.width": 28, "encoder.image_size": 40})  # 25 tokens, as no width
    spec = train_state.batch_spec(config)
    params = jax.eval_shape(lambda b: objectives.build(config).init(KEY, b), spec)
    tokens = config.encoder.grid**2
    shapes = [x.shape for x in jax.tree.leaves((params["encoder"], params["predictor"]))]
    assert (tokens, 28) not in shapes and (tokens, config.predictor.width) not in shapes


def test_trap_16_targets_are_tokens_of_the_whole_image_normalised_before_they_are_picked():
    encoder = vit.build(tiny().encoder)
    params = encoder.init(KEY, IMAGES)["params"]
    tgt_idx = np.array([[[3, 7]], [[0, 12]]], np.int32)
    targets = np.asarray(base.encode_targets(encoder, params, IMAGES, tgt_idx))
    full = np.asarray(encoder.apply({"params": params}, IMAGES), np.float64)
    normed = (full - full.mean(-1, keepdims=True)) / np.sqrt(full.var(-1, keepdims=True) + 1e-5)
    expected = np.stack([normed[b, tgt_idx[b, 0]] for b in range(2)])
    np.testing.assert_allclose(targets[:, 0], expected, rtol=1e-3, atol=1e-4)
    alone = base.layer_norm(encoder.apply({"params": params}, IMAGES, tgt_idx[:, 0]), 1e-5)
    assert np.max(np.abs(alone - targets[:, 0])) > 1e-2


def test_trap_17_masks_of_two_hundred_steps_have_one_shape():
    for mode in ("production", "reference"):
        plan = masking.plan_masks(tiny(**{"masks.mode": mode, "masks.min_keep": 0}))
        drawn = [masking.draw(plan, 8, np.random.default_rng(step)) for step in range(200)]
        assert len({tuple((n, x.shape) for n, x in masks.items()) for masks in drawn}) == 1
        used = jax.jit(lambda masks: {name: x.sum() for name, x in masks.items()})
        for masks in drawn[:5]:
            used(masks)
        assert used._cache_size() == 1


def shares(mode, batch=32, images=1600):
    """Coverage [G, G] of context and targets on 14 x 14 patches."""
    plan = masking.plan_masks(tiny(**{"encoder.image_size": 112, "masks.mode": mode}))
    rng = np.random.default_rng(0)
    drawn = [masking.draw(plan, batch, rng) for _ in range(images // batch)]
    marked = (
        np.concatenate([masking.mark_padding(masks, name) for masks in drawn])
        for name in ("ctx", "tgt")
    )
    return masking.coverage(*marked, plan.grid)


def test_trap_18_production_masks_favour_no_side_and_reach_every_patch():
    for share in shares("production"):
        assert share.min() > 0
        rows = share.mean(1)
        np.testing.assert_allclose(rows, rows[::-1], atol=0.05)
    context, target = shares("reference")  # what is not wanted, kept under its own name
    assert context[:4].mean() > 2 * context[-4:].mean()
    assert not target[-1].any() and not target[:, -1].any() and not context[-1].any()


def test_trap_19_the_size_of_the_context_does_not_depend_on_hosts_or_batch():
    plans = [masking.plan_masks(tiny(**{"train.batch_size": size})) for size in (8, 64)]
    assert plans[0] == plans[1]
    config = tiny(**{"masks.mode": "reference", "masks.min_keep": 0, "train.batch_size": 16})
    source = sources.open_sources(config)[0]

    def counts(hosts):
        found = []
        for host in range(hosts):
            with pipeline.make_batches(config, source, 3, host, hosts) as stream:
                found.append(next(stream)["ctx_valid"].sum(-1))
        return np.unique(np.concatenate(found))

    assert len(counts(1)) == 1 and counts(1) == counts(4)


def test_trap_20_a_mean_over_unequal_parts_is_the_mean_of_all():
    mesh = sharding.make_mesh(tiny().mesh)
    place = sharding.batch_sharding(mesh)
    x = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    valid = np.arange(6) < np.random.default_rng(1).integers(1, 7, (16, 1))
    mean = jax.jit(losses.masked_mean, in_shardings=(place, place))
    found = float(mean(jax.device_put(x, place), jax.device_put(valid, place)))
    assert found == pytest.approx(x[valid].mean(), rel=1e-5)
    parts = [x[i : i + 2][valid[i : i + 2]].mean() for i in range(0, 16, 2)]
    assert abs(found - np.mean(parts)) > 1e-3


def test_trap_21_the_reference_ties_area_to_aspect_and_production_does_not():
    tied = set()
    for u in np.linspace(0, 1, 5001).tolist():
        area, aspect = int(196 * (0.15 + u * 0.05)), 0.75 + u * 0.75
        tied.add((round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))))
    reference = masking_reference.reference_sizes(14, (0.15, 0.2), (0.75, 1.5))
    assert set(reference) == tied and len(tied) == 5
    production = set(masking.block_sizes(14, (0.15, 0.2), (0.75, 1.5)))
    assert len(production) > 5 and {h > w for h, w in production} == {True, False}


def test_trap_22_hidden_widths_are_truncated_as_the_reference_does():
    width, _, _, hidden = VARIANTS["g"]
    assert hidden == int(width * 48 / 11) == 6144


def test_trap_39_dead_tokens_are_counted_for_context_and_targets():
    o = np.ones((2, 1, 1, 5, 2, 4), np.float32)  # two layers, 3 context and 2 target tokens
    o[0, ..., :3, 0, :] = 0  # caption 0 is dead for the context in one layer
    o[:, ..., 1, :] = 0  # caption 1 is missing
    batch = {"ctx_idx": np.zeros((1, 3)), "caption_mask": np.array([[True, False]])}
    found = reading_metrics(Reading(jnp.asarray(o), jnp.ones(o.shape[:-1]), jnp.zeros(())), batch)
    assert float(found["dead_share/context"]) == 0.5 and float(found["dead_share/target"]) == 0
    assert float(found["dead_share"]) == pytest.approx(0.3)
    assert float(found["attention_entropy"]) == 1


def test_trap_40_no_gradient_reaches_the_target_through_its_norm():
    encoder = vit.build(tiny().encoder)
    params = encoder.init(KEY, IMAGES)["params"]
    tgt_idx = np.array([[[1, 2]], [[3, 4]]])

    def total(p, norm):
        return jnp.sum(base.encode_targets(encoder, p, IMAGES, tgt_idx, norm) ** 2)

    for norm in base.TARGET_NORMS:
        grads = jax.jit(jax.grad(total), static_argnums=1)(params, norm)
        assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_trap_41_a_step_that_is_not_finite_is_skipped():
    advance, box = toy()
    advance(1.0)
    before, target = leaves(box.state.params), leaves(box.state.target)
    metrics = advance(math.nan)
    assert metrics["bad_steps"] == 1 and int(box.state.step) == 2
    for name, x in leaves(box.state.params).items():
        np.testing.assert_array_equal(x, before[name])
    for name, x in leaves(box.state.target).items():
        np.testing.assert_array_equal(x, target[name])
    assert advance(1.0)["bad_in_a_row"] == 0


def test_trap_42_crops_are_resized_with_antialiasing_and_fall_back_after_ten_tries():
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    box = transforms.random_box(120, 90, (0.3, 1.0), (3 / 4, 4 / 3), np.random.default_rng(5))
    crop = transforms.random_crop(image, 16, (0.3, 1.0), (3 / 4, 4 / 3), np.random.default_rng(5))
    left, top, right, bottom = box
    part = Image.fromarray(image[top:bottom, left:right])
    expected = part.resize((16, 16), Image.Resampling.BILINEAR)
    # To its very edge: what lies around a crop is cut away before it is resized.
    np.testing.assert_array_equal(crop, np.asarray(expected))
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    args = (16, (0.3, 1.0), (3 / 4, 4 / 3), np.random.default_rng(5))
    np.testing.assert_array_equal(transforms.random_crop(png.getvalue(), *args), crop)
    assert crop.std() < 0.5 * image.std()  # noise is averaged, not sampled
    rng = np.random.default_rng(0)
    assert transforms.random_box(1000, 10, (0.9, 1.0), (3 / 4, 4 / 3), rng) == (493, 0, 506, 10)


def test_trap_43_images_are_never_flipped():
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (60, 60, 3))
    for seed in range(40):
        rng = np.random.default_rng(seed)
        crop = transforms.random_crop(ramp, 8, (0.3, 1.0), (3 / 4, 4 / 3), rng).astype(int)
        assert (np.diff(crop[..., 0], axis=1) > 0).all()


def test_trap_44_what_is_evaluated_is_the_target_encoder():
    seen = []
    run = loop.Run.__new__(loop.Run)
    run.of_data = {}
    run.config, run.total = tiny(), 6
    run.state = SimpleNamespace(params="online", target="target")
    run.health = SimpleNamespace(run=lambda state: {})
    run.online = online.Online.__new__(online.Online)
    run.online.model = Model(None, {}, objectives.build(run.config))
    run.online.knn = SimpleNamespace(run=lambda weights: seen.append(weights) or {"knn": 0.5})
    run.online.tasks, run.online.say = (), lambda text: None
    run.online.bench = SimpleNamespace(subject=lambda name, weights: None)
    assert run.examine(6) == {"knn/target": 0.5} and seen == ["target"]
