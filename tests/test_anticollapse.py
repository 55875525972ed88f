"""The terms against collapse: formulas, what each sees, and one value on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.config import ConfigError
from jepa_vl.models import vit
from jepa_vl.models.layers import LayerNorm
from jepa_vl.objectives import anticollapse
from jepa_vl.schema import AntiCollapseConfig
from jepa_vl.training import state as train_state
from tests.tiny import tiny

KEY = jax.random.key(0)
EVERY = AntiCollapseConfig(variance=1.0, covariance=0.5, rank=2.0, sigreg=0.1)


def features(images=64, width=6, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(images, width)) @ rng.normal(size=(width, width))).astype(np.float32)


def test_variance_and_covariance_are_those_of_vicreg():
    x = features() * 0.4
    std = np.sqrt(x.astype(np.float64).var(axis=0, ddof=1) + 1e-4)
    assert (std < 1).any() and (std > 1).any()
    expected = np.maximum(0, 1 - std).mean()
    np.testing.assert_allclose(anticollapse.variance(x, KEY), expected, rtol=1e-5)
    matrix = np.cov(x.T.astype(np.float64))
    off = (matrix**2).sum() - (np.diag(matrix) ** 2).sum()
    np.testing.assert_allclose(anticollapse.covariance(x, KEY), off / 6, rtol=1e-5)


def test_rank_is_the_inverse_participation_ratio_of_the_eigenvalues_and_blind_to_scale():
    x = features()
    values = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64)))
    expected = (values**2).sum() / values.sum() ** 2
    for scale in (1, 100):
        np.testing.assert_allclose(anticollapse.rank(scale * x + 7, KEY), expected, rtol=1e-4)
    line = np.outer(np.arange(8.0), np.ones(5)).astype(np.float32)
    np.testing.assert_allclose(anticollapse.rank(line, KEY), 1, rtol=1e-5)


def test_epps_pulley_equals_its_closed_form():
    """The integral over all t, term by term: Gaussians of sums and differences of the samples."""
    rng = np.random.default_rng(1)
    x = np.stack([rng.normal(size=50), 0.3 * rng.normal(size=50) + 1], axis=1)
    expected = []
    for column in x.T:
        pairs = np.exp(-0.5 * (column[:, None] - column) ** 2).mean()
        singles = np.exp(-0.25 * column**2).mean() / np.sqrt(2)
        expected.append(50 * np.sqrt(2 * np.pi) * (pairs - 2 * singles + 1 / np.sqrt(3)))
    ours = anticollapse.epps_pulley(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(ours, expected, rtol=1e-3)


def test_sigreg_is_small_for_an_isotropic_gaussian_and_large_for_what_is_not():
    x = np.random.default_rng(2).normal(size=(512, 8)).astype(np.float32)
    gaussian = float(anticollapse.sigreg(jnp.asarray(x), KEY))
    others = {
        "collapsed": 0 * x,
        "shifted": x + 1,
        "too wide": 3 * x,
        "on a line": x[:, :1] * np.ones(8, np.float32),
    }
    assert gaussian < 1
    for name, y in others.items():
        assert float(anticollapse.sigreg(jnp.asarray(y), KEY)) > 20 * gaussian, name


def test_sigreg_draws_new_directions_with_each_key():
    x = jnp.asarray(features())
    values = [float(anticollapse.sigreg(x, jax.random.key(i))) for i in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_terms_without_weight_are_not_computed():
    stream = jnp.asarray(features()).reshape(16, 4, 6)
    total, metrics = anticollapse.penalty(AntiCollapseConfig(), stream, None, KEY)
    assert float(total) == 0 and metrics == {}
    total, metrics = anticollapse.penalty(AntiCollapseConfig(rank=3.0), stream, None, KEY)
    assert list(metrics) == ["anticollapse/rank"]
    np.testing.assert_allclose(total, 3 * metrics["anticollapse/rank"])


def test_tokens_are_averaged_over_an_image_and_padding_does_not_count():
    stream = features(48).reshape(16, 3, 6)
    valid = np.arange(3) < np.array([[2], [3]] * 8)
    garbage = np.where(valid[..., None], stream, 50.0).astype(np.float32)
    pooled = np.stack([row[keep].mean(0) for row, keep in zip(stream, valid, strict=True)])
    _, metrics = anticollapse.penalty(EVERY, jnp.asarray(garbage), valid, KEY)
    for name, term in anticollapse.TERMS.items():
        expected = term(jnp.asarray(pooled), KEY)
        np.testing.assert_allclose(metrics[f"anticollapse/{name}"], expected, rtol=1e-4)


def test_tokens_that_differ_by_position_alone_count_as_collapsed():
    by_position = np.random.default_rng(3).normal(size=(1, 9, 6)).astype(np.float32)
    stream = jnp.asarray(np.repeat(by_position, 16, axis=0))
    _, metrics = anticollapse.penalty(EVERY, stream, None, KEY)
    np.testing.assert_allclose(metrics["anticollapse/variance"], 0.99, atol=1e-3)
    tokens = jnp.asarray(by_position[0])
    assert float(anticollapse.variance(tokens, KEY)) < 0.7  # seen one by one they look apart


def test_the_stream_is_what_the_final_norm_receives():
    encoder = vit.build(tiny().encoder)
    images = np.random.default_rng(4).normal(size=(2, 32, 32, 3)).astype(np.float32)
    ctx_idx = np.array([[0, 4, 9], [1, 2, 3]], np.int32)
    params = encoder.init(KEY, images)["params"]
    out, stream = vit.encode_with_stream(encoder, params, images, ctx_idx)
    np.testing.assert_array_equal(out, encoder.apply({"params": params}, images, ctx_idx))
    np.testing.assert_allclose(
        out, LayerNorm().apply({"params": params["norm"]}, stream), rtol=1e-5, atol=1e-6
    )
    assert float(jnp.max(jnp.abs(out - stream))) > 1e-2


def test_value_and_gradient_on_eight_devices_are_those_on_one():
    stream = features(96, 8).reshape(16, 6, 8)
    value = jax.value_and_grad(lambda x: anticollapse.penalty(EVERY, x, None, KEY)[0])

    def on(devices):
        mesh = sharding.make_mesh(tiny().mesh, jax.devices()[:devices])
        place = sharding.batch_sharding(mesh)
        with jax.set_mesh(mesh):
            placed = jax.device_put(stream, place)
            assert len(placed.sharding.device_set) == devices
            return jax.jit(value, in_shardings=place)(placed)

    (one, one_grad), (eight, eight_grad) = on(1), on(8)
    np.testing.assert_allclose(one, eight, rtol=1e-6)
    np.testing.assert_allclose(one_grad, eight_grad, rtol=1e-4, atol=1e-6)
    # Not the mean of what each device would find in its own two images.
    parts = [anticollapse.penalty(EVERY, stream[i : i + 2], None, KEY)[0] for i in range(0, 16, 2)]
    assert abs(float(np.mean(parts)) - float(eight)) > 0.1


@pytest.mark.parametrize("objective", ["ijepa", "tcjepa"])
def test_the_terms_enter_the_loss_with_their_weights(objective):
    weights = {"variance": 2.0, "covariance": 0.5, "rank": 3.0, "sigreg": 0.25}
    keys = {f"anticollapse.{name}": weight for name, weight in weights.items()}
    keys |= {"loss.regulariser": "off", "predictor.depth": 1}
    config = tiny(objective=objective, **keys)
    built = objectives.build(config)
    spec = train_state.batch_spec(config)

    def metrics_of(key):
        batch = {name: jnp.ones(x.shape, x.dtype) for name, x in spec.items()}
        images = jax.random.bits(key, batch["image"].shape, jnp.uint8)
        batch["image"] = images
        params = built.init(key, batch)
        return built.loss(params, params["encoder"], {}, batch, key, jnp.ones(()))[1]

    metrics = jax.jit(metrics_of)(KEY)
    added = sum(w * float(metrics[f"anticollapse/{name}"]) for name, w in weights.items())
    assert added > 1
    expected = float(metrics["loss/predict"]) + added
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(anticollapse.TERMS))
def test_a_negative_weight_is_refused(name):
    with pytest.raises(ConfigError) as caught:
        tiny(**{f"anticollapse.{name}": -1.0})
    assert caught.value.key == f"anticollapse.{name}"
