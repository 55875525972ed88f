"""Questions on images: the commonest answers as classes, a small decoder on frozen patches."""

import collections
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.evaluators import decoding, progress
from jepa_vl.evaluators.base import NETWORK, Measured, Measures, register
from jepa_vl.evaluators.intervals import WORDS, intervals
from jepa_vl.evaluators.network import Network
from jepa_vl.models.decoder import Decoder
from jepa_vl.shapes import Array, PyTree

ANSWERS = 1000  # classes: the commonest answers of the training part
ENOUGH = 3  # people whose answer makes one right
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", **{word: str(i) for i, word in enumerate(NUMBERS)}}


def normalise(answer: str) -> str:
    """Lower case, no punctuation, no articles, number words as digits: VQA's processing.

    Its list of contractions is left out: an apostrophe goes in questions and answers alike.
    """
    text = re.sub(r"[^\w\s]", " ", answer.lower().replace("'", ""))
    return " ".join(DIGITS.get(w, w) for w in text.split() if w not in ("a", "an", "the"))


def agreement(found: str, answers: Sequence[str]) -> float:
    """VQA accuracy: min(1, people who said so / 3), mean over leaving one of them out."""
    said = [normalise(answer) == normalise(found) for answer in answers]
    if len(said) < 2:
        return float(any(said))
    total = sum(said)
    return float(np.mean([min(1.0, (total - own) / ENOUGH) for own in said]))


def commonest(answers: Sequence[str]) -> str:
    """The answer that most people gave; of several the first in the alphabet."""
    counts = collections.Counter(normalise(answer) for answer in answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


@register("vqa")
class Vqa(Measures):
    """Accuracy of answers that a decoder picks after reading the question and the patches."""

    reads = NETWORK

    def __init__(self, config: Config, network: Network):
        """Takes data of kind ``vqa``.

        Raises:
          ConfigError: the data have no answers.
        """
        if config.data.kind != "vqa":
            rule = "questions and answers are read of data.kind 'vqa' alone"
            raise ConfigError("data.kind", config.data.kind, rule)
        self.config, self.network = config, network
        self.protocol: dict[str, Any] = {
            "decoder": decoding.protocol(config, "questions"),
            "answers": f"the {ANSWERS} commonest of the training part, as classes",
            "accuracy": "VQA's: min(1, people who said so / 3), leaving each one out",
            "exact_match": "with the answer that most people gave",
            "processing": "lower case, no punctuation or articles, number words as digits",
            "interval": WORDS,
        }

    def measure(self, params: PyTree) -> Measured:
        """``accuracy`` and ``exact_match``.

        Baselines: ``commonest``, the most frequent training answer; ``another_image``, the same
        decoder before the image of another question.

        Args:
          params: of the encoder.

        Raises:
          ConfigError: a part has no question with an answer.
        """
        reading = decoding.reader(self.network)
        learnt, tested = (
            decoding.read(self.network, reading, part, params) for part in ("train", "held_out")
        )
        if not learnt.records or not tested.records:
            raise ConfigError("data.path", self.config.data.path, "a part has no question")
        self.protocol |= reading.describe()
        told = [commonest(record["answers"]) for record in learnt.records]
        counts = collections.Counter(told)
        names = sorted(counts, key=lambda answer: (-counts[answer], answer))[:ANSWERS]
        pick = self._learn(learnt, told, names)
        found = pick(tested.features, tested)
        moved = pick(np.roll(tested.features, 1, axis=0), tested)
        each = _scores(found, tested)
        others = {"commonest": [names[0]] * len(found), "another_image": moved}
        baselines = {}
        for name, answers in others.items():
            accuracy, right = _scores(answers, tested)
            baselines[name] = {"accuracy": accuracy.mean(), "exact_match": right.mean()}
        return Measured(
            {"accuracy": float(each[0].mean()), "exact_match": float(each[1].mean())},
            {"exact_match": each[1][None]},
            {"accuracy": intervals(each[0][None])[0]},
            {name: {k: float(v) for k, v in scores.items()} for name, scores in baselines.items()},
        )

    def _learn(self, learnt: decoding.Part, told: Sequence[str], names: Sequence[str]) -> Any:
        """Trains the decoder: (features, part) -> an answer for each question."""
        known = decoding.vocabulary([record["captions"][0] for record in learnt.records])
        size, number = len(known) + decoding.UNKNOWN + 1, {a: i for i, a in enumerate(names)}
        module = Decoder(size, len(names), depth=self.config.eval.decoder_layers)
        inputs, last = _questions(learnt, known)
        targets = np.full(inputs.shape, decoding.IGNORED, np.int32)
        targets[np.arange(len(last)), last] = [number.get(a, decoding.IGNORED) for a in told]
        kept = np.flatnonzero(targets.max(axis=1) != decoding.IGNORED)
        pairs = kept, inputs[kept], targets[kept]
        params = decoding.train(module, self.config, learnt.features, pairs)

        @jax.jit
        def best(x: Array, place: Array, patches: Array) -> Array:
            logits: Any = module.apply({"params": params}, x, patches)
            rows = jnp.take_along_axis(logits, place[:, None, None], axis=1)[:, 0]
            return jnp.argmax(rows, axis=-1)

        def pick(features: Array, part: decoding.Part) -> list[str]:
            (x, place), size, out = _questions(part, known), self.config.eval.batch_size, []
            for start in range(0, len(x), size):
                rows = np.minimum(np.arange(start, start + size), len(x) - 1)
                found = np.asarray(best(x[rows], place[rows], features[rows]))
                out += [names[i] for i in found[: len(x) - start]]
                progress.beat()
            return out

        return pick


def _questions(part: decoding.Part, known: dict[str, int]) -> tuple[Array, Array]:
    """Words int32 [n, LENGTH], and the place of the last one of each question: int [n]."""
    x = np.full((len(part.records), decoding.LENGTH), decoding.PAD, np.int32)
    last = []
    for row, record in zip(x, part.records, strict=True):
        said = decoding.ids(record["captions"][0], known)[:-1]
        row[: len(said)] = said
        last.append(len(said) - 1)
    return x, np.array(last)


def _scores(found: Sequence[str], part: decoding.Part) -> tuple[Array, Array]:
    """Of each question: VQA accuracy, and is it the answer that most people gave?"""
    answers = [record["answers"] for record in part.records]
    pairs = list(zip(found, answers, strict=True))
    return (
        np.array([agreement(text, said) for text, said in pairs]),
        np.array([text == commonest(said) for text, said in pairs]),
    )
