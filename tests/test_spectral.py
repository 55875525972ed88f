"""Spectra and spreads against numpy, on features whose answer is known."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import inv, sqrtm

from jepa_vl.evaluators import spectral
from jepa_vl.objectives.base import Predicted
from jepa_vl.training import explained

RNG = np.random.default_rng(0)
GAUSSIAN = RNG.normal(size=(4000, 8)).astype(np.float32)
CONSTANT = np.full((64, 8), 0.3, np.float32)
RANK_2 = (RNG.normal(size=(500, 2)) @ RNG.normal(size=(2, 8)) + 5.0).astype(np.float32)


def entropy_rank(values):
    share = values[values > 0] / values.sum()
    return np.exp(-np.sum(share * np.log(share)))


def test_constant_features_have_no_rank_no_spread_and_one_direction():
    assert spectral.rankme(CONSTANT) == pytest.approx(1, abs=1e-4)
    assert spectral.effective_rank(CONSTANT) == spectral.spread(CONSTANT) == 0
    assert spectral.mean_cosine(CONSTANT) == pytest.approx(1)
    rounded = CONSTANT + 1e-8 * RNG.normal(size=CONSTANT.shape)  # what float32 leaves
    assert spectral.effective_rank(rounded) == 0


def test_an_isotropic_gaussian_fills_all_dimensions():
    assert spectral.rankme(GAUSSIAN) == pytest.approx(8, rel=1e-3)
    assert spectral.effective_rank(GAUSSIAN) == pytest.approx(8, rel=1e-3)
    assert spectral.spread(GAUSSIAN) == pytest.approx(1, rel=0.02)
    assert spectral.mean_cosine(GAUSSIAN) == pytest.approx(0, abs=0.01)


def test_features_of_rank_k_have_an_effective_rank_of_at_most_k_whatever_their_mean():
    assert spectral.effective_rank(RANK_2) <= 2 + 1e-6
    assert spectral.effective_rank(RANK_2 + 100.0) == pytest.approx(
        spectral.effective_rank(RANK_2), rel=1e-3
    )
    assert spectral.rankme(RANK_2 - RANK_2.mean(0)) < 2.01


def test_the_numbers_are_those_of_their_formulas():
    x = (GAUSSIAN[:200] * np.arange(1, 9) + 2).astype(np.float64)
    values = np.linalg.svd(x, compute_uv=False)
    share = values / values.sum() + 1e-7
    assert spectral.rankme(x) == pytest.approx(np.exp(-np.sum(share * np.log(share))))
    centred = np.sqrt(np.linalg.eigvalsh(np.cov(x.T)))
    assert spectral.effective_rank(x) == pytest.approx(entropy_rank(centred))
    assert spectral.spread(x) == pytest.approx(np.mean(np.std(x, axis=0)))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[np.triu_indices(200, 1)]
    assert spectral.mean_cosine(x) == pytest.approx(pairs.mean())


def views(between, within, n=400, q=10):
    """[n, q, D]: standard deviations by dimension, of images and of the views of one."""
    rng, width = np.random.default_rng(1), len(between)
    noise = rng.normal(size=(n, q, width)) * within
    return rng.normal(size=(n, 1, width)) * between + noise


def test_lidar_is_the_rank_of_the_lda_matrix():
    x = views(np.linspace(0.2, 2, 6), np.linspace(1, 0.1, 6))
    means = x.mean(axis=1)
    inner = x - means[:, None]
    within = np.einsum("nqi,nqj->ij", inner, inner) / (400 * 10) + 1e-4 * np.eye(6)
    root = inv(np.real(sqrtm(within)))
    values = np.linalg.eigvalsh(root @ np.cov(means.T, bias=True) @ root)
    assert spectral.lidar(x) == pytest.approx(entropy_rank(values), rel=1e-4)


def test_lidar_does_not_count_directions_that_tell_crops_apart_and_not_images():
    told, untold = [1.0] * 3 + [0.0] * 5, [0.05] * 3 + [3.0] * 5
    x = views(np.array(told), np.array(untold))
    assert spectral.lidar(x) == pytest.approx(3, rel=0.05)
    assert spectral.rankme(x.reshape(-1, 8)) > 6
    assert spectral.lidar(np.ones((20, 4, 8))) == pytest.approx(1, abs=1e-4)


def predicted(prediction, targets, valid):
    distance = np.linalg.norm(prediction - targets, axis=-1)
    return Predicted(*map(jnp.asarray, (prediction, targets)), valid, jnp.asarray(distance))


def test_what_is_unexplained_is_the_error_over_that_of_the_mean_target():
    shape = (12, 2, 5, 8)
    targets = RNG.normal(size=shape).astype(np.float32) + 3.0
    prediction = targets + 0.5 * RNG.normal(size=shape).astype(np.float32)
    valid = RNG.random(shape[:3]) < 0.7
    mean = targets[valid].mean(axis=0)
    error = np.square(prediction - targets)[valid].sum()
    expected = error / np.square(targets - mean)[valid].sum()

    def measured(made, parts=3):
        batches = zip(*(np.split(x, parts) for x in (made, targets, valid)), strict=True)
        return [explained.summary(predicted(p, t, jnp.asarray(v))) for p, t, v in batches]

    found = measured(prediction)
    assert explained.unexplained(found) == pytest.approx(expected, rel=1e-5)
    assert explained.unexplained(measured(prediction, 1)) == pytest.approx(expected, rel=1e-5)
    guess = measured(np.broadcast_to(mean, shape))
    assert explained.unexplained(guess) == pytest.approx(1, rel=1e-5)
    assert explained.unexplained(measured(targets)) == 0
    rows, weight = prediction[:4].reshape(4, 10, 8), valid[:4].reshape(4, 10, 1)
    pooled = (rows * weight).sum(axis=1) / weight.sum(axis=1)
    np.testing.assert_allclose(found[0]["pooled"], pooled, rtol=1e-5)
    lengths = np.linalg.norm(rows - targets[:4].reshape(4, 10, 8), axis=-1, keepdims=True)
    distance = (lengths * weight).sum(axis=(1, 2)) / weight.sum(axis=(1, 2))
    np.testing.assert_allclose(found[0]["distance"], distance, rtol=1e-5)


def test_targets_that_have_collapsed_are_not_explained_by_their_rounding():
    targets = np.full((4, 6, 8), 2.0, np.float32)
    near = explained.summary(predicted(targets * (1 + 1e-7), targets, None))
    assert explained.unexplained([near]) < 1e-6
    far = explained.summary(predicted(targets + 1, targets, None))
    assert explained.unexplained([far]) > 1e3
