"""Loops over layers and recomputed activations change how a step runs, not what it computes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl import objectives, tree
from jepa_vl.models import predictor, vit
from jepa_vl.models.conditioner import Reading
from jepa_vl.models.layers import Block
from jepa_vl.models.stack import POLICIES, in_place
from jepa_vl.training import state as train_state
from jepa_vl.training.step import gradients
from tests.test_step import batches
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")

DEEP = {"encoder.depth": 3, "predictor.depth": 3, "text.depth": 2, "tijepa.depth": 2}
WAYS = [(True, "none"), (False, "dots"), (True, "full")]


def config_of(objective, **overrides):
    return tiny(objective=objective, **(DEEP | overrides))


def gradient(config, state, feed):
    objective = objectives.build(config)
    frozen = objective.load_frozen()
    found = jax.jit(lambda s, f, b: gradients(config, objective, s, f, b))(state, frozen, feed)
    return tree.flatten(found[0]) | {"loss": found[1]["loss"]}


def first_state(config, feed):
    objective = objectives.build(config)
    return jax.jit(lambda b: train_state._init(config, objective, b))(feed)


def arrays(config):
    names = train_state.batch_spec(config)
    return {name: array for name, array in batches(config, 1)[0].items() if name in names}


def changed(config, scan, remat):
    train = dataclasses.replace(config.train, scan_layers=scan, remat=remat)
    return dataclasses.replace(config, train=train)


def assert_close(got, wanted):
    assert got.keys() == wanted.keys()
    for name in wanted:
        if name.endswith("attn/k/bias"):  # exactly 0, as softmax is blind to it: rounding alone
            assert np.abs(got[name]).max() < 1e-7
            continue
        scale = np.abs(wanted[name]).max() + 1e-6
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5, atol=1e-5 * scale)


LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("tijepa", "crossmodal")]


@pytest.mark.parametrize("objective", ["tcjepa", "ijepa", *LONG, "contrastive"])
def test_loops_and_recomputation_leave_loss_and_gradients_as_they_are(objective):
    config = config_of(objective)
    feed = arrays(config)
    state = first_state(config, feed)
    plain = gradient(config, state, feed)
    for way in WAYS:
        assert_close(gradient(changed(config, *way), state, feed), plain)


def test_equal_layers_are_traced_once(monkeypatch):
    """Of a step of ViT-S, tracing took 2 s, and half of that where each layer was traced."""
    config, traced = config_of("ijepa"), []
    plain = Block.__call__
    monkeypatch.setattr(
        Block, "__call__", lambda self, x, *args: (traced.append(x.shape), plain(self, x, *args))[1]
    )
    objective, spec = objectives.build(config), train_state.batch_spec(config)
    state = train_state.shapes(config, objective, spec)
    traced.clear()  # the initialisation goes through all of them
    jax.make_jaxpr(lambda s, b: gradients(config, objective, s, {}, b))(state, spec)
    # Target, context encoder, predictor, and its last layer, which keeps the targets alone.
    assert len(traced) == 4


def test_flax_captures_what_each_layer_gives():
    """``capture_intermediates`` sees layers by their names, though a step traces one for all."""
    config = config_of("ijepa")
    encoder = vit.build(config.encoder)
    image = jnp.zeros((1, config.encoder.image_size, config.encoder.image_size, 3))
    params = encoder.init(jax.random.key(0), image)
    _, seen = encoder.apply(params, image, capture_intermediates=True)
    blocks = {name for name in seen["intermediates"] if name.startswith("block_")}
    assert blocks == {f"block_{i}" for i in range(config.encoder.depth)}


@pytest.mark.parametrize(
    "overrides",
    [
        {"conditioner.layers": "one"},
        {"conditioner.kind": "adaln"},
        {"conditioner.kind": "sequence"},
        {"masks.mode": "reference", "masks.min_keep": 0},
        {"loss.contrast": 1.0, "loss.contrast_images": 3, "text.dropout": 0.5},
    ],
    ids=lambda o: next(iter(o.items()))[1],
)
def test_every_conditioner_runs_in_a_loop(overrides):
    config = config_of("tcjepa", **overrides)
    feed = arrays(config)
    state = first_state(config, feed)
    plain = gradient(config, state, feed)
    assert_close(gradient(changed(config, True, "full"), state, feed), plain)


def traced(config):
    objective, spec = objectives.build(config), train_state.batch_spec(config)
    state = train_state.shapes(config, objective, spec)
    step = jax.make_jaxpr(lambda s, b: gradients(config, objective, s, {}, b))
    return str(step(state, spec))


def test_a_loop_holds_one_layer_and_a_policy_marks_what_is_kept():
    config = config_of("tcjepa", **{"encoder.depth": 6})
    with in_place():  # else equal layers share what was traced of one
        plain = traced(config)
    assert " scan[" not in plain and "remat" not in plain
    looped = traced(changed(config, True, "none"))
    assert " scan[" in looped and len(looped) < 0.75 * len(plain)
    for name in POLICIES:
        assert "remat" in traced(changed(config, False, name))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_a_stack_of_layers_holds_of_a_reading_comes_out_in_its_place(dtype):
    rng = np.random.default_rng(3)
    layers = rng.uniform(0.1, 1.0, (2, 2, 2, 5, 3, 4)).astype(np.float32)
    nothing = jnp.zeros(2)
    held = [predictor.kept(Reading(jnp.asarray(o), nothing, nothing), dtype) for o in layers]
    assert held[0].similarity.shape == (2, 10, 3, 4) and held[0].similarity.dtype == dtype
    out = predictor.apart(jax.tree.map(lambda *parts: jnp.stack(parts), *held), 2)
    assert out.similarity.dtype == jnp.float32
    relative = 0.0 if dtype == jnp.float32 else 2.0**-8  # half a step of its 8 digits
    np.testing.assert_allclose(out.similarity, layers, rtol=relative)
