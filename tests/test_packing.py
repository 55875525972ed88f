"""Promises of packed captions: the same numbers without the padding, whatever the lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl.config import ConfigError
from jepa_vl.models import bert, gte, packing, t5
from jepa_vl.models.packing import pack
from jepa_vl.training import flops
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_module")

B, N, S = 3, 4, 9
SHAPES = {
    "t5": (t5.T5Encoder, t5.T5Shape(50, 16, 2, 2, 8, 24, "relu", 8, 6, 1e-6)),
    "bert": (bert.BertEncoder, bert.BertShape(50, 16, 2, 2, 24, S, 2, 1e-12)),
    "gte": (gte.GteEncoder, gte.GteShape(50, 16, 2, 2, 24, 64, 0, 1e-12, 10.0, 1.0)),
}


def captions(seed=0, longest=S):
    """Ids [B, N, S], garbage where padded, and their mask; some captions are absent."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, (B, N))
    lengths[0, 1] = 0
    mask = np.arange(S) < lengths[..., None]
    return jnp.asarray(rng.integers(1, 50, (B, N, S)), jnp.int32), jnp.asarray(mask)


@pytest.fixture(scope="module", params=SHAPES)
def tower(request):
    """A tower whose every parameter is random, as a function of ids and mask."""
    make, shape = SHAPES[request.param]
    module = make(shape)
    params = module.init(jax.random.key(0), *captions())["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(structure, noise)
    return lambda ids, mask: module.apply({"params": params}, ids, mask)


def test_words_read_packed_are_those_read_padded(tower):
    """Where all fit, and where one image has too many words."""
    packed, padded = jax.jit(lambda *x: packing.embed(tower, *x, 20)), jax.jit(tower)
    for longest, fit in ((4, True), (S, False)):
        ids, mask = captions(longest=longest)
        assert bool(np.all(np.sum(mask, axis=(1, 2)) <= 20)) is fit
        found, expected = packed(ids, mask), np.where(mask[..., None], padded(ids, mask), 0.0)
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_word_does_not_see_other_captions_of_its_row(tower):
    ids, mask = captions(longest=4)
    other = ids.at[:, 0].set((ids[:, 0] + 7) % 50)
    packed = jax.jit(lambda *x: packing.embed(tower, *x, 20))
    before, after = packed(ids, mask), packed(other, mask)
    np.testing.assert_array_equal(before[:, 1:], after[:, 1:])
    assert np.abs(before[:, 0] - after[:, 0]).max() > 0.1


def test_a_row_holds_the_words_of_an_image_in_their_order():
    ids, mask = captions(longest=4)
    rows = pack(ids, mask, 20)
    for image in range(B):
        words = int(mask[image].sum())
        np.testing.assert_array_equal(rows.ids[image, 0, :words], ids[image][mask[image]])
        numbers = np.repeat(np.arange(N) + 1, mask[image].sum(axis=1))
        np.testing.assert_array_equal(rows.caption[image, 0, :words], numbers)
        assert not rows.caption[image, 0, words:].any()
        np.testing.assert_array_equal(rows.place[image][mask[image]], np.arange(words))


def test_of_a_choice_the_packed_branch_is_counted():
    def tower(ids, mask):
        return jnp.ones((*ids.shape, 8)) @ jnp.ones((8, 8))

    def total(function):
        return sum(flops.matmuls(jax.make_jaxpr(function)(*captions()).jaxpr).values())

    padded, packed = total(tower), total(lambda *x: packing.embed(tower, *x, 2 * S))
    assert padded == 2 * B * N * S * 8 * 8 and packed == padded // 2


@pytest.mark.parametrize(("kind", "room"), [("t5", 7), ("t5", 200), ("hashed", 16), ("t5", -1)])
def test_room_for_too_few_or_too_many_words_is_refused(kind, room):
    path = "" if kind == "hashed" else "/nowhere"
    with pytest.raises(ConfigError, match=r"text\.packed"):
        tiny(**{"text.kind": kind, "text.path": path, "text.packed": room})
