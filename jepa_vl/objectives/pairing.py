"""Energies of images and captions, of any image with any caption: what retrieval ranks by.

Each modality is taken in by itself, row by row, so that a data set is read batch by batch; the
energies of all pairs are then made of these rows. A row depends on no other row of its batch.
"""

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jepa_vl.objectives import losses
from jepa_vl.objectives.base import Batch, masked_pool
from jepa_vl.objectives.sides import Side, image_side, text_side
from jepa_vl.shapes import Array, PyTree


class Pairing(Protocol):
    """How an objective compares images and captions.

    Attributes:
      words: what the energy is, for people; low is compatible.
      draws: how many random masks it is to be averaged over; 1 where there is no chance.
      has_prior: is a caption low in energy with any image, because it is easy to predict?
    """

    words: str
    draws: int
    has_prior: bool

    def images(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Array
    ) -> PyTree:
        """Rows [B, ...] of the images; masks, where the objective reads some, lie in the batch.

        Args:
          params, target, frozen, batch: as for ``Objective.loss``.
          keys: of each image's own chance, [B].
        """
        ...

    def texts(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Array
    ) -> PyTree:
        """Rows [P, ...] of captions that stand alone in a batch, N = 1; keys: [P]."""
        ...

    def energy(self, params: PyTree, target: PyTree, images: PyTree, texts: PyTree) -> Array:
        """Of rows of A images and of P captions: float32 [A, P]."""
        ...


class Cosine:
    """The contrastive control: the negative cosine in the shared space."""

    words = "negative cosine in the shared space, of the online towers"
    draws, has_prior = 1, False

    def __init__(self, objective: Any):
        self.objective = objective

    def images(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Array
    ) -> Array:
        """Unit vectors [B, width]."""
        del target, frozen, keys
        patches: Any = self.objective.encoder.apply({"params": params["image"]}, batch["image"])
        return self.objective.project(params, "image", jnp.mean(patches, axis=1))

    def texts(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Array
    ) -> Array:
        """Unit vectors [P, width]."""
        del target, keys
        states = self.objective.captions.one_text(params, frozen, batch)
        return self.objective.project(params, "text", masked_pool(*states))

    def energy(self, params: PyTree, target: PyTree, images: Array, texts: Array) -> Array:
        """[A, P]."""
        del params, target
        return -jnp.einsum("ad,pd->ap", images, texts, precision="highest")


class _Sides:
    """What both ways of the cross-modal JEPA share: a side of either modality by itself."""

    has_prior = True

    def __init__(self, objective: Any):
        self.objective, self.draws = objective, objective.energy_masks

    def image(self, params: PyTree, target: PyTree, batch: Batch, keys: Array) -> Side:
        """The side of B images."""
        o = self.objective
        online, ema = (functools.partial(o.patches, x["image"]) for x in (params, target))
        return image_side(online, ema, batch["image"], o.view, o.targets, keys)

    def text(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Array
    ) -> Side:
        """The side of P captions."""
        o = self.objective
        online, ema = (functools.partial(o.words, x, frozen, batch) for x in (params, target))
        mask = batch["word_mask"] & batch["caption_mask"][..., None]
        return text_side(online, ema, mask, o.view, o.targets, keys)


class Alone(NamedTuple):
    """A row of pure prediction.

    Attributes:
      targets: float32 [R, C, D], what the other modality is to predict of this one.
      valid: bool [R, C].
      prediction: float32 [R, C', D'], what this one predicts of the other.
    """

    targets: Array
    valid: Array
    prediction: Array


class Pure(_Sides):
    """The cross-modal JEPA where nothing of what is predicted is shown: matrix products alone."""

    words = "the loss of the pair, online encoders and predictors against EMA targets"

    def images(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Array
    ) -> Alone:
        """Rows of B images."""
        del frozen
        o, side = self.objective, self.image(params, target, batch, keys)
        rows, c = len(batch["image"]), o.config.text

        def nothing(mask: Array) -> Array:
            return jnp.zeros((*mask.shape[::2], o.captions.width))

        mask = jnp.ones((rows, 1, c.words), bool)
        asked = text_side(nothing, nothing, mask, o.view, o.targets, keys)
        return Alone(side.targets, side.tgt_valid, o.predict(params, "to_text", side, asked))

    def texts(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Array
    ) -> Alone:
        """Rows of P captions."""
        o, side = self.objective, self.text(params, target, frozen, batch, keys)
        rows, c = len(batch["word_mask"]), o.config.encoder

        def nothing(images: Array) -> Array:
            return jnp.zeros((len(images), c.grid**2, c.width))

        asked = image_side(nothing, nothing, jnp.zeros((rows, 1)), o.view, o.targets, keys)
        return Alone(side.targets, side.tgt_valid, o.predict(params, "to_image", side, asked))

    def energy(self, params: PyTree, target: PyTree, images: Alone, texts: Alone) -> Array:
        """[A, P]."""
        del params, target
        return self.objective.weigh(
            losses.pairwise_mse(images.targets, images.valid, texts.prediction),
            losses.pairwise_mse(texts.targets, texts.valid, images.prediction).T,
        )


class Shown(_Sides):
    """The cross-modal JEPA that shows some tokens of what is predicted: pair by pair."""

    words = Pure.words + ", mean over random choices of the tokens that are shown"

    def images(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Array
    ) -> Side:
        """The side of B images."""
        del frozen
        return self.image(params, target, batch, keys)

    def texts(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Array
    ) -> Side:
        """The side of P captions."""
        return self.text(params, target, frozen, batch, keys)

    def energy(self, params: PyTree, target: PyTree, images: Side, texts: Side) -> Array:
        """[A, P]."""
        del target
        return self.objective.all_pairs_one_by_one(params, images, texts)


class Crossed(NamedTuple):
    """An image behind the frozen tower, and its masks."""

    visible: Array
    full: Array
    masks: dict[str, Array]


class Masked:
    """TI-JEPA: the loss of masked patches that have read the caption, pair by pair."""

    words = "the loss of the pair's masked patches, against the EMA crosser with the same caption"
    draws, has_prior = 4, True

    def __init__(self, objective: Any):
        self.objective = objective

    def images(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Array
    ) -> Crossed:
        """What the frozen tower says of B images, and their masks."""
        del params, target, keys
        o = self.objective
        full = o.image.all_patches(frozen, batch)
        names = ("ctx_idx", "tgt_idx", "ctx_valid", "tgt_valid")
        masks = {name: batch[name] for name in names if name in batch}
        return Crossed(o.code.visible(o.image, frozen, batch, full), full, masks)

    def texts(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Array
    ) -> tuple[Array, Array]:
        """Words of P captions and their validity."""
        del params, target, keys
        return self.objective.words(frozen, batch)

    def energy(
        self, params: PyTree, target: PyTree, images: Crossed, texts: tuple[Array, Array]
    ) -> Array:
        """[A, P]."""
        o, count = self.objective, texts[1].shape[0]

        def row(image: Crossed) -> Array:
            same = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), image)
            found = o.predict(params, target, (same.visible, same.full), texts, same.masks)
            distance = o.distance(found["prediction"], found["targets"])
            valid = same.masks.get("tgt_valid", jnp.ones(distance.shape, bool))
            flat = (x.reshape(count, -1) for x in (distance, valid))
            return losses.row_mean(*flat)

        return jax.lax.map(row, images)
