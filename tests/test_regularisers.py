"""The regularisers that stand beside the paper's, the distances, and the norm of the targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl import methods, objectives
from jepa_vl.config import CHOICES, ConfigError
from jepa_vl.data import pipeline, sources
from jepa_vl.models import vit
from jepa_vl.models.conditioner import REGULARISERS, Reading
from jepa_vl.models.conditioner.similarity import Regulariser, entropy_similarity, paper_similarity
from jepa_vl.models.layers import layer_norm
from jepa_vl.objectives import base, losses
from tests.tiny import tiny

L, B, M, T, N, S, P = 3, 2, 2, 4, 2, 5, 6
WORD_MASK = np.arange(S) < np.array([[5, 3], [4, 0]])[..., None]
NOTHING = jnp.zeros(())  # of the contrast
CAPTION_MASK = np.array([[True, True], [True, False]])


def distributions():
    """p of each layer [L, B, M, T, N, S]: 0 where there is no word."""
    rng = np.random.default_rng(0)
    logits = np.where(WORD_MASK[:, None, None], rng.normal(size=(L, B, M, T, N, S)), -np.inf)
    with np.errstate(invalid="ignore"):
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p = p / p.sum(-1, keepdims=True)
    return np.nan_to_num(p).astype(np.float32)


def test_names_agree():
    named = {known.distance for known in methods.METHODS.values()}
    assert named - {"none"} <= set(losses.DISTANCES)  # a contrastive loss is no distance
    assert set(base.TARGET_NORMS) == set(CHOICES["loss.target_norm"])


def test_a_new_regulariser_or_distance_is_one_entry(monkeypatch):
    dense = Regulariser(lambda *given: 2 * paper_similarity(*given))
    monkeypatch.setitem(REGULARISERS, "twice", dense)
    monkeypatch.setitem(losses.DISTANCES, "half", lambda p, t: 0.5 * losses.l2(p, t))
    config = tiny()
    train, _ = sources.open_sources(config)
    with pipeline.make_batches(config, train, 0) as batches:
        batch = next(batches)
    found = {}
    for names in (("paper", "l2"), ("twice", "half")):
        keys = dict(zip(("loss.regulariser", "loss.distance"), names, strict=True))
        objective = objectives.build(tiny(**keys))
        params = objective.init(jax.random.key(0), batch)
        found[names[0]] = objective.loss(
            params, objective.target_of(params), {}, batch, jax.random.key(0), jnp.ones(())
        )[1]
    for term, factor in (("predict", 0.5), ("sparse", 2.0), ("consistency", 2.0)):
        plain, new = (found[name][f"loss/{term}"] for name in ("paper", "twice"))
        np.testing.assert_allclose(new, factor * plain, rtol=1e-5)


def test_entropy_similarity_is_a_softmax_of_cosines_over_the_words_that_exist():
    rng = np.random.default_rng(1)
    q = rng.normal(size=(B, T, P)).astype(np.float32)
    k = rng.normal(size=(B, N, S, P)).astype(np.float32)
    logits = np.einsum("brp,bnsp->brns", q, k)
    p = np.asarray(entropy_similarity(jnp.asarray(logits), q, k, WORD_MASK))
    for b, n in zip(*np.nonzero(CAPTION_MASK), strict=True):
        there = np.flatnonzero(WORD_MASK[b, n])
        keys = k[b, n, there] / np.linalg.norm(k[b, n, there], axis=-1, keepdims=True)
        cosine = q[b] / np.linalg.norm(q[b], axis=-1, keepdims=True) @ keys.T
        expected = np.exp(cosine / 0.1) / np.exp(cosine / 0.1).sum(-1, keepdims=True)
        np.testing.assert_allclose(p[b][:, n, there], expected, rtol=1e-3, atol=1e-6)
        assert (p[b][:, n, there] > 0).all()  # no dead zone
    assert not np.moveaxis(p, 1, -1)[~WORD_MASK].any()


def test_entropy_terms_equal_the_formulas():
    p = distributions()
    reading = Reading(jnp.asarray(p), jnp.asarray(p[..., 0]), NOTHING)
    sparse, consistency = losses.sparsity_terms(reading, CAPTION_MASK, None, "entropy")
    expected = np.zeros(2)
    for b, n in zip(*np.nonzero(CAPTION_MASK), strict=True):
        x = p[:, b, :, :, n, WORD_MASK[b, n]].astype(np.float64)  # words first
        entropy = -(x * np.log(x)).sum(0) / np.log(len(x))
        spread = np.abs(x - x.mean(1, keepdims=True)).sum(0)
        expected += np.array([entropy.mean(), spread.mean()]) / CAPTION_MASK[b].sum() / B
    np.testing.assert_allclose([sparse, consistency], expected, rtol=1e-5)


def test_the_entropy_terms_are_smallest_where_layers_pick_one_word_and_the_same():
    uniform, first, second = np.full(S, 1 / S), np.eye(S)[0], np.eye(S)[1]

    def terms(*layers):
        o = np.stack(layers).astype(np.float32).reshape(len(layers), 1, 1, 1, 1, S)
        one = np.ones((1, 1), bool)
        out = losses.sparsity_terms(
            Reading(jnp.asarray(o), o[..., 0], NOTHING), one, None, "entropy"
        )
        return [float(x) for x in out]

    np.testing.assert_allclose(terms(uniform, uniform), [1, 0], atol=1e-6)
    np.testing.assert_allclose(terms(first, first), [0, 0], atol=1e-6)
    np.testing.assert_allclose(terms(first, second), [0, 1], atol=1e-6)


def test_the_gradient_of_the_entropy_is_finite_where_words_are_missing():
    def total(logits):
        q, k = jnp.ones((B, T, P)), jnp.zeros((B, N, S, P))
        p = entropy_similarity(logits, q, k, WORD_MASK)
        reading = Reading(p[None, :, None], p[None, :, None, ..., 0], NOTHING)
        return sum(losses.sparsity_terms(reading, CAPTION_MASK, None, "entropy"))

    grad = jax.grad(total)(jnp.zeros((B, T, N, S)))
    assert np.isfinite(grad).all()


def test_mse_is_the_mean_square_over_channels():
    a, b = np.full((2, 3, 4), 3.0, np.float32), np.ones((2, 3, 4), np.float32)
    np.testing.assert_allclose(losses.mse(a, b), np.full((2, 3), 4.0))


def test_targets_are_layer_normed_or_left_as_the_encoder_gives_them():
    config = tiny().encoder
    encoder = vit.build(config)
    images = np.random.default_rng(2).normal(size=(2, 32, 32, 3)).astype(np.float32)
    params = encoder.init(jax.random.key(0), images)["params"]
    params["norm"]["scale"] = params["norm"]["scale"] * 3.0
    tgt_idx = np.array([[[0, 3]], [[5, 6]]], np.int32)
    full = np.asarray(encoder.apply({"params": params}, images))
    picked = np.stack([full[b][tgt_idx[b]] for b in range(2)])
    left = base.encode_targets(encoder, params, images, tgt_idx, "none")
    np.testing.assert_allclose(left, picked, rtol=1e-5, atol=1e-5)
    normed = base.encode_targets(encoder, params, images, tgt_idx)
    np.testing.assert_allclose(normed, layer_norm(picked, 1e-5), rtol=1e-4, atol=1e-5)
    assert abs(float(jnp.std(left)) - 3) < 0.2 and abs(float(jnp.std(normed)) - 1) < 0.05


@pytest.mark.parametrize(
    ("key", "value"),
    [("loss.regulariser", "sparse"), ("loss.distance", "l1"), ("loss.target_norm", "batch")],
)
def test_unknown_names_are_refused(key, value):
    with pytest.raises(ConfigError) as caught:
        objectives.build(tiny(**{key: value}))
    assert caught.value.key == key
