"""The contrastive control: CLIP's softmax (arXiv 2103.00020), SigLIP's sigmoid (arXiv 2303.15343).

Same towers and batches as the JEPAs, so that "without negatives" can be compared.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jepa_vl.config import Config
from jepa_vl.models import fast, shared_space, stack, vit
from jepa_vl.objectives import pairing
from jepa_vl.objectives.base import (
    Batch,
    masked_pool,
    register,
    rescale_init,
    tower_spread,
)
from jepa_vl.objectives.captions import CaptionTower, ReadsCaptions
from jepa_vl.shapes import Array, PyTree
from jepa_vl.sharding import sum_over_rows

MAX_SCALE = 100.0  # CLIP's bound on 1 / temperature


class Rows(NamedTuple):
    """Pairs: ``image`` and ``text`` float32 [B, width], of unit length; ``valid`` bool [B]."""

    image: Array
    text: Array
    valid: Array


def clip_sums(own: Rows, every: Rows, first: Array, head: PyTree) -> dict[str, Array]:
    """Mean of the cross-entropies of an image's text among all texts, and the reverse.

    Args:
      own: rows [b] whose terms are summed; every: all rows [B]; row 0 of own is row ``first``,
        as :func:`jepa_vl.sharding.sum_over_rows` gives them.
      head: ``scale``, log of the inverse temperature.
    """
    scale = jnp.minimum(jnp.exp(head["scale"]), MAX_SCALE)
    place = first + jnp.arange(own.valid.shape[0])

    def terms(queries: Array, keys: Array) -> tuple[Array, Array]:
        logits = jnp.where(every.valid, scale * queries @ keys.T, -1e9)
        right = jnp.take_along_axis(logits, place[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - right, jnp.argmax(logits, axis=1) == place

    by_image, hit = terms(own.image, every.text)
    by_text, _ = terms(own.text, every.image)
    return _sums(0.5 * (by_image + by_text), hit, own.valid)


def siglip_sums(own: Rows, every: Rows, first: Array, head: PyTree) -> dict[str, Array]:
    """For each image, -log sigmoid(+-(logit + bias)) summed over all texts; + for its own."""
    place = first + jnp.arange(own.valid.shape[0])
    logits = jnp.exp(head["scale"]) * own.image @ every.text.T + head["bias"]
    sign = jnp.where(jnp.arange(every.valid.shape[0]) == place[:, None], 1.0, -1.0)
    terms = jnp.where(every.valid, -jax.nn.log_sigmoid(sign * logits), 0.0)
    hit = jnp.argmax(jnp.where(every.valid, logits, -1e9), axis=1) == place
    return _sums(jnp.sum(terms, axis=1), hit, own.valid)


def _sums(terms: Array, hit: Array, valid: Array) -> dict[str, Array]:
    weight = valid.astype(jnp.float32)
    return {"loss": terms @ weight, "hits": hit @ weight, "count": jnp.sum(weight)}


class Loss(NamedTuple):
    """A contrastive loss and where its scalars start."""

    sums: Callable[..., dict[str, Array]]
    start: dict[str, float]


LOSSES = {
    "clip": Loss(clip_sums, {"scale": math.log(1 / 0.07)}),
    "siglip": Loss(siglip_sums, {"scale": math.log(10.0), "bias": -10.0}),
}


@register("contrastive")
class Contrastive(ReadsCaptions):
    """Image and caption of a pair close together, those of other pairs of the batch apart.

    An image is the mean of its patches, its text the mean over the words of all its N captions,
    each mapped linearly into a shared space. Exact over the global batch, on any mesh; pairs
    without a caption are neither positive nor negative.

    Parameters: ``image``, ``head`` and, unless it is frozen, ``text``. Nothing is learnt from an
    EMA: the target follows the image tower for evaluation alone, as that of the JEPAs is what they
    are evaluated by.
    """

    def __init__(self, config: Config):
        """Builds the modules of a resolved configuration; allocates nothing."""
        dtype = jnp.dtype(config.train.dtype)
        self.config = config
        self.encoder = vit.build(config.encoder, dtype, stack.plan(config.train))
        self.captions: CaptionTower = CaptionTower(config)
        self.head = shared_space.Head(config.contrastive.width, dtype)
        self.criterion = LOSSES[config.contrastive.loss]
        self.pairing = pairing.Cosine(self)

    def init(self, rng: Array, batch: Batch) -> PyTree:
        """Parameters, float32: {image, head} and, where the text tower is trained, {text}."""
        keys = jax.random.split(rng, 4)
        image, image_params = self.encoder.init_with_output(keys[0], batch["image"])
        text, words = self.captions.init(keys[1], batch)
        head = {
            "image": self.head.init(keys[2], image[:, 0])["params"],
            "text": self.head.init(keys[3], words.states[:, 0, 0])["params"],
            # Their names keep both out of the weight decay.
            **{name: jnp.float32(value) for name, value in self.criterion.start.items()},
        }
        params = {"image": image_params["params"], "head": head} | text
        return rescale_init(params, self.config.train.init)

    def target_of(self, params: PyTree) -> PyTree:
        """The image tower."""
        return params["image"]

    def encoder_params(self, target: PyTree, frozen: PyTree) -> PyTree:
        """The target itself."""
        del frozen
        return target

    def loss(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, rng: Array, ramp: Array
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """See :class:`jepa_vl.objectives.base.Objective`; aux: rows, the pairs in shared space;
        nothing is predicted."""
        del target, rng, ramp
        patches, words, word_valid = self._towers(params, frozen, batch)
        rows = self._rows(params, patches, words, word_valid)
        sums = sum_over_rows(self.criterion.sums, rows, _scalars(params))
        count = jnp.maximum(sums["count"], 1.0)
        total = sums["loss"] / count
        metrics = {"loss": total, "loss/predict": total, "batch_accuracy": sums["hits"] / count}
        metrics |= {f"logit_{name}": value for name, value in _scalars(params).items()}
        metrics["target_std/image"] = tower_spread(patches, jnp.ones(patches.shape[:2], bool))
        metrics["target_std/text"] = tower_spread(words, word_valid)
        return total, metrics, {"rows": rows, "predicted": {}}

    def embed(self, params: PyTree, frozen: PyTree, batch: Batch) -> Rows:
        """Pairs in the shared space; the product of an image and a text is their cosine."""
        return self._rows(params, *self._towers(params, frozen, batch))

    def _towers(self, params: PyTree, frozen: PyTree, batch: Batch) -> tuple[Array, Array, Array]:
        """[B, T, D]; words of all captions [B, N * S, E] and bool [B, N * S]."""
        patches: Any = self.encoder.apply({"params": params["image"]}, batch["image"])
        return patches, *self.captions.one_text(params, frozen, batch)

    def _rows(self, params: PyTree, patches: Array, words: Array, word_valid: Array) -> Rows:
        pooled = {"image": jnp.mean(patches, axis=1), "text": masked_pool(words, word_valid)}
        sides = {name: self.project(params, name, x) for name, x in pooled.items()}
        return Rows(**sides, valid=jnp.any(word_valid, axis=-1))

    def project(self, params: PyTree, name: str, features: Array) -> Array:
        """Pooled features [B, D] of a tower, image or text, in the shared space: unit rows."""
        y: Any = self.head.apply({"params": params["head"][name]}, features)
        return y / fast.safe_norm(y)[:, None]


def _scalars(params: PyTree) -> dict[str, Array]:
    return {name: params["head"][name] for name in ("scale", "bias") if name in params["head"]}
