"""Our I-JEPA against the numbers of the public reference: six full training steps, float32."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jepa_vl import objectives, sharding, tree
from jepa_vl.config import defaults, resolve
from jepa_vl.models.layers import sincos_table
from jepa_vl.objectives import base
from jepa_vl.training import schedules
from jepa_vl.training import state as train_state
from jepa_vl.training.step import make_step
from tests import torch_names
from tests.shared import shared

DEPTH, PREDICTOR_DEPTH, STEPS = 3, 2, 6


@pytest.fixture(scope="module")
def golden():
    return np.load(shared("golden/ijepa_train.npz"))


@pytest.fixture(scope="module")
def config(golden):
    meta = json.loads(str(golden["meta_json"]))
    c = defaults()
    c.objective = "ijepa"
    c.encoder.update(image_size=meta["img"], patch_size=meta["patch"], width=meta["dim"])
    c.encoder.update(depth=meta["depth"], heads=meta["heads"])
    c.predictor.update(width=meta["predictor_dim"], depth=meta["predictor_depth"])
    c.optim.update(lr=meta["ref_lr"], start_lr=meta["start_lr"], final_lr=meta["final_lr"])
    c.optim.update(weight_decay=meta["wd"], final_weight_decay=meta["final_wd"])
    c.optim.update(ema=meta["ema"][0], final_ema=meta["ema"][1])
    c.optim.update(schedule_scale=meta["ipe_scale"])
    c.optim.warmup_steps = meta["warmup"] * meta["iterations_per_epoch"]
    c.train.update(steps=meta["steps"], batch_size=meta["batch"])
    c.mesh.data = 1
    return resolve(c)


def weights(golden, prefix):
    return {k[len(prefix) :]: golden[k] for k in golden.files if k.startswith(prefix)}


def our_params(golden, stage):
    """The reference's weights (or gradients) of a stage, in our layout."""
    return {
        "encoder": torch_names.encoder(weights(golden, f"{stage}/encoder/"), DEPTH),
        "predictor": torch_names.predictor(weights(golden, f"{stage}/predictor/"), PREDICTOR_DEPTH),
    }


def batch_of(golden, step):
    targets = [golden[f"step{step}/target_index_{i}"] for i in range(4)]
    return {
        "image": golden[f"step{step}/images_nchw"].transpose(0, 2, 3, 1),
        "ctx_idx": golden[f"step{step}/context_index_0"].astype(np.int32),
        "tgt_idx": np.stack(targets, axis=1).astype(np.int32),
    }


def assert_close(ours, reference, rtol, name=""):
    """Largest difference over the reference's largest magnitude."""
    scale = np.max(np.abs(reference))
    error = np.max(np.abs(np.asarray(ours) - reference)) / scale
    assert error <= rtol, f"{name}: relative error {error:.2e} > {rtol}"


def assert_trees_close(ours, reference, rtol, rounding):
    """All leaves to rtol; biases of keys to ``rounding``, absolute.

    A constant added to all keys leaves the softmax unchanged, so the exact gradient of a key bias
    is 0. What both codes compute there is rounding (about 1e-11), and Adam divides it by its
    epsilon.
    """
    left, right = tree.flatten(ours), tree.flatten(reference)
    assert left.keys() == right.keys()
    for name in left:
        if name.endswith("attn/k/bias"):
            assert np.max(np.abs(np.asarray(left[name]) - right[name])) <= rounding, name
        else:
            assert_close(left[name], right[name], rtol, name)


def image_major(array, blocks=4):
    """The reference concatenates blocks on the batch axis: [M * B, ...] -> [B, M, ...]."""
    return array.reshape(blocks, -1, *array.shape[1:]).swapaxes(0, 1)


def test_position_tables_equal_the_references(golden):
    assert_close(sincos_table(48, 8), golden["init/encoder/pos_embed"][0], 1e-7)
    assert_close(sincos_table(24, 8), golden["init/predictor/predictor_pos_embed"][0], 1e-7)


def test_encoder_predictor_loss_and_gradients_equal_the_references(golden, config):
    objective = objectives.build(config)
    params, batch = our_params(golden, "init"), batch_of(golden, 0)
    with jax.default_matmul_precision("highest"):
        encode = objective.encoder.apply
        full = encode({"params": params["encoder"]}, batch["image"])
        context = encode({"params": params["encoder"]}, batch["image"], batch["ctx_idx"])
        targets = base.encode_targets(
            objective.encoder, params["encoder"], batch["image"], batch["tgt_idx"]
        )

        def loss(p):
            value, _, aux = objective.loss(
                p, params["encoder"], {}, batch, jax.random.key(0), np.float32(1)
            )
            return value, aux

        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
    assert_close(full, golden["step0/target_encoder_full"], 1e-5, "full")
    assert_close(context, golden["step0/context_encoder_out"], 1e-5, "context")
    assert_close(targets, image_major(golden["step0/targets"]), 1e-5, "targets")
    assert_close(aux["prediction"], image_major(golden["step0/prediction"]), 1e-5, "prediction")
    assert_close(value, golden["step0/loss"], 1e-5, "loss")
    assert_trees_close(grads, our_params(golden, "step0/grad"), 1e-5, rounding=1e-10)


def test_schedules_equal_the_references(golden, config):
    for step in range(STEPS):
        now = schedules.at(config, np.int32(step))
        assert_close(now.lr, golden[f"step{step}/lr"], 1e-5, "lr")
        assert_close(now.weight_decay, golden[f"step{step}/wd"], 1e-5, "weight decay")
        assert_close(now.momentum, golden[f"step{step}/ema"], 1e-6, "momentum")


@pytest.mark.slow
def test_six_training_steps_equal_the_references(golden, config):
    objective, mesh = objectives.build(config), sharding.make_mesh(config.mesh, jax.devices()[:1])
    like = train_state.abstract(config, objective, batch_of(golden, 0), mesh)
    params = our_params(golden, "init")
    state = train_state.create(config, objective, batch_of(golden, 0), mesh)
    place = lambda new, old: jax.device_put(new, old.sharding)  # noqa: E731
    state = dataclasses.replace(
        state,
        params=jax.tree.map(place, params, state.params),
        target=jax.tree.map(place, params["encoder"], state.target),
    )
    step = make_step(config, objective, mesh, like)
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        for i in range(STEPS):
            state, metrics = step(state, {}, batch_of(golden, i))
            assert_close(metrics["loss"], golden[f"step{i}/loss"], 1e-5, f"loss of step {i}")
    reference = our_params(golden, "final")
    # Six updates of at most lr * |1e-11| / 1e-8 each, on either side.
    assert_trees_close(state.params, reference, 1e-5, rounding=6e-6)
    target = torch_names.encoder(weights(golden, "final/target_encoder/"), DEPTH)
    assert_trees_close(state.target, target, 1e-5, rounding=6e-6)
