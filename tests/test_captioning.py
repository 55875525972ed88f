"""Captions on frozen features: CIDEr-D written out again, beam search, a decoder that can read."""

import dataclasses
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jepa_vl import sharding
from jepa_vl.config import ConfigError
from jepa_vl.evaluators import captioning, decoding
from jepa_vl.evaluators.cider import cider
from jepa_vl.evaluators.network import Network
from jepa_vl.schema import MeshConfig
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")
SAID = ["a red star", "two blue rings", "a large green heart on grey", "one dot"]


@pytest.fixture(autouse=True)
def short_captions(monkeypatch):
    """Of what these tests pay for, most is the length that captions are padded to."""
    monkeypatch.setattr(decoding, "LENGTH", 9)


def plain_cider(found, references):
    """CIDEr-D from the formulas of the paper's section 3 and 3.2, n by n, with dense vectors."""

    def tokens(text):
        return re.sub(r"[^\w\s]", " ", text.lower()).split()

    def ngrams(text, n):
        said = tokens(text)
        return Counter(" ".join(said[i : i + n]) for i in range(len(said) - n + 1))

    total = np.zeros(len(found))
    for n in (1, 2, 3, 4):
        terms = sorted({g for texts in references for t in texts for g in ngrams(t, n)}
                       | {g for t in found for g in ngrams(t, n)})  # fmt: skip
        df = [sum(any(g in ngrams(t, n) for t in texts) for texts in references) for g in terms]
        idf = np.log(len(references)) - np.log(np.maximum(df, 1))
        for i, (text, texts) in enumerate(zip(found, references, strict=True)):
            mine = np.array([ngrams(text, n)[g] for g in terms]) * idf
            for reference in texts:
                own = np.array([ngrams(reference, n)[g] for g in terms]) * idf
                norm = np.linalg.norm(mine) * np.linalg.norm(own)
                gap = len(tokens(text)) - len(tokens(reference))
                value = np.minimum(mine, own) @ own / norm if norm else 0.0
                total[i] += 10 * value * math.exp(-(gap**2) / 72) / 4 / len(texts)
    return total


def test_cider_is_the_formula_and_its_best_is_ten():
    rng = np.random.default_rng(0)
    words = ["a", "the", "cat", "dog", "sits", "runs", "on", "under", "table", "mat", "red"]

    def text():
        return " ".join(rng.choice(words, rng.integers(1, 9))).capitalize() + "."

    references = [[text() for _ in range(rng.integers(1, 6))] for _ in range(12)]
    found = [text() for _ in range(10)] + [references[10][0], ""]
    np.testing.assert_allclose(cider(found, references), plain_cider(found, references), atol=1e-12)
    distinct = [["one two three four five"], ["six seven eight nine ten"]]
    np.testing.assert_allclose(cider([texts[0] for texts in distinct], distinct), 10.0)
    assert cider(["six seven", "one"], distinct).tolist() == [0.0, 0.0]


def by_trying_all(table, steps):
    """The likeliest sentence of a chain of words, by mean log-probability, among all of them."""
    best = (-np.inf, [])

    def go(sentence, score):
        nonlocal best
        last = sentence[-1] if sentence else decoding.START
        for word in (decoding.END, 4, 5, 6):
            value = score + table[last, word]
            if word == decoding.END or len(sentence) + 1 == steps:
                inner = sentence + ([] if word == decoding.END else [word])
                best = max(best, (value / (len(sentence) + 1), inner))
            if word != decoding.END and len(sentence) + 1 < steps:
                go([*sentence, word], value)

    go([], 0.0)
    return best[1]


def test_a_wide_beam_finds_the_best_caption_and_a_beam_of_one_is_greedy(monkeypatch):
    monkeypatch.setattr(decoding, "LENGTH", 5)
    for seed in range(5):
        table = np.random.default_rng(seed).normal(size=(7, 7))
        table -= np.log(np.exp(table).sum(1, keepdims=True))

        def after(kept, patches, place, table=table):
            return table[kept[:, place]]

        patches = np.zeros((2, 1, 1))
        wide = decoding.beam_search(after, patches, 200)
        assert wide[0] == wide[1] == by_trying_all(table, 4)
        greedy, last = [], decoding.START
        while len(greedy) < 4:
            last = max((decoding.END, 4, 5, 6), key=lambda word: table[last, word])
            if last == decoding.END:
                break
            greedy.append(last)
        assert decoding.beam_search(after, patches, 1)[0] == greedy


class Colours(nn.Module):
    """Patches that tell the brightness of an image, or that tell nothing."""

    FEATURES = "planted"
    tells: bool = True

    @nn.compact
    def __call__(self, images):
        kind = jnp.round(images.astype(np.float32).mean(axis=(1, 2, 3)) / 60) * self.tells
        return (kind[:, None, None] == np.arange(4.0)[None, None]) * np.ones((1, 4, 1))


class Painted:
    """Pictures of four grey tones, each with a caption of its own."""

    name, classes, fingerprint = "painted", (), "0" * 16

    def __init__(self, count=12, said=SAID):
        self.count, self.said, self.keys = count, said, [str(i) for i in range(count)]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = np.full((8, 8, 3), 60 * (index % 4), np.uint8)
        captions = [self.said[index % 4]] * 2
        return {"image": image, "captions": captions, "label": -1, "key": str(index)}


def measured(source=None, tells=True, size=7, devices=1, **changed):
    config = tiny(**{"eval.decoder_layers": 1, "eval.decoder_steps": 100, **changed})
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=size))
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    source = source or Painted()
    return captioning.Captioning(config, Network(config, Colours(tells), mesh, source, source))


def test_an_encoder_that_tells_all_reaches_the_ceiling_and_a_blind_one_does_not():
    task = measured()
    found = task.measure({})
    assert found.scores["exact_match"] == 1.0 and found.hits["exact_match"].shape == (1, 12)
    best = cider([SAID[i % 4] for i in range(12)], [[SAID[i % 4]] * 2 for i in range(12)])
    assert found.scores["cider"] == pytest.approx(best.mean())
    low, high = found.ci["cider"]
    assert low <= best.mean() <= high
    assert found.baselines["another_image"]["cider"] < 0.1 * best.mean()
    assert task.protocol["held_out"]["images"] == 12
    assert measured(tells=False, **{"eval.decoder_steps": 40}).run({})["exact_match"] == 0.25


def test_numbers_are_the_same_for_any_batch_and_any_mesh():
    few = {"eval.decoder_steps": 10}
    first = measured(size=5, **few).run({})
    other = measured(size=16, devices=8, **few).run({})
    assert first == other


@pytest.mark.parametrize("said", [[""] * 4, ["a star", "", "", ""], ["!"] * 4])
def test_data_without_captions_get_one_clear_line(said):
    with pytest.raises(ConfigError, match="two images of each part") as error:
        measured(Painted(4, said)).measure({})
    assert "\n" not in str(error.value)
