"""Cross-modal TI-JEPA: the formula, its energies, and what a predictor may know."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl import objectives, tree
from jepa_vl.config import ConfigError
from jepa_vl.objectives.crossmodal import without_prior
from tests.test_step import batches
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Bench:
    """Objective, random weights and a batch of 4 images in which one caption is missing."""

    def __init__(self, **overrides):
        overrides = {f"crossmodal.{name}": value for name, value in overrides.items()}
        overrides |= {"train.batch_size": 4, "crossmodal.text_to_image": 0.7, "text.depth": 1}
        self.config = tiny(objective="crossmodal", **overrides)
        self.objective = objectives.build(self.config)
        self.batch = {name: np.array(x) for name, x in batches(self.config, 1)[0].items()}
        self.batch["caption_mask"][1, 1] = self.batch["word_mask"][1, 1] = False
        params = jax.jit(self.objective.init)(jax.random.key(0), self.batch)
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), 2 * len(leaves))
        shapes = [x.shape for x in leaves]
        drawn = [0.2 * jax.random.normal(k, s) for k, s in zip(keys, shapes * 2, strict=True)]
        self.params = structure.unflatten(drawn[: len(leaves)])
        self.target = self.objective.target_of(structure.unflatten(drawn[len(leaves) :]))
        self._sides = jax.jit(self.objective.sides)
        self._loss, self._energy = jax.jit(self.objective.loss), jax.jit(self.objective.energy)

    def loss(self, **changed):
        args = {}, self.batch | changed, jax.random.key(2), jnp.ones(())
        return self._loss(self.params, self.target, *args)

    def sides(self, **changed):
        return self._sides(self.params, self.target, {}, self.batch | changed, jax.random.key(3))

    def energy(self, **changed):
        args = {}, self.batch | changed, jax.random.key(2)
        return np.asarray(self._energy(self.params, self.target, *args))


@functools.cache
def bench(**overrides):
    """Read-only, built once."""
    return Bench(**overrides)


def normalised(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def oracle(one, pooled=False):
    """Energies of an image and its own captions, [B, N, 2], pair by pair from the formula."""
    o, batch, (b, n) = one.objective, one.batch, one.batch["caption_mask"].shape
    tokens = np.asarray(o.encoder.apply({"params": one.target["image"]}, batch["image"]))
    mask = batch["word_mask"]
    words = o.captions.module.apply({"params": one.target["text"]}, batch["word_ids"], mask)
    words, out = np.asarray(words, np.float64), np.zeros((b, n, 2))
    images, texts = o.sides(one.params, one.target, {}, batch, jax.random.key(0))
    to_image = np.asarray(o.predict(one.params, "to_image", texts, o._repeat(images, n)))
    to_text = np.asarray(o.predict(one.params, "to_text", o._repeat(images, n), texts))
    for i in range(b):
        for j in np.flatnonzero(batch["caption_mask"][i]):
            valid, pair = mask[i, j], i * n + j
            image, text = tokens[i].astype(np.float64), words[i, j][valid]
            if pooled:
                image, text, valid = image.mean(0), text.mean(0), slice(None)
            out[i, j, 0] = np.mean((to_image[pair] - normalised(image)) ** 2)
            out[i, j, 1] = np.mean((to_text[pair][valid] - normalised(text)) ** 2)
    return out


@pytest.mark.parametrize("targets", ["tokens", "pooled"])
def test_the_loss_is_the_formula(targets):
    one = bench(targets=targets)
    errors = oracle(one, targets == "pooled")[one.batch["caption_mask"]]
    value, metrics, _ = one.loss()
    np.testing.assert_allclose(metrics["loss/text_to_image"], errors[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/image_to_text"], errors[:, 1].mean(), rtol=1e-5)
    np.testing.assert_allclose(value, 0.7 * errors[:, 0].mean() + errors[:, 1].mean(), rtol=1e-5)
    assert metrics["target_std/image"] > 0 and metrics["target_std/text"] > 0


@pytest.mark.parametrize("targets", ["tokens", "pooled"])
def test_the_energies_of_own_pairs_average_to_the_loss(targets):
    one = bench(targets=targets)
    energy = one.energy().reshape(4, 4, 2)  # [image, image of the caption, caption]
    own = energy[np.arange(4), np.arange(4)][one.batch["caption_mask"]]
    np.testing.assert_allclose(own.mean(), one.loss()[0], rtol=1e-5)


@pytest.mark.parametrize("targets", ["tokens", "pooled"])
def test_matrix_products_give_the_energies_of_pairs_one_by_one(targets):
    one = bench(targets=targets)

    @jax.jit
    def slow(params, target, batch):
        sides = one.objective.sides(params, target, {}, batch, jax.random.key(2))
        return one.objective.all_pairs_one_by_one(params, *sides)

    there = one.batch["caption_mask"].reshape(-1)
    expected = slow(one.params, one.target, one.batch)
    np.testing.assert_allclose(one.energy()[:, there], expected[:, there], rtol=1e-4)


def test_energies_of_a_pair_do_not_depend_on_the_others_in_the_batch():
    one = bench()
    turned = {name: np.roll(x, 1, axis=0) for name, x in one.batch.items()}
    expected = np.roll(np.roll(one.energy(), 1, axis=0), 2, axis=1)
    there = turned["caption_mask"].reshape(-1)
    np.testing.assert_allclose(one.energy(**turned)[:, there], expected[:, there], rtol=1e-4)


def test_padded_words_and_missing_captions_change_nothing():
    one = bench()
    garbage = np.where(one.batch["word_mask"], one.batch["word_ids"], 7)
    np.testing.assert_allclose(one.loss(word_ids=garbage)[0], one.loss()[0], rtol=1e-6)


def test_shown_and_asked_tokens_are_disjoint_and_cover_all():
    one = bench(context_fraction=0.5)
    images, texts = one.sides()
    both = np.concatenate([images.own.index, images.query_idx], axis=1)
    np.testing.assert_array_equal(np.sort(both, axis=1), np.tile(np.arange(16), (4, 1)))
    assert images.own.index.shape == (4, 8)
    shown, asked = np.asarray(texts.own.valid), np.asarray(texts.tgt_valid)
    np.testing.assert_array_equal(shown | asked, one.batch["word_mask"].reshape(8, -1))
    assert not np.any(shown & asked) and shown.any() and asked.any()


def test_what_is_shown_has_not_seen_what_is_asked_for():
    one = bench(context_fraction=0.5)
    images, texts = one.sides()
    hidden = np.zeros((4, 16), bool)
    np.put_along_axis(hidden, np.asarray(images.query_idx), True, axis=1)
    pixels = hidden.reshape(-1, 4, 4).repeat(8, axis=1).repeat(8, axis=2)[..., None]
    image = np.where(pixels, 255 - one.batch["image"], one.batch["image"])
    asked = np.asarray(texts.tgt_valid).reshape(one.batch["word_ids"].shape)
    words = np.where(asked, one.batch["word_ids"] % 500 + 2, one.batch["word_ids"])
    again = one.sides(image=image, word_ids=words)
    np.testing.assert_array_equal(images.own.states, again[0].own.states)
    shown = np.asarray(texts.own.valid)
    before, after = np.asarray(texts.own.states), np.asarray(again[1].own.states)
    np.testing.assert_array_equal(before[shown], after[shown])
    assert not np.array_equal(texts.targets, again[1].targets)


def test_energies_with_own_context_are_means_over_masks():
    one = bench(context_fraction=0.5, energy_masks=2)

    @jax.jit
    def single(params, target, batch, key):
        sides = one.objective.sides(params, target, {}, batch, key)
        return one.objective.all_pairs_one_by_one(params, *sides)

    keys = jax.random.split(jax.random.key(2), 2)
    parts = [np.asarray(single(one.params, one.target, one.batch, key)) for key in keys]
    there = one.batch["caption_mask"].reshape(-1)
    np.testing.assert_allclose(one.energy()[:, there], np.mean(parts, axis=0)[:, there], rtol=1e-5)
    assert np.max(np.abs(parts[0] - parts[1])) > 1e-3


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_both_towers_and_predictors_learn_and_the_target_gets_no_gradient(fraction):
    one = bench(context_fraction=fraction)

    def loss(params, target):
        return one.objective.loss(params, target, {}, one.batch, jax.random.key(0), 1.0)[0]

    grads, none = jax.jit(jax.grad(loss, argnums=(0, 1)))(one.params, one.target)
    for name, grad in tree.flatten(grads).items():
        assert name.endswith("k/bias") or float(jnp.max(jnp.abs(grad))) > 0, name
    assert all(float(jnp.max(jnp.abs(g))) == 0 for g in jax.tree.leaves(none))


def test_without_its_prior_an_easy_caption_is_no_better():
    matched = np.array([[0.1, 0.4], [0.3, 0.2]])
    prior = np.array([0.0, 5.0])
    corrected = without_prior(jnp.asarray(matched + prior))
    np.testing.assert_allclose(corrected, without_prior(jnp.asarray(matched)), atol=1e-6)
    np.testing.assert_array_equal(np.argmin(corrected, axis=1), [0, 1])
    np.testing.assert_allclose(corrected, [[-0.2, 0.2], [0.2, -0.2]], atol=1e-6)


def test_target_std_tells_collapse_even_where_positions_differ():
    one = bench()
    same = np.broadcast_to(one.batch["image"][:1], one.batch["image"].shape)
    assert float(one.loss(image=same)[1]["target_std/image"]) < 1e-5
    assert float(one.loss()[1]["target_std/image"]) > 1e-3


@pytest.mark.parametrize(
    ("key", "value"),
    [("context_fraction", 1.0), ("context_fraction", -0.1), ("targets", "words"),
     ("image_to_text", -1.0), ("energy_masks", 0)],
)  # fmt: skip
def test_bad_values_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"crossmodal.{key} = "):
        tiny(objective="crossmodal", **{f"crossmodal.{key}": value})
    with pytest.raises(ConfigError, match=r"loss.distance = 'l2'"):
        tiny(objective="crossmodal", **{"loss.distance": "l2"})
