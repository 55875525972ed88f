"""TC-JEPA against a numpy oracle of Eq. 1 to 4, and the promises about missing text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl.models.conditioner import Words
from jepa_vl.models.conditioner.word_attention import WordAttention
from jepa_vl.models.layers import LayerNorm, Mlp
from jepa_vl.objectives import losses

B, R, N, S, P, E = 2, 5, 3, 4, 8, 6


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    word_mask = np.arange(S) < np.array([[4, 2, 1], [3, 3, 4]])[..., None]
    caption_mask = np.array([[True, True, True], [True, False, False]])
    return {
        "x": rng.normal(size=(B, R, P)).astype(np.float32),
        "words": Words(
            rng.normal(size=(B, N, S, E)).astype(np.float32),
            word_mask & caption_mask[..., None],
            caption_mask,
        ),
    }


def module(similarity="paper"):
    return WordAttention(mlp_ratio=2.0, scale_logits=False, similarity=similarity)


def parameters(case, spread=0.5):
    """Random everything: zero biases and unit scales would hide swaps."""
    params = module().init(jax.random.key(0), case["x"], case["words"])["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [spread * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return structure.unflatten(drawn)


def oracle(params, x, words, centred):
    """Loops over images, tokens and captions, straight from the formulas; O as [B, R, N, S]."""
    w_q, w_k, w_v = (np.asarray(params[n]["kernel"], np.float64) for n in "qkv")
    out, overlap = np.array(x, np.float64), np.zeros((B, R, N, S))
    for b in range(B):
        for r in range(R):
            q, candidates = x[b, r] @ w_q, []
            for n in np.flatnonzero(words.caption_mask[b]):
                valid = np.flatnonzero(words.word_mask[b, n])
                k, v = words.states[b, n, valid] @ w_k, words.states[b, n, valid] @ w_v
                weight = np.exp(k @ q - np.max(k @ q))
                candidates.append(x[b, r] + (weight / weight.sum()) @ v)
                k = k - k.mean(axis=0) if centred else k
                for place, key in zip(valid, k, strict=True):
                    norm = np.linalg.norm(q) * np.linalg.norm(key)
                    overlap[b, r, n, place] = max(q @ key / norm, 0) if norm > 1e-9 else 0
            if candidates:
                out[b, r] = np.max(candidates, axis=0)
    return out, overlap


@pytest.mark.parametrize("similarity", ["paper", "centred"])
def test_conditioner_equals_the_formulas(case, similarity):
    params = parameters(case)
    y, reading = module(similarity).apply({"params": params}, case["x"], case["words"])
    pooled, overlap = oracle(params, case["x"], case["words"], similarity == "centred")
    pooled = jnp.asarray(pooled, jnp.float32)
    mlp = Mlp(2 * P).apply({"params": params["mlp"]}, pooled)
    expected = LayerNorm().apply({"params": params["norm"]}, pooled + mlp)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(reading.similarity, overlap, atol=1e-5)


def test_padding_has_no_effect_bit_for_bit(case):
    params, words = parameters(case), case["words"]
    absent = ~words.word_mask
    garbage = np.where(absent[..., None], 1e3, words.states).astype(np.float32)
    apply = jax.jit(lambda w: module().apply({"params": params}, case["x"], w))
    for a, b in zip(
        jax.tree.leaves(apply(words)),
        jax.tree.leaves(apply(words._replace(states=garbage))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("similarity", ["paper", "centred"])
def test_padding_brings_no_gradient_and_no_nan(case, similarity):
    params, words = parameters(case), case["words"]
    states = np.where(words.word_mask[..., None], words.states, 0).astype(np.float32)

    def total(s, p):
        y, reading = module(similarity).apply({"params": p}, case["x"], words._replace(states=s))
        return jnp.sum(y**2) + jnp.sum(reading.similarity) + jnp.sum(reading.entropy)

    by_states, by_params = jax.grad(total, argnums=(0, 1))(states, params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((by_states, by_params)))
    assert np.all(np.asarray(by_states)[~words.word_mask] == 0)
    assert np.any(np.asarray(by_states)[words.word_mask] != 0)


def test_an_image_without_captions_reads_nothing(case):
    params = parameters(case)
    nothing = Words(case["words"].states, np.zeros((B, N, S), bool), np.zeros((B, N), bool))
    y, reading = module().apply({"params": params}, case["x"], nothing)
    mlp = Mlp(2 * P).apply({"params": params["mlp"]}, case["x"])
    expected = LayerNorm().apply({"params": params["norm"]}, case["x"] + mlp)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert float(jnp.max(reading.similarity)) == 0 and np.isfinite(reading.entropy).all()


def test_order_and_repetition_of_captions_change_nothing(case):
    params, words = parameters(case), case["words"]
    full = Words(words.states, np.ones((B, N, S), bool), np.ones((B, N), bool))
    order = [2, 0, 1]
    turned = Words(full.states[:, order], full.word_mask, full.caption_mask)
    twice = Words(full.states[:, [0, 1, 2, 2]], np.ones((B, 4, S), bool), np.ones((B, 4), bool))
    outputs = [module().apply({"params": params}, case["x"], w)[0] for w in (full, turned, twice)]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)
    np.testing.assert_allclose(outputs[0], outputs[2], atol=1e-6)


def test_a_shift_of_all_keys_moves_the_paper_similarity_but_not_the_centred_one():
    """Why O = 0 is free under the literal regulariser: attention does not feel the shift."""
    rng = np.random.default_rng(1)
    q = rng.normal(size=(1, 3, P)).astype(np.float32)
    k = rng.normal(size=(1, 1, S, P)).astype(np.float32)
    shift = -5 * q.mean(axis=1)[:, None, None]
    mask = np.ones((1, 1, S), bool)

    def similarity(function, keys):
        return np.asarray(function(jnp.einsum("brp,bnsp->brns", q, keys), q, keys, mask))

    from jepa_vl.models.conditioner.similarity import centred_similarity, paper_similarity

    gap = [
        np.max(np.abs(similarity(f, k) - similarity(f, k + shift)))
        for f in (paper_similarity, centred_similarity)
    ]
    assert gap[0] > 0.3 and gap[1] < 1e-4


def test_sparsity_terms_equal_the_formulas():
    from jepa_vl.models.conditioner import Reading

    rng = np.random.default_rng(2)
    layers, blocks, tokens = 3, 2, 4
    caption_mask = np.array([[True, True, False], [False, False, False]])
    o = np.maximum(rng.normal(size=(layers, B, blocks, tokens, N, S)), 0)
    o = (o * caption_mask[None, :, None, None, :, None]).astype(np.float32)
    sparse, consistency = losses.sparsity_terms(Reading(o, o[..., 0], jnp.zeros(())), caption_mask)
    expected = np.zeros(2)
    for b in range(B):
        for n in np.flatnonzero(caption_mask[b]):
            x = o[:, b, :, :, n].astype(np.float64)
            terms = x.sum(-1).mean(), np.abs(x - x.mean(0)).sum(-1).mean()
            expected += np.array(terms) / caption_mask[b].sum() / B
    np.testing.assert_allclose([sparse, consistency], expected, rtol=1e-5)


def test_l2_is_the_norm_and_smooth_l1_the_mean_over_channels():
    a, b = np.ones((2, 3, 4), np.float32), np.zeros((2, 3, 4), np.float32)
    np.testing.assert_allclose(losses.l2(a, b), np.full((2, 3), 2.0), rtol=1e-6)
    np.testing.assert_allclose(losses.smooth_l1(a, b), np.full((2, 3), 0.5), rtol=1e-6)
