"""What features know of a frozen encoder: the fit against scikit-learn, and known answers."""

import jax
import numpy as np
import pytest

from jepa_vl import sharding
from jepa_vl.config import ConfigError
from jepa_vl.data import sources
from jepa_vl.evaluators import reference
from jepa_vl.evaluators.network import Network
from jepa_vl.models import intake
from tests.tiny import tiny

ZOO = "zoo:tcjepa-shapes"  # 64 pixels, 8 x 8 patches
DATA = {
    "encoder.image_size": 64, "encoder.patch_size": 8, "masks.context_tokens": 24,
    "data.train_size": 40, "eval.train_images": 40, "eval.val_images": 11, "eval.batch_size": 16,
    "eval.reference": ZOO,
}  # fmt: skip


def rows(count, width, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(1, [1, 5, 0.1, 2], (count, 3, 4)).astype(np.float32)
    y = np.tanh(x @ np.random.default_rng(9).normal(size=(4, width)))
    return x, (y + rng.normal(size=y.shape)).astype(np.float32)


@pytest.mark.parametrize("l2", [1e-3, 0.5])
def test_the_fit_and_its_loss_are_scikit_learns_ridge_on_scaled_features(l2):
    linear_model = pytest.importorskip("sklearn.linear_model")
    (x, y), (u, v) = rows(50, 6, 0), rows(7, 6, 1)
    parts = [reference.Moments.of(x[a:b], y[a:b]) for a, b in ((0, 20), (20, 50))]
    line = reference.Fit(parts[0].plus(parts[1])).at(l2)
    flat = x.reshape(-1, 4).astype(np.float64)
    mean, scale = flat.mean(0), flat.std(0)
    theirs = linear_model.Ridge(alpha=l2 * len(flat)).fit((flat - mean) / scale, y.reshape(-1, 6))
    expected = theirs.predict((u.reshape(-1, 4) - mean) / scale).reshape(v.shape)
    errors = np.mean((expected - v) ** 2, axis=(1, 2))
    np.testing.assert_allclose(line.errors(u, v), errors, rtol=1e-9)
    assert line.loss(reference.Moments.of(u, v)) == pytest.approx(errors.mean(), rel=1e-9)


def network(encoder, devices=1, **values):
    config = tiny(**{**DATA, **values})
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    return Network(config, encoder, mesh, *sources.open_sources(config))


class Noise:
    """Features that have nothing to do with the image."""

    def apply(self, variables, images):
        return jax.random.normal(jax.random.key(0), (len(images), 64, 5))


def test_the_reference_foretells_itself_and_noise_foretells_nothing():
    source = intake.open_source(ZOO, "test")
    module = intake.build(source)
    net = network(module)
    found = reference.Reference(net.config, net).measure(intake.load(source, module))
    assert found.scores["r2"] > 0.99  # a LayerNorm lies between
    low, high = found.ci["loss"]
    assert low <= found.scores["loss"] <= high < 0.02
    assert 0.05 < found.baselines["mean"]["loss"] < 1.1  # of a LayerNorm's output, less its mean
    net = network(Noise())
    noise = reference.Reference(net.config, net).measure({})
    assert abs(noise.scores["r2"]) < 0.02


def test_numbers_are_the_same_for_all_batches_and_devices():
    from jepa_vl.evaluators.pixels import PatchPixels

    found = []
    for size, devices in ((7, 1), (64, 1), (16, 8)):
        net = network(PatchPixels(8), devices, **{"eval.batch_size": size})
        found.append(reference.Reference(net.config, net).measure({}))
    assert 0.01 < found[0].scores["r2"] < 0.5  # pixels know something, and not much
    for other in found[1:]:
        for name, value in found[0].scores.items():
            assert other.scores[name] == pytest.approx(value, rel=1e-4), name


def test_another_patch_is_read_at_the_size_that_gives_as_many():
    from jepa_vl.evaluators.pixels import PatchPixels

    net = network(PatchPixels(16), **{"encoder.patch_size": 16, "masks.context_tokens": 6})
    found = reference.Reference(net.config, net)
    assert "4 x 4 patches" in found.protocol["reference"]
    assert 0.01 < found.measure({}).scores["r2"] < 0.5


@pytest.mark.parametrize(("values", "named"), [
    ({"eval.reference": ""}, "eval.reference = '': the task reference needs an encoder"),
    ({"eval.reference": "zoo:tcjepa-shape"}, "eval.reference = 'zoo:tcjepa-shape': one of"),
    ({"eval.reference": "/nowhere"}, "eval.reference = '/nowhere': no such folder"),
    ({"eval.train_images": 4}, "eval.train_images = 4: the task reference needs 5"),
])  # fmt: skip
def test_what_cannot_be_measured_is_one_clear_line(values, named):
    net = network(Noise(), **values)
    with pytest.raises(ConfigError, match=named):
        reference.Reference(net.config, net).measure({})
