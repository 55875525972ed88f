"""Sentiment of MVSA's tweets: a linear head on frozen features of image and text, five seeds."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.data import mvsa
from jepa_vl.evaluators import progress
from jepa_vl.evaluators.base import JOINT, Measured, Measures, register
from jepa_vl.evaluators.features import standardise
from jepa_vl.evaluators.joint import Joint
from jepa_vl.shapes import Array, PyTree

SEEDS = 5
SHARES = (0.8, 0.1)  # training and validation; the rest is the test
EPOCHS, BATCH, DECAY = 50, 128, 0.9
RATES = (1e-3, 1e-2, 1e-1)  # the public code has the first alone, which few pairs cannot use
PART = ("single", "multiple")
T_975 = 2.776  # of Student's distribution with SEEDS - 1 degrees of freedom


class Pairs(NamedTuple):
    """What the head learns from: features [n, X], labels int [n], and ``parts``, str [n]."""

    features: Array
    labels: Array
    parts: Array


def f1(found: Array, labels: Array) -> tuple[float, float]:
    """Macro and support-weighted F1 of int [m]; a class that is neither there nor found is out."""
    scores, support = [], []
    for label in np.union1d(found, labels):
        hit = np.sum((found == label) & (labels == label))
        scores.append(2 * hit / (np.sum(found == label) + np.sum(labels == label)))
        support.append(np.sum(labels == label))
    return float(np.mean(scores)), float(np.average(scores, weights=support))


def split(count: int, rng: np.random.Generator) -> list[Array]:
    """Places of the training, validation and test part: 8 : 1 : 1 of a random order."""
    ends = [round(SHARES[0] * count), round(sum(SHARES) * count)]
    return np.split(rng.permutation(count), ends)


def upsample(labels: Array, rng: np.random.Generator) -> Array:
    """Places with which all classes are as frequent as the commonest: some stand there twice."""
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    most = max(map(len, places))
    more = [np.concatenate([p, rng.choice(p, most - len(p))]) for p in places]
    return np.concatenate(more)


def train_head(
    x: Array, labels: Array, val: Array, val_labels: Array, rng: np.random.Generator
) -> Array:
    """Softmax regression by Adam, of the rate and epoch of the best weighted F1 on validation.

    Of several as good the last one counts.

    Args:
      x: float64 [n, X], standardised; labels: int [n] in [0, C), all of which occur.
      val: [v, X]; val_labels: int [v].
      rng: of the start and of the order.

    Returns:
      [X + 1, C]; the last row holds the biases.
    """
    classes = int(labels.max()) + 1
    x, val = (np.concatenate([part, np.ones((len(part), 1))], axis=1) for part in (x, val))
    start = rng.normal(size=(x.shape[1], classes)) * np.sqrt(2.0 / x.shape[1])
    start[-1] = 0.0
    best, kept = -1.0, start
    for rate in RATES:
        for weights in _epochs(x, np.eye(classes)[labels], start, rate, rng):
            score = f1(np.argmax(val @ weights, axis=1), val_labels)[1]
            if score >= best:
                best, kept = score, weights
    return kept


def _epochs(
    x: Array, onehot: Array, weights: Array, rate: float, rng: np.random.Generator
) -> Iterator[Array]:
    """The weights after each epoch of Adam on the cross-entropy."""
    first, second, step = np.zeros_like(weights), np.zeros_like(weights), 0
    for epoch in range(EPOCHS):
        order = rng.permutation(len(x))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            logits = x[rows] @ weights
            share = np.exp(logits - logits.max(axis=1, keepdims=True))
            share /= share.sum(axis=1, keepdims=True)
            gradient = x[rows].T @ (share - onehot[rows]) / len(rows)
            step += 1
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            scale = np.sqrt(second / (1 - 0.999**step)) + 1e-8
            weights = weights - rate * DECAY**epoch * first / (1 - 0.9**step) / scale
        progress.beat()
        yield weights


def classify(pairs: Pairs, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Test scores of one split and head, by name, and those of the commonest training class.

    Returns:
      ``accuracy``, ``macro_f1``, ``weighted_f1``; of pairs of both kinds also for each kind, as
      ``single_accuracy``.

    Raises:
      ConfigError: a class is missing from the training part, or a part is empty.
    """
    rng = np.random.default_rng([seed, len(pairs.labels)])
    train, val, test = split(len(pairs.labels), rng)
    names, labels = np.unique(pairs.labels, return_inverse=True)
    if not len(val) or not len(test) or len(np.unique(labels[train])) < len(names):
        rule = "sentiment needs a pair of each class to learn from, and pairs to select and test on"
        raise ConfigError("data.path", len(labels), rule)
    place = train[upsample(labels[train], rng)]
    x, rest = standardise(pairs.features[place], pairs.features)
    weights = train_head(x, labels[place], rest[val], labels[val], rng)
    found = np.argmax(rest[test] @ weights[:-1] + weights[-1], axis=1)
    common = np.full(len(test), np.bincount(labels[train]).argmax())
    return tuple(_scores(y, labels[test], pairs.parts[test]) for y in (found, common))  # pyright: ignore


def _scores(found: Array, labels: Array, parts: Array) -> dict[str, float]:
    out = {}
    kinds = [kind for kind in PART if np.any(parts == kind)]
    for kind in ("", *(kinds if len(kinds) > 1 else ())):
        of = parts == kind if kind else np.ones(len(parts), bool)
        macro, weighted = f1(found[of], labels[of])
        name = f"{kind}_" if kind else ""
        out |= {
            f"{name}accuracy": float(np.mean(found[of] == labels[of])),
            f"{name}macro_f1": macro,
            f"{name}weighted_f1": weighted,
        }
    return out


@register("sentiment")
class Sentiment(Measures):
    """MVSA under both splits that the field quotes: pooled, then split, and each set by itself."""

    reads = JOINT

    def __init__(self, config: Config, joint: Joint):
        """Takes an objective that reads text, and MVSA.

        Raises:
          ConfigError: it reads none, or the data are others.
        """
        joint.need_text("sentiment")
        source: Any = joint.sources["train"]
        while hasattr(source, "source"):
            source = source.source
        if not isinstance(source, mvsa.Mvsa):
            rule = "sentiment is measured on data.kind 'mvsa' alone"
            raise ConfigError("data.kind", config.data.kind, rule)
        self.config, self.joint, self.source = config, joint, source
        crossed = hasattr(joint.objective, "features")
        joined = "pooled image patches and pooled words, side by side; target weights, where a "
        self.protocol: dict[str, Any] = {
            "labels": mvsa.RULE,
            "features": "mean over patches that have read the text"
            if crossed
            else joined + "tower has some",
            "head": f"softmax regression, Adam {RATES} x {DECAY} an epoch, {EPOCHS} epochs, batch "
            f"{BATCH}; features standardised; classes up-sampled to the commonest",
            "chosen_on": "weighted F1 of the validation part, among rates and epochs",
            "split": "8:1:1 at random; pooled_: both sets in one, then split",
            "seeds": SEEDS,
            "spread": "standard deviation over seeds (n - 1)",
            "interval": "mean over seeds of split and head, 95 % by Student's t",
        }

    def measure(self, params: tuple[PyTree, PyTree]) -> Measured:
        """``single_``, ``multiple_`` and, where both are there, ``pooled_`` scores.

        Each is the mean over seeds of ``accuracy``, ``macro_f1`` or ``weighted_f1`` of the test
        part, with ``_spread``; ``pooled_single_accuracy`` is that of MVSA-Single's share of the
        pooled test part.

        Args:
          params: (params, target) of a train state.

        Raises:
          ConfigError: too few pairs, or none can be read.
        """
        pairs = self._read(params)
        kinds = [kind for kind in PART if np.any(pairs.parts == kind)]
        sets = {kind: Pairs(*(x[pairs.parts == kind] for x in pairs)) for kind in kinds}
        if len(kinds) > 1:
            sets["pooled"] = pairs
        scores, ci, floor = {}, {}, {}
        for name, members in sets.items():
            drawn = [classify(members, self.config.seed + seed) for seed in range(SEEDS)]
            for score in drawn[0][0]:
                values = np.array([found[score] for found, _ in drawn])
                mean, spread = float(values.mean()), float(values.std(ddof=1))
                half = T_975 * spread / SEEDS**0.5
                scores[f"{name}_{score}"], ci[f"{name}_{score}"] = mean, (mean - half, mean + half)
                scores[f"{name}_{score}_spread"] = spread
                floor[f"{name}_{score}"] = float(np.mean([common[score] for _, common in drawn]))
        return Measured(scores, {}, ci, {"majority": floor})

    def _read(self, params: tuple[PyTree, PyTree]) -> Pairs:
        """Features of all pairs that can be read."""
        joint, (online, target) = self.joint, params
        joint.sources["whole"] = self.source
        run = joint.compiled(pair_features(joint.objective), 3)
        rows, records, indices = [], [], []
        for shown in joint.read("whole", range(len(self.source))):
            texts = [(record["captions"] or [""])[0] for record in shown.records]
            batch = {"image": shown.images, **joint.words(texts)}
            rows.append(run(online, target, joint.frozen, batch)[: len(texts)])
            records += shown.records
            indices += shown.indices
        joint.used("whole", indices)
        self.protocol |= {
            **joint.describe(),
            "pairs": {kind: [self.source.parts[i] for i in indices].count(kind) for kind in PART},
            "without_text": sum(not record["captions"] for record in records),
            "left_out": self.source.left_out,
        }
        labels = np.array([record["label"] for record in records])
        parts = np.array([self.source.parts[i] for i in indices])
        return Pairs(np.concatenate(rows), labels, parts)


def pair_features(objective: Any) -> Any:
    """(params, target, frozen, batch with one caption an image) -> float32 [B, X].

    TI-JEPA's are of patches that have read the text; of others image and text lie side by side.
    """

    def crossed(params: PyTree, target: PyTree, frozen: PyTree, batch: dict[str, Array]) -> Array:
        del params
        return jnp.mean(objective.features(target, frozen, batch), axis=1)

    def joined(params: PyTree, target: PyTree, frozen: PyTree, batch: dict[str, Array]) -> Array:
        encoder = objective.encoder_params(target, frozen)
        patches = objective.encoder.apply({"params": encoder}, batch["image"])
        text = target if "text" in target else params
        states, valid = objective.captions.one_text(text, frozen, batch)
        weight = valid.astype(states.dtype)[..., None]
        words = jnp.sum(states * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)
        return jnp.concatenate([jnp.mean(patches, axis=1), words], axis=1)

    return crossed if hasattr(objective, "features") else joined
