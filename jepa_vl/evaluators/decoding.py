"""Training a decoder on frozen features, its vocabulary, and captions by beam search."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jepa_vl.config import Config
from jepa_vl.data.captions import words
from jepa_vl.data.sources import Record
from jepa_vl.evaluators import progress
from jepa_vl.evaluators.joint import Joint
from jepa_vl.evaluators.network import Network
from jepa_vl.models.decoder import Decoder
from jepa_vl.shapes import Array, PyTree

PAD, START, END, UNKNOWN = range(4)
LENGTH = 24  # words at most, with start and end
MOST_WORDS = 10_000
RATE, WARMUP = 1e-3, 0.1
IGNORED = -1  # a place without a target


class Part(NamedTuple):
    """Images of one part: features [n, T, D], their records, and indices in the source."""

    features: Array
    records: list[Record]
    indices: list[int]


def protocol(config: Config, what: str) -> str:
    """The decoder and how it is trained, in words; ``what``: a step is made of."""
    e = config.eval
    return (
        f"{e.decoder_layers} blocks of width {Decoder.width} that read all patches of the last "
        f"layer; AdamW {RATE}, warm-up {WARMUP}, cosine, {e.decoder_steps} steps of "
        f"{e.decoder_batch} {what}"
    )


def reader(network: Network) -> Joint:
    """Reads images with what is said of them; no text side is used."""
    sources = network.train, network.held_out
    return Joint(network.config, None, {}, network.mesh, *sources, network.log)


def read(network: Network, reading: Joint, part: str, params: PyTree) -> Part:
    """Features of the images of a part that have a caption with a word.

    Raises:
      ConfigError: no image can be read.
    """
    features, records, indices = [], [], []
    for shown in reading.read(part, reading.draw(part)):
        kept = [i for i, record in enumerate(shown.records) if said(record)]
        tokens = np.asarray(network.tokens(params, shown.images))
        features += [tokens[i] for i in kept]
        records += [shown.records[i] for i in kept]
        indices += [shown.indices[i] for i in kept]
    reading.used(part, indices)
    return Part(np.array(features, np.float32), records, indices)


def said(record: Record) -> list[str]:
    """The captions that have a word."""
    return [text for text in record["captions"] if words(text)]


def vocabulary(texts: Sequence[str]) -> dict[str, int]:
    """Ids of the commonest words, after those of PAD, START, END and UNKNOWN."""
    counts = collections.Counter(word for text in texts for word in words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:MOST_WORDS]
    return {word: number + UNKNOWN + 1 for number, word in enumerate(ranked)}


def ids(text: str, known: dict[str, int]) -> list[int]:
    """START, the words, END; long texts lose their end."""
    inner = [known.get(word, UNKNOWN) for word in words(text)][: LENGTH - 2]
    return [START, *inner, END]


def train(
    module: Decoder,
    config: Config,
    features: Array,
    pairs: tuple[Array, Array, Array],
) -> PyTree:
    """Parameters of a decoder by AdamW on the cross-entropy, ``eval.decoder_steps`` steps.

    Args:
      module: the decoder.
      config: reads ``eval.decoder_steps``, ``eval.decoder_batch`` and ``seed``.
      features: [n, T, D].
      pairs: of each example the row of its image, int [m]; inputs int32 [m, L]; targets
        int32 [m, L], IGNORED where there is none.
    """
    steps, rows = config.eval.decoder_steps, min(config.eval.decoder_batch, len(pairs[0]))
    warmup = max(1, round(WARMUP * steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, warmup, max(steps, warmup + 1))
    optimizer = optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    of, inputs, targets = pairs
    params = module.init(jax.random.key(config.seed), inputs[:1], features[:1])["params"]

    def loss(params: PyTree, x: Array, y: Array, patches: Array) -> Array:
        logits: Any = module.apply({"params": params}, x, patches)
        counted = y != IGNORED
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0))
        return jnp.sum(losses * counted) / jnp.maximum(jnp.sum(counted), 1)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: PyTree, state: PyTree, *batch: Array) -> tuple[PyTree, PyTree]:
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(config.seed)
    order = np.zeros(0, np.int64)
    for number in range(steps):
        if len(order) < rows:
            order = np.concatenate([order, rng.permutation(len(of))])
        drawn, order = order[:rows], order[rows:]
        params, state = step(params, state, inputs[drawn], targets[drawn], features[of[drawn]])
        if number % progress.EVERY == 0:
            jax.block_until_ready(params)
            progress.beat()
    return params


# (word ids int32 [R, LENGTH], patches [R, T, D], place) -> log-probabilities after it, [R, O]
Next = Callable[[Array, Array, int], Array]


def beam_search(after: Next, patches: Array, beam: int) -> list[list[int]]:
    """The likeliest words of each image by their mean log-probability: without START and END.

    Args:
      after: the decoder.
      patches: [B, T, D].
      beam: hypotheses that are kept; 1 is greedy.
    """
    count = len(patches)
    spread = np.repeat(patches, beam, axis=0)
    kept = np.full((count, beam, LENGTH), PAD, np.int32)
    kept[:, :, 0] = START
    scores = np.full((count, beam), -np.inf)
    scores[:, 0] = 0.0
    done: list[list[tuple[float, list[int]]]] = [[] for _ in range(count)]
    for place in range(LENGTH - 1):
        told = np.array(after(kept.reshape(count * beam, LENGTH), spread, place), np.float64)
        progress.beat()
        told[:, [PAD, START, UNKNOWN]] = -np.inf
        total = (scores[:, :, None] + told.reshape(count, beam, -1)).reshape(count, -1)
        best = np.argsort(-total, axis=1, kind="stable")[:, :beam]
        scores = np.take_along_axis(total, best, axis=1)
        rows, word = np.divmod(best, told.shape[1])
        kept = np.take_along_axis(kept, rows[:, :, None], axis=1)
        kept[:, :, place + 1] = word
        full = place == LENGTH - 2
        for image, row in np.argwhere(np.isfinite(scores) & ((word == END) | full)):
            length = place + (word[image, row] != END)
            mean = float(scores[image, row]) / (place + 1)
            done[image].append((mean, kept[image, row, 1 : length + 1].tolist()))
            scores[image, row] = -np.inf
        scores[np.array([len(found) >= beam for found in done])] = -np.inf
        if not np.isfinite(scores).any():
            break
    return [max(found)[1] if found else [] for found in done]
