"""Words on patches: the right value at the right place, and the pointing game."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl.data import captions, masking, shapes_world
from jepa_vl.evaluators import wordmaps
from jepa_vl.schema import TextConfig
from tests.tiny import tiny


class Telling:
    """An objective whose similarity tells patch, word, caption and image, in each of two layers."""

    def loss(self, params, target, frozen, batch, rng, ramp):
        del target, frozen, rng, ramp
        ctx_idx, tgt_idx = batch["ctx_idx"], batch["tgt_idx"]
        (b, k), m = ctx_idx.shape, tgt_idx.shape[1]
        patch = jnp.concatenate([jnp.broadcast_to(ctx_idx[:, None], (b, m, k)), tgt_idx], axis=-1)
        number = jnp.arange(2)[:, None] * 3.0 + jnp.arange(3)  # [N, S]
        image = 100.0 * jnp.mean(batch["image"], axis=(1, 2, 3))
        value = patch[..., None, None] + 1000.0 * number + 0 * params
        value = value + image[:, None, None, None, None]
        visible = jnp.arange(value.shape[2])[:, None, None] < k
        return 0.0, {}, {"reading": SimpleNamespace(similarity=jnp.stack([value, value + visible]))}


@pytest.mark.parametrize("mode", ["production", "reference"])
def test_similarities_return_to_the_patches_they_came_from(mode):
    config = tiny(**{"masks.mode": mode, "masks.min_keep": 2, "encoder.patch_size": 4})
    plan = masking.plan_masks(config)
    batch = {
        "image": np.stack([np.full((32, 32, 3), i, np.uint8) for i in range(3)]),
        "word_ids": np.ones((3, 2, 3), np.int32),
        "word_mask": np.ones((3, 2, 3), bool),
        "caption_mask": np.ones((3, 2), bool),
    }
    maps = wordmaps.word_maps(Telling(), jnp.zeros(()), None, {}, batch, plan, draws=60)
    grid = np.arange(plan.grid**2).reshape(plan.grid, plan.grid)
    expected = (
        grid + 1000 * np.arange(6).reshape(2, 3, 1, 1) + 100 * np.arange(3).reshape(-1, 1, 1, 1, 1)
    )
    if (
        mode == "production"
    ):  # the reference collator never puts a target into the last row or column
        np.testing.assert_allclose(maps.target, expected, rtol=1e-5)
    np.testing.assert_allclose(maps.target[..., :-1, :-1], expected[..., :-1, :-1], rtol=1e-5)
    seen = maps.context[..., :-1, :-1]
    np.testing.assert_allclose(seen, expected[..., :-1, :-1] + 0.5, rtol=1e-5)  # mean over layers
    between = (maps.both >= maps.target - 1e-2) & (maps.both <= maps.target + 0.51)
    assert between[..., :-1, :-1].all()
    layers = wordmaps.layer_maps(Telling(), jnp.zeros(()), None, {}, batch, plan, draws=60)
    assert layers.shape == (3, 2, *expected.shape[1:])
    np.testing.assert_allclose(layers.mean(1), maps.both, rtol=1e-5)
    np.testing.assert_allclose(layers[:, 0, ..., :-1, :-1], expected[..., :-1, :-1], rtol=1e-5)
    assert (layers[:, 1, ..., :-1, :-1] > layers[:, 0, ..., :-1, :-1]).all()  # visible ones: + 1


def test_word_pieces_become_one_map():
    text, reader = "the checkered, crescent", captions.CaptionReader(TextConfig(words=5))
    assert len(reader.tokens(text)) == 4  # checkere ##d
    maps = np.arange(5, dtype=np.float32)[:, None, None] * np.ones((5, 2, 2), np.float32)
    words, merged = wordmaps.by_word(reader, text, maps)
    assert words == ["the", "checkered", "crescent"]
    np.testing.assert_array_equal(merged[:, 0, 0], [0, 1.5, 3])
    cut, merged = wordmaps.by_word(reader, text, maps[:2])
    assert cut == ["the", "checkered"] and merged.shape == (2, 2, 2)


def test_an_object_owns_the_patches_it_covers_and_at_least_one():
    mask = np.zeros((8, 8), bool)
    mask[0:4, 0:5] = True  # all of a patch of 4 x 4, a quarter of the next
    np.testing.assert_array_equal(wordmaps.own_patches(mask, 2), [[True, True], [False, False]])
    tiny_object = np.zeros((8, 8), bool)
    tiny_object[6, 1] = True
    np.testing.assert_array_equal(wordmaps.own_patches(tiny_object, 2), [[0, 0], [1, 0]])


def test_a_map_points_where_it_is_brightest_and_nowhere_when_dark():
    own = np.array([[False, True], [False, False]])
    assert wordmaps.points_at(np.array([[0.1, 0.2], [0, 0]]), own)
    assert not wordmaps.points_at(np.array([[0.3, 0.2], [0, 0]]), own)
    assert not wordmaps.points_at(np.zeros((2, 2)), ~own)


def test_every_word_that_names_an_object_names_one_of_its_attributes():
    world = shapes_world.ShapesWorld(0, 40, 16)
    kinds = set()
    for index in range(len(world)):
        scene = world.annotate(index)
        for text, named in zip(scene["captions"], scene["word_objects"], strict=True):
            for word, number in zip(captions.words(text), named, strict=True):
                if number:
                    kinds.add(shapes_world.attribute(word, scene["objects"][number - 1]))
    assert kinds == {"shape", "colour", "size", "texture"}
    red = dataclasses.replace(scene["objects"][0], colour="red")
    assert shapes_world.attribute("crimson", red) == "colour"
    assert shapes_world.attribute("picture", red) == ""
