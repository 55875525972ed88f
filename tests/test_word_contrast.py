"""The contrast of captions: its formula, what it ignores, and that a mesh does not change it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.config import ConfigError
from jepa_vl.data import pipeline, sources
from jepa_vl.models.conditioner import Words
from jepa_vl.models.conditioner.contrast import TEMPERATURE, contrast
from tests.tiny import tiny

B, T, N, S, P = 5, 4, 2, 3, 6
LENGTHS = np.array([[3, 2], [1, 0], [0, 0], [3, 3], [2, 0]])  # words a caption; image 2 has none


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    word_mask = np.arange(S) < LENGTHS[..., None]
    states = np.zeros((B, N, S, 1), np.float32)  # not read
    return {
        "q": rng.normal(size=(B, T, P)).astype(np.float32),
        "k": rng.normal(size=(B, N, S, P)).astype(np.float32),
        "words": Words(states, word_mask, LENGTHS > 0),
        "valid": np.arange(T) < np.array([4, 4, 4, 2, 1])[:, None],
    }


def oracle(case, others):
    """Loops over images, captions and words."""

    def fit(image, other):
        of_captions = []
        for n in np.flatnonzero(LENGTHS[other]):
            best = []
            for s in range(LENGTHS[other, n]):
                key = case["k"][other, n, s]
                queries = case["q"][image][case["valid"][image]]
                norms = np.linalg.norm(queries, axis=-1) * np.linalg.norm(key)
                best.append((queries @ key / norms).max())
            of_captions.append(np.mean(best))
        return np.mean(of_captions)

    out = np.zeros(B)
    for i in range(B):
        if not LENGTHS[i].any():
            continue
        rivals = [(i - shift) % B for shift in range(min(others, B - 1) + 1)]
        scores = np.array([fit(i, j) for j in rivals if LENGTHS[j].any()]) / TEMPERATURE
        out[i] = np.log(np.exp(scores - scores[0]).sum())
    return out


@pytest.mark.parametrize("others", [1, 3, 100])
def test_contrast_equals_its_formula(case, others):
    np.testing.assert_allclose(contrast(**case, others=others), oracle(case, others), rtol=1e-4)


def test_padding_and_missing_captions_bring_neither_values_nor_gradients(case):
    value = lambda q, k: jnp.sum(contrast(q, k, case["words"], case["valid"], 3))  # noqa: E731
    absent = ~case["words"].word_mask
    garbage = np.where(absent[..., None], 1e3, case["k"]).astype(np.float32)
    assert value(case["q"], garbage) == value(case["q"], case["k"])
    zeros = np.where(absent[..., None], 0, case["k"]).astype(np.float32)
    for keys in (garbage, zeros):
        by_q, by_k = map(np.asarray, jax.grad(value, argnums=(0, 1))(case["q"], keys))
        assert np.isfinite(by_q).all() and np.isfinite(by_k).all()
        assert not by_k[absent].any() and by_k[~absent].any()
        assert not by_q[~case["valid"]].any() and by_q[case["valid"]].any()
        assert not by_q[2].any()  # it has no caption


def test_one_image_has_nothing_to_be_compared_with(case):
    alone = {name: value[:1] for name, value in case.items() if name != "words"}
    words = Words(*(x[:1] for x in case["words"][:3]))
    assert contrast(**alone, words=words, others=8).tolist() == [0.0]


def test_the_contrast_is_the_same_on_any_mesh(case):
    rows = lambda x: np.concatenate([x, x[:3] * 1.01 if x.dtype == np.float32 else x[:3]])  # noqa: E731
    q, k, words, valid = jax.tree.map(rows, tuple(case.values()))

    def value(q, k, words, valid):
        return jnp.sum(contrast(q, k, words, valid, 3) ** 2)

    step = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
    loss, grads = step(q, k, words, valid)
    mesh = sharding.make_mesh(tiny().mesh)
    assert mesh.size == 8
    with jax.set_mesh(mesh):
        placed = jax.device_put((q, k, words, valid), sharding.batch_sharding(mesh))
        loss_8, grads_8 = step(*placed)
    np.testing.assert_allclose(loss_8, loss, rtol=1e-5)
    for a, b in zip(grads_8, grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def batch_of(config):
    train, _ = sources.open_sources(config)
    with pipeline.make_batches(config, train, 0) as batches:
        batch = next(batches)
    return {k: v for k, v in batch.items() if k not in ("index", "position", "label")}


def test_without_a_weight_the_loss_is_that_of_the_paper():
    with_key, without = tiny(**{"loss.contrast_images": 3}), tiny()
    batch = batch_of(without)
    found = []
    for config in (with_key, without):
        objective = objectives.build(config)
        params = objective.init(jax.random.key(0), batch)
        loss, metrics, _ = objective.loss(
            params, objective.target_of(params), {}, batch, jax.random.key(0), jnp.ones(())
        )
        assert "loss/contrast" not in metrics
        found.append(float(loss))
    assert found[0] == found[1]


def test_dropout_hides_captions_from_the_predictor_and_not_from_the_contrast():
    config = tiny(**{"loss.contrast": 1.0, "text.dropout": 0.5})
    batch, objective = batch_of(config), objectives.build(config)
    read = batch.pop("caption_read")
    assert read.dtype == bool and 0 < read.sum() < len(read)
    params = objective.init(jax.random.key(0), batch)

    @jax.jit
    def outputs(batch):
        target = objective.target_of(params)
        _, metrics, aux = objective.loss(params, target, {}, batch, jax.random.key(0), jnp.ones(()))
        return metrics, aux["prediction"], aux["reading"]

    _, with_all, reading_all = outputs(batch)
    mask = batch["caption_mask"] & read[:, None]
    _, without, _ = outputs({**batch, "caption_mask": mask})
    metrics, prediction, reading = outputs({**batch, "caption_read": read})
    np.testing.assert_allclose(prediction, without, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(prediction[read], with_all[read], rtol=1e-5, atol=1e-6)
    assert not np.allclose(prediction[~read], with_all[~read])
    # The first layer's queries have read nothing yet: its contrast is that of all captions.
    np.testing.assert_allclose(reading.contrast[0], reading_all.contrast[0], rtol=1e-5)
    assert (reading.contrast[0] > 0).all() and metrics["dead_share"] < 1


def test_dropout_is_drawn_last_and_anew_in_each_epoch():
    with_it, without = tiny(**{"text.dropout": 0.3}), tiny()
    train, _ = sources.open_sources(without)
    shares, rows = [], []
    with (
        pipeline.make_batches(with_it, train, 0) as dropped,
        pipeline.make_batches(without, train, 0) as plain,
    ):
        for _ in range(16):  # two epochs
            batch, other = next(dropped), next(plain)
            read = batch.pop("caption_read")
            assert batch.keys() == other.keys()
            assert all(np.array_equal(batch[name], other[name]) for name in batch)
            shares.append(read.mean())
            rows.append(dict(zip(batch["index"].tolist(), read.tolist(), strict=True)))
    assert abs(np.mean(shares) - 0.7) < 0.12
    first, second = (
        {k: v for part in half for k, v in part.items()} for half in (rows[:8], rows[8:])
    )
    assert first.keys() == second.keys() and first != second


@pytest.mark.parametrize(
    ("key", "value"), [("loss.contrast", -1.0), ("loss.contrast_images", 0), ("text.dropout", 1.0)]
)
def test_impossible_values_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        tiny(**{key: value})
