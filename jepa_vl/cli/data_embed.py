"""``jepa-vl data embed``: the captions of a data set through a frozen tower, once."""

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jepa_vl.cli import configs
from jepa_vl.cli.train import writable
from jepa_vl.config import Config, ConfigError
from jepa_vl.shapes import Array

BATCH = 256  # captions a forward pass


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Writes the cache and prints how training reads it.

    Raises:
      ConfigError: a bad configuration or data, or a tower that is not pretrained.
    """
    config = configs.load(args.config, overrides)
    if config.text.kind in ("hashed", "cached"):
        raise ConfigError("text.kind", config.text.kind, "embeddings are of t5, bert or gte")
    if not args.out:
        raise ConfigError("--out", "", "give DIR: folder of the cache")
    out = writable("--out", args.out)
    from jepa_vl.data import captions, embeddings, sources

    texts = _distinct(sources.open_sources(config))
    if not texts:
        raise ConfigError("data.caption_keys", config.data.caption_keys, "no caption has a word")
    reader: Any = captions.build(config.text)
    meta = embeddings.write(out, config.text, reader.tokenize.spec, _embed(config, reader, texts))
    print(
        f"{meta['captions']} captions of {meta['width']} channels, {meta['bytes'] / 2**20:,.1f} MiB"
        f"\n--config.text.kind=cached --config.text.path={out} "
        f"--config.text.words={meta['words']}"
    )
    return 0


def _distinct(parts: Sequence[Any]) -> list[str]:
    """The captions with a word of all images, each once, in order of appearance.

    Of an image that cannot be read there are none; training leaves it out too.
    """
    from jepa_vl.data import captions, faults

    found: dict[str, None] = {}
    for source in parts:
        for index in range(len(source)):
            with contextlib.suppress(faults.BadSample), faults.reading():
                found.update(dict.fromkeys(source[index]["captions"]))
    return [text for text in found if captions.words(text)]


def _embed(config: Config, reader: Any, texts: list[str]) -> Iterator[tuple[str, Array]]:
    """Each caption with its embeddings, float32 [words, E], computed as training computes them."""
    import jax
    import jax.numpy as jnp

    from jepa_vl.models import text

    module = text.build(config.text, jnp.dtype(config.train.dtype))
    weights = jax.device_put(text.load(config.text))
    apply = jax.jit(lambda p, ids, mask: module.apply({"params": p}, ids, mask))
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        rows = [reader.encode_all([caption]) for caption in part]
        rows += rows[-1:] * (BATCH - len(rows))  # one shape, one compilation
        ids = np.stack([row["word_ids"][:1] for row in rows])
        mask = np.stack([row["word_mask"][:1] for row in rows])
        states = np.asarray(apply(weights, ids, mask))
        for caption, row, valid in zip(part, states[:, 0], mask[:, 0], strict=False):
            yield caption, row[valid]
