"""Retrieval: recalls against plain numpy, energies against single pairs, any batch and mesh."""

import dataclasses
import functools
import math
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.config import ConfigError
from jepa_vl.data import masking, pipeline, sources
from jepa_vl.data.captions import words
from jepa_vl.evaluators import retrieval
from jepa_vl.evaluators.joint import Joint
from jepa_vl.schema import MeshConfig
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")
METHODS = {
    "contrastive": {},
    "crossmodal": {},
    "pooled": {"crossmodal.targets": "pooled"},
    "partial": {"crossmodal.context_fraction": 0.5, "crossmodal.energy_masks": 2},
    "tijepa": {},
}


class Listed:
    """A source of pictures of one colour, with the captions that a test gives them."""

    name, classes, fingerprint = "listed", (), "0" * 16

    def __init__(self, captions):
        self.captions = captions
        self.keys = [str(i) for i in range(len(captions))]

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, index):
        image = np.full((8, 8, 3), 4 * index, np.uint8)
        return {"image": image, "captions": self.captions[index], "label": -1, "key": str(index)}


class Planted:
    """A pairing that knows the truth: the number in a caption is the brightness of its image."""

    words, draws, has_prior = "planted", 1, False

    def __init__(self, noise=False, constant=False):
        self.noise, self.constant = noise, constant

    def images(self, params, target, frozen, batch, keys):
        return jax.numpy.mean(batch["image"], axis=(1, 2, 3)) / 4

    def texts(self, params, target, frozen, batch, keys):
        return batch["word_ids"][:, 0, 0]

    def energy(self, params, target, images, texts):
        if self.constant:
            return jax.numpy.zeros((images.shape[0], texts.shape[0]))
        if self.noise:
            mixed = (images[:, None] * 7919 + texts[None] * 104729) * 0.6180339887
            return mixed - jax.numpy.floor(mixed)
        return jax.numpy.abs(images[:, None] - texts[None])


def joint(config, objective=None, frozen=None, devices=1, source=None):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    train, held_out = (source, source) if source else sources.open_sources(config)
    return Joint(config, objective, frozen or {}, mesh, train, held_out)


def planted(captions, **how):
    """The evaluator with an oracle; word ids are the numbers that captions end in."""
    config = tiny(objective="contrastive", **{"eval.val_images": 100, "eval.batch_size": 3})
    here = joint(config, SimpleNamespace(pairing=Planted(**how)), source=Listed(captions))
    here.words = lambda texts: {
        "word_ids": here.fill(np.array([[[int(text.split()[-1])]] for text in texts]))
    }
    return retrieval.Retrieval(config, here)


def by_hand(energy, captions, rank):
    """Recalls written from their definition: captions are all texts, equal ones found together."""
    texts = list(dict.fromkeys(text for own in captions for text in own))
    to_text, to_image = [], []
    for image, own in enumerate(captions):
        order = sorted(range(len(texts)), key=lambda c: (energy[image, c], texts[c] in own))
        to_text.append(any(texts[c] in own for c in order[:rank]))
        for text in own:
            column = energy[:, texts.index(text)]
            order = sorted(range(len(captions)), key=lambda i: (column[i], text in captions[i]))
            to_image.append(any(text in captions[i] for i in order[:rank]))
    return np.mean(to_text), np.mean(to_image)


@pytest.mark.parametrize("ties", [False, True])
def test_recalls_equal_their_definition_with_equal_captions_and_ties(ties):
    rng = np.random.default_rng(0)
    captions = [[f"the {n}" for n in rng.integers(0, 25, 3)] for _ in range(20)]
    count = len({text for own in captions for text in own})
    energy = rng.integers(0, 4, (20, count)) if ties else rng.random((20, count))
    numbers = {text: n for n, text in enumerate(dict.fromkeys(t for own in captions for t in own))}
    owned = [[numbers[text] for text in own] for own in captions]
    pairs = retrieval.Energies(energy.astype(np.float32), owned, list(range(20)))
    right = pairs.right()
    for rank in (1, 5, 10):
        to_text = np.mean(retrieval.ranks(pairs.energy, right) <= rank)
        places = retrieval.ranks(pairs.energy.T, right.T)
        to_image = np.mean([places[n] <= rank for own in owned for n in own])
        assert (to_text, to_image) == pytest.approx(by_hand(pairs.energy, captions, rank))


def test_a_perfect_encoder_finds_all_though_captions_repeat_within_and_between_images():
    captions = [["shape 0", "a 0"], ["shape 1"], ["shape 0", "Shape 0!"], ["x 3"], ["y 4", ""]]
    captions[2] = ["a 2", "A 2."]
    found = planted(captions).measure((None, None))
    assert set(found.scores.values()) == {1.0}
    assert "text_to_image_r1" in found.scores and "image_to_text_r5" in found.scores
    assert found.hits["text_to_image_r1"].shape == (2, 5)


def test_noise_is_at_chance_and_a_constant_finds_nothing():
    captions = [[f"a {5 * i + j}" for j in range(3)] for i in range(60)]
    found = planted(captions, noise=True).measure((None, None))
    for name, value in found.scores.items():
        blind = found.baselines["chance"][name]
        images = found.hits[name].shape[1]
        assert abs(value - blind) < 4 * math.sqrt(blind * (1 - blind) / images), name
    assert found.baselines["chance"]["text_to_image_r5"] == pytest.approx(5 / 60)
    exact = 1 - math.comb(177, 5) / math.comb(180, 5)
    assert found.baselines["chance"]["image_to_text_r5"] == pytest.approx(exact)
    assert set(planted(captions, constant=True).run((None, None)).values()) == {0.0}


def test_energies_that_are_no_numbers_find_nothing():
    energy = np.full((3, 3), np.nan)
    assert retrieval.ranks(energy, np.eye(3, dtype=bool)).tolist() == [3, 3, 3]


@functools.cache
def made(method):
    """Objective, frozen weights and random parameters that tell rows apart."""
    name = method if method in ("contrastive", "tijepa") else "crossmodal"
    config = tiny(objective=name, **METHODS[method], **{"text.depth": 1, "eval.val_images": 9})
    objective: Any = objectives.build(config)
    train, _ = sources.open_sources(config)
    batch = next(pipeline.eval_batches(config, train, range(4), 4))
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), 2 * len(leaves))
    drawn = [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves * 2, strict=True)]
    params = structure.unflatten(drawn[: len(leaves)])
    target = objective.target_of(structure.unflatten(drawn[len(leaves) :]))
    return config, objective, objective.load_frozen(), (params, target)


def energies(method, batch_size, devices=1):
    config, objective, frozen, weights = made(method)
    evaluation = dataclasses.replace(config.eval, batch_size=batch_size)
    here = joint(dataclasses.replace(config, eval=evaluation), objective, frozen, devices)
    return retrieval.energies(here, objective.pairing, weights)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "pooled"])
def test_energies_and_recalls_are_the_same_for_any_batch_and_any_mesh(method):
    first = energies(method, 7)
    assert first.energy.std() > 1e-3
    other = energies(method, 64, devices=8)
    assert (other.owned, other.indices) == (first.owned, first.indices)
    np.testing.assert_allclose(other.energy, first.energy, rtol=2e-4, atol=2e-5)
    places = [retrieval.ranks(pairs.energy, pairs.right()) for pairs in (first, other)]
    np.testing.assert_array_equal(*places)


@pytest.mark.parametrize("method", ["contrastive", "crossmodal", "pooled", "tijepa"])
def test_energies_are_those_of_the_objective_on_single_pairs(method):
    """What the loss minimises on a batch of one pair; for the contrastive control its cosine."""
    config, objective, frozen, (params, target) = made(method)
    found = energies(method, 7)
    _, held_out = sources.open_sources(config)
    plan = masking.plan_masks(config)
    loss = jax.jit(objective.loss)

    @jax.jit
    def cosine(batch):
        rows = objective.embed(params, frozen, batch)
        return -rows.image @ rows.text.T

    reader = joint(config, objective).captions
    texts = {}
    for own, i in zip(found.owned, found.indices, strict=True):
        texts |= dict(zip(own, filter(words, held_out[i]["captions"]), strict=True))
    for row, column in ((0, 0), (0, 7), (3, 2)):
        index = found.indices[row]
        image = pipeline.centred(config, held_out, index)[1][None]
        said = {name: x[None, :1] for name, x in reader.encode_all([texts[column]]).items()}
        values = []
        for draw in range(objective.pairing.draws):
            rng = np.random.default_rng([config.seed, index, draw])
            batch = {"image": image, **said, **masking.draw(plan, 1, rng)}
            if method == "contrastive":
                values.append(cosine(batch)[0, 0])
            else:
                key, ramp = jax.random.key(0), np.float32(1)
                one = batch if method == "tijepa" else {**batch, **_twice(batch)}
                values.append(loss(params, target, frozen, one, key, ramp)[1]["loss/predict"])
        assert found.energy[row, column] == pytest.approx(float(np.mean(values)), rel=2e-4)


def _twice(batch):
    """The configuration's two captions an image: the second one is missing."""
    return {
        name: np.concatenate([x, np.zeros_like(x)], axis=1)
        for name, x in batch.items()
        if name in ("word_ids", "word_mask", "caption_mask")
    }


def test_objectives_and_data_that_cannot_serve_are_refused_in_one_line():
    for name, rule in (("ijepa", "reads captions"), ("tcjepa", "energy or cosine")):
        config = tiny(objective=name)
        with pytest.raises(ConfigError, match=rule) as error:
            retrieval.Retrieval(config, joint(config, objectives.build(config)))
        assert "\n" not in str(error.value)
    for captions in ([["a 1"]], [["a 1"], [""], []], [[], []]):
        with pytest.raises(ConfigError, match="two images with a caption"):
            planted(captions).measure((None, None))
