"""Captions written from frozen patches by a small decoder, scored by CIDEr-D."""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.data.captions import words
from jepa_vl.evaluators import decoding
from jepa_vl.evaluators.base import NETWORK, Measured, Measures, register
from jepa_vl.evaluators.cider import cider
from jepa_vl.evaluators.intervals import WORDS, intervals
from jepa_vl.evaluators.network import Network
from jepa_vl.models.decoder import Decoder
from jepa_vl.shapes import Array, PyTree


@register("captioning")
class Captioning(Measures):
    """CIDEr-D of captions by beam search; encoder frozen, decoder trained on the training part."""

    reads = NETWORK

    def __init__(self, config: Config, network: Network):
        """Of the configuration ``eval.decoder_*``, ``eval.beam`` and the seed are read."""
        self.config, self.network = config, network
        self.protocol: dict[str, Any] = {
            "decoder": decoding.protocol(config, "captions"),
            "search": f"beam {config.eval.beam}, by mean log-probability",
            "words": f"lower case, without punctuation, at most {decoding.LENGTH - 2}",
            "score": "CIDEr-D, document frequencies of the references measured on",
            "interval": WORDS,
        }

    def measure(self, params: PyTree) -> Measured:
        """``cider`` and ``exact_match``, the share of captions equal to a reference by its words.

        Baselines: ``another_image``, the captions that were written of another image;
        ``commonest``, the most frequent caption of the training part for all images.

        Args:
          params: of the encoder.

        Raises:
          ConfigError: fewer than two images of a part have a caption with a word.
        """
        reading = decoding.reader(self.network)
        parts = [decoding.read(self.network, reading, p, params) for p in ("train", "held_out")]
        for part, source in zip(parts, reading.sources.values(), strict=False):
            if len(part.records) < 2:
                rule = "captioning needs two images of each part that have a caption with a word"
                raise ConfigError("data.path", source.name, rule)
        learnt, tested = parts
        self.protocol |= reading.describe()
        texts = [decoding.said(record) for record in learnt.records]
        known = decoding.vocabulary([text for own in texts for text in own])
        found = self._write(learnt.features, texts, known, tested.features)
        references = [decoding.said(record) for record in tested.records]
        common = collections.Counter(" ".join(words(t)) for own in texts for t in own)
        constant = min(common, key=lambda text: (-common[text], text))
        each = cider(found, references)
        right = np.array([
            text in {" ".join(words(own)) for own in of}
            for text, of in zip(found, references, strict=True)
        ])  # fmt: skip
        others = {"another_image": found[-1:] + found[:-1], "commonest": [constant] * len(found)}
        return Measured(
            {"cider": float(each.mean()), "exact_match": float(right.mean())},
            {"exact_match": right[None]},
            {"cider": intervals(each[None])[0]},
            {name: {"cider": float(cider(t, references).mean())} for name, t in others.items()},
        )

    def _write(
        self, features: Array, texts: Sequence[Sequence[str]], known: dict[str, int], test: Array
    ) -> list[str]:
        """Trains the decoder, and writes a caption of each test image."""
        size = len(known) + decoding.UNKNOWN + 1
        module = Decoder(size, size, depth=self.config.eval.decoder_layers)
        rows, inputs, targets = [], [], []
        for row, own in enumerate(texts):
            for text in own:
                told = decoding.ids(text, known)
                rest = decoding.LENGTH - len(told) + 1
                rows.append(row)
                inputs.append(told[:-1] + [decoding.PAD] * rest)
                targets.append(told[1:] + [decoding.IGNORED] * rest)
        examples = np.array(rows), np.array(inputs, np.int32), np.array(targets, np.int32)
        params = decoding.train(module, self.config, features, examples)

        @jax.jit
        def after(kept: Array, patches: Array, place: Array) -> Array:
            logits: Any = module.apply({"params": params}, kept, patches)
            return jax.nn.log_softmax(logits[:, place])

        names, out = {number: word for word, number in known.items()}, []
        size = self.config.eval.batch_size
        for start in range(0, len(test), size):
            batch = test[start : start + size]
            whole = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
            found = decoding.beam_search(after, whole, self.config.eval.beam)[: len(batch)]
            out += [" ".join(names[number] for number in caption) for caption in found]
        return out
