"""Diagnostics: what they compute, and that they compile once."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.data import sources
from jepa_vl.evaluators import features
from jepa_vl.evaluators.knn import OnlineKnn
from jepa_vl.training import state as train_state
from jepa_vl.training.health import Health, to_device
from tests.tiny import tiny


class Parts:
    """What the loop builds, for a fresh state."""

    def __init__(self, config, devices=8):
        self.objective = objectives.build(config)
        self.mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
        spec = train_state.batch_spec(config)
        self.state = train_state.create(config, self.objective, spec, self.mesh)
        train, held_out = sources.open_sources(config)
        encode = features.make_encode(self.objective.encoder, self.mesh)
        self.health = Health(config, self.objective, {}, self.mesh, held_out, encode)
        self.knn = OnlineKnn(config, encode, train, held_out)


@pytest.fixture(scope="module")
def parts():
    return Parts(tiny())


@pytest.fixture(scope="module")
def compiled_and_found(parts):
    """Names of the programs compiled by two rounds of diagnostics and kNN, and the diagnostics."""
    names = []

    class Listener(logging.Handler):
        def emit(self, record):
            message = record.getMessage()
            if message.startswith("Compiling jit("):
                names.append(message.split("(")[1].split(")")[0])

    listener, logger = Listener(), logging.getLogger("jax")
    logger.addHandler(listener)
    jax.config.update("jax_log_compiles", True)
    found = parts.health.run(parts.state)
    parts.knn.run(parts.state.target)
    with jax.set_mesh(parts.mesh):  # as within the loop
        assert parts.health.run(parts.state) == found
        parts.knn.run(parts.state.target)
    jax.config.update("jax_log_compiles", False)
    logger.removeHandler(listener)
    return names, found


def test_diagnostics_and_knn_share_one_compilation_of_the_encoder(compiled_and_found):
    names, _ = compiled_and_found
    assert [names.count(name) for name in ("pool", "gradient_norm", "drift")] == [1, 1, 1]


def test_the_gradient_ratio_is_that_of_the_regularisers_at_full_ramp(parts, compiled_and_found):
    batch = to_device(parts.health.batches[0], parts.mesh)

    def gradient(ramp):
        def loss(params):
            target, key = parts.state.target, jax.random.key(0)
            return parts.objective.loss(params, target, {}, batch, key, jnp.float32(ramp))[0]

        return jax.jit(jax.grad(loss))(parts.state.params)

    with jax.set_mesh(parts.mesh):
        full, plain = gradient(1.0), gradient(0.0)
    norm = optax.tree.norm
    expected = norm(jax.tree.map(jnp.subtract, full, plain)) / norm(plain)
    ratio = compiled_and_found[1]["regulariser_gradient_ratio"]
    np.testing.assert_allclose(ratio, expected, rtol=1e-3)


def test_a_fresh_state_has_no_drift_and_one_encoder(compiled_and_found):
    found = compiled_and_found[1]
    assert found["ema_drift"] == 0
    assert found["rankme/target"] == found["rankme/context"] >= 1
    assert found["rankme_images"] == 8


def test_every_branch_is_measured(compiled_and_found):
    found = compiled_and_found[1]
    branches = {f"{name}/{branch}" for name in ("rankme", "effective_rank", "std", "cosine")
                for branch in ("context", "target", "predictor")}  # fmt: skip
    more = {"unexplained", "dead_share", "attention_entropy", "text_gain", "text_gain_noise"}
    assert branches | more < found.keys()
    assert 0 <= found["attention_entropy"] <= 1 and found["text_gain_noise"] > 0
    assert found["unexplained"] > 1  # an untrained predictor is worse than the mean


def test_one_device_finds_the_same_numbers_as_eight(compiled_and_found, quick_compilation):
    one = Parts(tiny(**{"mesh.data": 1}), devices=1)
    found = one.health.run(one.state)
    assert found.keys() == compiled_and_found[1].keys()
    rounding = 1e-6 * found["held_out_loss"]  # of the text gain, a difference of two such losses
    for name, value in compiled_and_found[1].items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=rounding), name
