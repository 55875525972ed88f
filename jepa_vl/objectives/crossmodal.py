"""Cross-modal TI-JEPA: each modality predicts the other's latents; alignment without negatives."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jepa_vl.config import Config
from jepa_vl.models import cross_predictor, stack, vit
from jepa_vl.objectives import losses, pairing
from jepa_vl.objectives.base import Batch, Predicted, register, rescale_init, tower_spread
from jepa_vl.objectives.captions import CaptionTower, ReadsCaptions
from jepa_vl.objectives.sides import TARGETS, Encode, Partial, Pure, Side, image_side, text_side
from jepa_vl.shapes import Array, PyTree


@register("crossmodal")
class CrossModal(ReadsCaptions):
    """L = w_TI |g_TI(f_T(t)) - sg LN(EMA f_I(x))|^2 + w_IT |g_IT(f_I(x)) - sg LN(EMA f_T(t))|^2.

    Squared errors are means over width and valid target tokens, then over pairs. A pair is an
    image and one of its captions; an image with N captions is in N pairs.

    Parameters: ``image`` and ``text`` (the EMA target follows both), and the predictors
    ``to_image`` and ``to_text``. A text tower that is frozen is its own EMA: it is in neither.

    Limits. Expected targets blur: detail that several captions of an image, or several images of
    a caption, do not share is averaged away. Paired data is needed. A constant would minimise the
    loss; what stands against it is the EMA with its stop-gradient, so stability rests on its
    momentum (``optim.ema``): watch ``target_std`` of both towers.
    """

    def __init__(self, config: Config):
        """Builds the modules of a resolved configuration; allocates nothing."""
        dtype, how = jnp.dtype(config.train.dtype), stack.plan(config.train)
        c = config.crossmodal
        self.config = config
        self.encoder = vit.build(config.encoder, dtype, how)
        self.captions: CaptionTower = CaptionTower(config)
        predictor = functools.partial(
            cross_predictor.CrossPredictor,
            grid=config.encoder.grid,
            words=config.text.words,
            config=config.predictor,
            dtype=dtype,
            how=how,
        )
        self.to_image = predictor(target="image", out_width=config.encoder.width)
        self.to_text = predictor(target="text", out_width=self.captions.width)
        self.view = Partial(c.context_fraction) if c.context_fraction else Pure()
        self.targets = TARGETS[c.targets]
        # What is predicted from one side alone serves all pairs that this side is in.
        self._pairwise = self.all_pairs_one_by_one if c.context_fraction else self.all_pairs
        self.energy_masks = c.energy_masks if c.context_fraction else 1
        self.pairing = (pairing.Shown if c.context_fraction else pairing.Pure)(self)

    def init(self, rng: Array, batch: Batch) -> PyTree:
        """Parameters, float32: {image, to_image, to_text} and, where it is trained, {text}."""
        keys = jax.random.split(rng, 5)
        params, words = self.captions.init(keys[1], batch)
        params["image"] = self.encoder.init(keys[0], batch["image"])["params"]
        image = functools.partial(self.patches, params["image"])

        def nothing(mask: Array) -> Array:
            del mask
            return words.states.reshape(-1, *words.states.shape[2:])

        images, texts = self._sides((image, image), (nothing, nothing), batch, keys[2])
        images = self._repeat(images, batch["caption_mask"].shape[1])
        for key, name, source, own in (
            (keys[3], "to_image", texts, images),
            (keys[4], "to_text", images, texts),
        ):
            variables = getattr(self, name).init(key, source.tokens, own.own, own.query_idx)
            params[name] = variables["params"]
        return rescale_init(params, self.config.train.init)

    def target_of(self, params: PyTree) -> PyTree:
        """The towers that are trained."""
        return {name: params[name] for name in ("image", "text") if name in params}

    def encoder_params(self, target: PyTree, frozen: PyTree) -> PyTree:
        """The image tower."""
        del frozen
        return target["image"]

    def loss(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, rng: Array, ramp: Array
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """See :class:`jepa_vl.objectives.base.Objective`; aux: images, texts, the two sides;
        predicted."""
        del ramp
        images, texts = self.sides(params, target, frozen, batch, rng)
        captions = batch["caption_mask"].shape[1]
        pairs = self._repeat(images, captions), texts
        predictions = self.predictions(params, *pairs)
        to_image, to_text = _errors(*predictions, *pairs)
        pair = batch["caption_mask"].reshape(-1) & jnp.any(texts.tgt_valid, axis=-1)
        parts = losses.masked_mean(to_image, pair), losses.masked_mean(to_text, pair)
        total = self.weigh(*parts)
        metrics = {
            "loss": total,
            "loss/predict": total,
            "loss/text_to_image": parts[0],
            "loss/image_to_text": parts[1],
            "target_std/image": tower_spread(images.targets, images.tgt_valid),
            "target_std/text": tower_spread(texts.targets, texts.tgt_valid),
        }
        aux = {"images": images, "texts": texts}
        return total, metrics, aux | {"predicted": self._predicted(predictions, pairs, pair)}

    def _predicted(
        self, predictions: tuple[Array, Array], pairs: tuple[Side, Side], pair: Array
    ) -> dict[str, Predicted]:
        """Of P = B * N pairs, ``pair`` bool [P] where they count, as of B images."""
        c = self.config
        weights = {"image": c.crossmodal.text_to_image, "text": c.crossmodal.image_to_text}
        found = {}
        for (name, weight), made, side in zip(weights.items(), predictions, pairs, strict=True):
            distance = weight * losses.mse(made, side.targets)
            arrays = Predicted(made, side.targets, pair[:, None] & side.tgt_valid, distance)
            found[name] = jax.tree.map(
                lambda x: x.reshape(-1, c.text.captions, *x.shape[1:]), arrays
            )
        return found

    def sides(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, rng: Array
    ) -> tuple[Side, Side]:
        """What both modalities bring to a pair: B images, and P = B * N captions."""

        def encoders(weights: PyTree) -> tuple[Encode, Encode]:
            words = functools.partial(self.words, weights, frozen, batch)
            return functools.partial(self.patches, weights["image"]), words

        images, words = zip(encoders(params), encoders(target), strict=True)
        return self._sides(images, words, batch, rng)

    def _sides(
        self, image: tuple[Encode, Encode], words: tuple[Encode, Encode], batch: Batch, rng: Array
    ) -> tuple[Side, Side]:
        """The sides, by an online and an EMA encoder for each modality."""
        keys = jax.random.split(rng)
        mask = batch["word_mask"] & batch["caption_mask"][..., None]
        images = image_side(*image, batch["image"], self.view, self.targets, keys[0])
        return images, text_side(*words, mask, self.view, self.targets, keys[1])

    def patches(self, weights: PyTree, *args: Array) -> Array:
        """Patches [B, T, D] of images or, with an index, of the visible patches [B, K, D]."""
        return self.encoder.apply({"params": weights}, *args)  # pyright: ignore[reportReturnType]

    def words(self, weights: PyTree, frozen: PyTree, batch: Batch, mask: Array) -> Array:
        """Words [B * N, S, E] that have read those in ``mask``, bool [B, N, S], alone."""
        states = self.captions.words(weights, frozen, {**batch, "word_mask": mask}).states
        return states.reshape(-1, *states.shape[2:])

    def errors(self, params: PyTree, images: Side, texts: Side) -> tuple[Array, Array]:
        """Squared errors of P pairs, text to image and image to text: float32 [P] each."""
        return _errors(*self.predictions(params, images, texts), images, texts)

    def predictions(self, params: PyTree, images: Side, texts: Side) -> tuple[Array, Array]:
        """What is asked for of P pairs, of the images and of the texts: [P, C, D] each."""
        return (
            self.predict(params, "to_image", texts, images),
            self.predict(params, "to_text", images, texts),
        )

    def energy(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, rng: Array
    ) -> Array:
        """E of every image of the batch with every caption; low is compatible.

        Args:
          params, target, frozen, batch: as for :meth:`loss`.
          rng: of the masks; E is the mean over ``crossmodal.energy_masks`` of them.

        Returns:
          [B, B * N] float32; columns of captions that are missing hold anything.
        """

        def one(key: Array) -> Array:
            return self._pairwise(params, *self.sides(params, target, frozen, batch, key))

        return jnp.mean(jax.lax.map(one, jax.random.split(rng, self.energy_masks)), axis=0)

    def all_pairs(self, params: PyTree, images: Side, texts: Side) -> Array:
        """[B, P] energies by matrix products; exact where predictions know one side alone."""
        to_image = self.predict(params, "to_image", texts, _first(images, texts))
        to_text = self.predict(params, "to_text", images, _first(texts, images))
        return self.weigh(
            losses.pairwise_mse(images.targets, images.tgt_valid, to_image),
            losses.pairwise_mse(texts.targets, texts.tgt_valid, to_text).T,
        )

    def all_pairs_one_by_one(self, params: PyTree, images: Side, texts: Side) -> Array:
        """[B, P] energies, each image with all captions in turn; for predictions that know both."""
        count = texts.targets.shape[0]

        def row(image: Side) -> Array:
            same = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), image)
            return self.weigh(*self.errors(params, same, texts))

        return jax.lax.map(row, images)

    def predict(self, params: PyTree, name: str, source: Side, asked: Side) -> Array:
        """What predictor ``name`` makes of one side for what the other asks for: [R, C, D]."""
        module: Callable[..., Any] = getattr(self, name).apply
        return module({"params": params[name]}, source.tokens, asked.own, asked.query_idx)

    def weigh(self, to_image: Array, to_text: Array) -> Array:
        """The sum of both directions by their weights."""
        c = self.config.crossmodal
        return c.text_to_image * to_image + c.image_to_text * to_text

    def _repeat(self, images: Side, captions: int) -> Side:
        """One row a pair, in the order of the captions."""
        return jax.tree.map(lambda x: jnp.repeat(x, captions, axis=0), images)


def without_prior(energy: Array) -> Array:
    """E(x, t) - mean of E(x', t) over the other images x': [B, P] -> [B, P].

    A caption that is easy to predict is no better a match for that. Ranks captions of an image;
    the order of the images of a caption stays.
    """
    count = energy.shape[0]
    others = (jnp.sum(energy, axis=0) - energy) / jnp.maximum(count - 1, 1)
    return energy - others


def _errors(to_image: Array, to_text: Array, images: Side, texts: Side) -> tuple[Array, Array]:
    return (
        losses.row_mean(losses.mse(to_image, images.targets), images.tgt_valid),
        losses.row_mean(losses.mse(to_text, texts.targets), texts.tgt_valid),
    )


def _first(side: Side, rows: Side) -> Side:
    """What a side asks for, which is the same in all rows, for as many rows as another side has."""
    count = rows.targets.shape[0]
    return jax.tree.map(lambda x: jnp.broadcast_to(x[:1], (count, *x.shape[1:])), side)
