"""What protocols with parts of their own read of an encoder."""

import jax
import numpy as np
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.config import ConfigError
from jepa_vl.data import sources
from jepa_vl.evaluators.network import Network
from jepa_vl.training import state as train_state
from tests.tiny import tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def parameters():
    config = tiny(**{"encoder.depth": 2})
    objective = objectives.build(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    state = train_state.create(config, objective, train_state.batch_spec(config), mesh)
    return config, objective.encoder, jax.device_get(state.target)


def network(parameters, devices: int) -> Network:
    config, encoder, _ = parameters
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    return Network(config, encoder, mesh, *sources.open_sources(config))


def test_tokens_are_those_of_the_encoder_on_any_mesh_and_pooled_ones_their_mean(parameters):
    _, encoder, params = parameters
    expected = np.asarray(encoder.apply({"params": params}, IMAGES))
    for devices in (1, 8):  # five images on eight devices
        net = network(parameters, devices)
        tokens = net.tokens(params, IMAGES)
        assert tokens.shape == (5, 16, 32) and tokens.dtype == np.float32
        np.testing.assert_allclose(tokens, expected, atol=1e-5)
        np.testing.assert_allclose(net.pooled(params, IMAGES), tokens.mean(axis=1), atol=1e-5)
        both = net.tokens(params, IMAGES, layers=2)
        np.testing.assert_allclose(both[..., 32:], expected, atol=1e-5)


def test_more_layers_than_there_are_is_one_line(parameters):
    net = network(parameters, 1)
    with pytest.raises(ConfigError, match="at most 2"):
        net.tokens(parameters[2], IMAGES, layers=3)


def test_the_labelled_images_are_drawn_once(parameters):
    net = network(parameters, 1)
    assert net.labelled is net.labelled
    assert net.labelled.describe()["train"]["images"] == 32
