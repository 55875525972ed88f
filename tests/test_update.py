"""Promises of what a step changes: AdamW as optax has it, the EMA, and nothing copied for it."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jepa_vl import objectives, sharding, tree
from jepa_vl.training import schedules
from jepa_vl.training import state as train_state
from jepa_vl.training.state import batch_spec
from jepa_vl.training.step import make_step
from jepa_vl.training.update import NO_DECAY, update
from tests.tiny import tiny

KEYS = {"optim.weight_decay": 0.1, "optim.b1": 0.8, "optim.b2": 0.95, "optim.eps": 1e-3}


@pytest.fixture(scope="module")
def begun():
    """A configuration, its objective, a state on one device, and gradients like it."""
    config = tiny(objective="ijepa", **KEYS, **{"mesh.data": 1})
    objective, mesh = objectives.build(config), sharding.make_mesh(config.mesh, jax.devices()[:1])
    state = train_state.create(config, objective, batch_spec(config), mesh)
    rng = np.random.default_rng(0)
    grads = [
        jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), state.params)
        for _ in range(4)
    ]
    return config, objective, state, grads


def updated(begun, state, grads, good):
    config, objective, *_ = begun

    def one(state, grads, good):
        now = schedules.at(config, state.step)
        rates = jax.tree.map(lambda _: 1.0, state.params)
        return update(config, objective, state, grads, good, now, rates)

    return jax.jit(one)(state, grads, jnp.asarray(good))


def test_parameters_move_as_optax_moves_them_and_the_target_follows(begun):
    config, objective, state, grads = begun
    now, o = schedules.at(config, state.step), config.optim
    decayed = tree.mask(state.params, f"^(?!.*{NO_DECAY})")
    oracle = optax.adamw(
        now.lr, o.b1, o.b2, o.eps, weight_decay=float(now.weight_decay), mask=decayed
    )
    params, target, theirs = state.params, state.target, oracle.init(state.params)
    for gradient in grads:
        moves, theirs = oracle.update(gradient, theirs, params)
        params = optax.apply_updates(params, moves)
        follows = objective.target_of(params)
        m = float(now.momentum)
        target = jax.tree.map(lambda t, p, m=m: m * t + (1 - m) * p, target, follows)
        found = updated(begun, state, gradient, True)
        params_, target_, moments = found
        state = dataclasses.replace(state, params=params_, target=target_, opt_state=moments)
    for ours, expected in ((state.params, params), (state.target, target)):
        for name, leaf in tree.flatten(ours).items():
            np.testing.assert_allclose(leaf, tree.flatten(expected)[name], atol=2e-6, err_msg=name)
    assert int(state.opt_state.count) == len(grads)


def test_a_step_that_is_not_good_changes_no_bit_whatever_its_gradients(begun):
    _, _, state, grads = begun
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), grads[0])
    found = updated(begun, state, broken, False)
    old = (state.params, state.target, state.opt_state)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(old), strict=True):
        np.testing.assert_array_equal(a, b)


def test_on_a_cpu_no_kernel_of_the_state_is_copied_before_it_is_overwritten(begun):
    """Fusions that computed new values once for each reader once needed a copy of all old ones."""
    config, objective, *_ = begun
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    like = train_state.abstract(config, objective, batch_spec(config), mesh)
    with jax.set_mesh(mesh):
        lowered = make_step(config, objective, mesh, like).lower(like, {}, batch_spec(config))
        text = lowered.compile().as_text()
    copied = re.findall(r"copy\(%(state_(?:params|target|opt_state_[mn]u)\w*)", text)
    assert [name for name in copied if "kernel" in name] == []
