"""The contrastive control: the formulas, the same on any mesh, negatives that are exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.config import ConfigError
from jepa_vl.objectives.contrastive import LOSSES, Rows
from jepa_vl.schema import MeshConfig
from tests.test_step import batches
from tests.tiny import tiny

B, WIDTH = 16, 6
HEADS = {"clip": {"scale": 1.3}, "siglip": {"scale": 1.3, "bias": -2.0}}


def rows():
    rng = np.random.default_rng(0)
    sides = rng.normal(size=(2, B, WIDTH))
    sides /= np.linalg.norm(sides, axis=-1, keepdims=True)
    valid = np.arange(B) % 5 != 3
    return Rows(*sides.astype(np.float32), valid)


def head(kind):
    return {name: np.float32(value) for name, value in HEADS[kind].items()}


def clip(image, text, head):
    """Radford et al. 2021, Figure 3."""
    logits = np.exp(head["scale"]) * image @ text.T
    both = [x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (logits, logits.T)]
    return -0.5 * sum(np.trace(x) / len(x) for x in both)


def siglip(image, text, head):
    """Zhai et al. 2023, Eq. 1, with Algorithm 1's signs."""
    logits = np.exp(head["scale"]) * image @ text.T + head["bias"]
    signs = 2 * np.eye(len(logits)) - 1
    return -np.sum(np.log(1 / (1 + np.exp(-signs * logits)))) / len(logits)


FORMULAS = {"clip": clip, "siglip": siglip}


def mean_loss(kind, pairs, scalars):
    sums = sharding.sum_over_rows(LOSSES[kind].sums, pairs, scalars)
    return sums["loss"] / sums["count"]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_loss_is_the_formula_over_the_pairs_that_have_a_caption(kind):
    pairs = rows()
    image, text = (side[pairs.valid].astype(np.float64) for side in pairs[:2])
    expected = FORMULAS[kind](image, text, HEADS[kind])
    np.testing.assert_allclose(mean_loss(kind, pairs, head(kind)), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_any_mesh_gives_the_value_and_gradient_of_one_device(kind, shape):
    mesh = sharding.make_mesh(MeshConfig(*shape))
    gradient = jax.value_and_grad(
        lambda image, text, scalars: mean_loss(kind, Rows(image, text, rows().valid), scalars),
        argnums=(0, 1, 2),
    )
    arguments = rows().image, rows().text, head(kind)
    expected = jax.jit(gradient)(*arguments)
    with jax.set_mesh(mesh):
        found = jax.jit(gradient)(*arguments)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(expected))


@functools.cache
def case(kind):
    """Objective, parameters and a batch in which image 3 has no caption."""
    config = tiny(objective="contrastive", **{"contrastive.loss": kind})
    objective = objectives.build(config)
    batch = {name: np.array(x) for name, x in batches(config, 1)[0].items()}
    batch["caption_mask"][3] = batch["word_mask"][3] = False
    return objective, jax.jit(objective.init)(jax.random.key(0), batch), batch


def loss(objective, params, batch):
    args = objective.target_of(params), {}, batch, jax.random.key(0), jnp.ones(())
    return objective.loss(params, *args)[:2]


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_objective_is_the_formula_on_pooled_features(kind):
    objective, params, batch = case(kind)
    value, metrics = jax.jit(functools.partial(loss, objective))(params, batch)
    embedded = jax.jit(objective.embed)(params, {}, batch)
    assert list(np.flatnonzero(~np.asarray(embedded.valid))) == [3]
    patches = objective.encoder.apply({"params": params["image"]}, batch["image"])
    words = objective.captions.words(params, {}, batch).states
    kept = [i for i in range(len(patches)) if i != 3]
    pooled = [np.asarray(patches).mean(axis=1)[kept]]
    pooled += [np.stack([np.asarray(words[i])[batch["word_mask"][i]].mean(axis=0) for i in kept])]
    sides = []
    for name, features in zip(("image", "text"), pooled, strict=True):
        y = features @ np.asarray(params["head"][name]["project"]["kernel"], np.float64)
        sides.append(y / np.linalg.norm(y, axis=1, keepdims=True))
    expected = FORMULAS[kind](
        *sides, {k: float(v) for k, v in params["head"].items() if k not in ("image", "text")}
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert metrics["target_std/image"] > 0 and metrics["target_std/text"] > 0


@pytest.mark.usefixtures("quick_compilation")
def test_padding_and_missing_captions_change_nothing():
    objective, params, batch = case("clip")
    evaluate = jax.jit(functools.partial(loss, objective))
    garbage = np.where(batch["word_mask"], batch["word_ids"], 7)
    assert evaluate(params, batch)[0] == evaluate(params, batch | {"word_ids": garbage})[0]
    other = batch["image"].copy()
    other[3] = 255 - other[3]  # neither positive nor negative
    assert evaluate(params, batch)[0] == evaluate(params, batch | {"image": other})[0]


def test_every_parameter_learns_but_the_scalars_do_not_decay():
    from jepa_vl import tree
    from jepa_vl.training.update import NO_DECAY

    objective, params, batch = case("siglip")
    grads = jax.jit(jax.grad(lambda p: loss(objective, p, batch)[0]))(params)
    for name, grad in tree.flatten(grads).items():
        assert name.endswith("k/bias") or float(jnp.max(jnp.abs(grad))) > 0, name
    decayed = tree.flatten(tree.mask(params, f"^(?!.*{NO_DECAY})"))
    assert not decayed["head/scale"] and not decayed["head/bias"]
    assert decayed["head/image/project/kernel"]


def test_micro_batches_are_refused_since_they_would_change_the_negatives():
    with pytest.raises(ConfigError, match=r"train.micro_batches = 2: .*negatives"):
        tiny(objective="contrastive", **{"train.micro_batches": 2})
