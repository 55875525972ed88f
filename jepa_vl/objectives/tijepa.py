"""TI-JEPA (arXiv 2503.06380): masked features that have read the caption, behind frozen towers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jepa_vl.config import Config, ConfigError
from jepa_vl.models import crosser, predictor, stack
from jepa_vl.models.layers import gather
from jepa_vl.objectives import losses, pairing
from jepa_vl.objectives.base import (
    Batch,
    Predicted,
    as_targets,
    pick_blocks,
    register,
    rescale_init,
    target_spread,
)
from jepa_vl.objectives.captions import CaptionTower, ReadsCaptions
from jepa_vl.objectives.frozen_image import FrozenImage
from jepa_vl.shapes import Array, PyTree


def encode_visible(image: FrozenImage, frozen: PyTree, batch: Batch, full: Array) -> Array:
    """Features [B, K, D] of the visible patches, which have seen no other."""
    del full
    return image.visible_patches(frozen, batch)


def take_visible(image: FrozenImage, frozen: PyTree, batch: Batch, full: Array) -> Array:
    """The public code's context: tokens [B, K, D] of a pass that saw the patches to predict."""
    del image, frozen
    return gather(full, batch["ctx_idx"])


def as_they_are(states: Array) -> Array:
    """Words [B, S, E] as the tower gives them; the crosser normalises each one."""
    return states


def over_tokens(states: Array) -> Array:
    """The public code's norm of [B, S, E]: along S, so that padding changes every word."""
    norm = jnp.sqrt(jnp.sum(jnp.square(states), axis=1, keepdims=True) + 1e-24)
    return states / norm


class Code(NamedTuple):
    """Where the published method and the public code part."""

    visible: Callable[..., Array]
    normalise: Callable[[Array], Array]


CODES = {False: Code(encode_visible, as_they_are), True: Code(take_visible, over_tokens)}


@register("tijepa")
class TIJepa(ReadsCaptions):
    """L = smooth-L1(predictor(crosser(visible, text)), LN(EMA crosser(all patches, text))).

    Parameters: ``crosser`` (the EMA target follows it) and ``predictor``, that of I-JEPA; frozen:
    ``image`` and ``text`` (published: I-JEPA's H/14 and GTE). The captions of an image are read as
    one text (published: one of them, ``text.captions = 1``). Masks are those of I-JEPA, each target
    block a sequence of its own; the public code draws one mask a batch and predicts the union of
    its blocks.

    The public code has defects that are ours only with ``tijepa.parity``: the visible tokens come
    out of a pass over the whole image; words are divided by their norm along the token axis; one
    LayerNorm serves patches and words. Never ours: a target crosser that starts elsewhere and
    keeps its dropout, schedules that do not advance, images without normalisation, He init.
    """

    def __init__(self, config: Config):
        """Builds the modules of a resolved configuration; allocates nothing.

        Raises:
          ConfigError: a frozen tower is absent or does not fit.
        """
        dtype, how = jnp.dtype(config.train.dtype), stack.plan(config.train)
        self.config = config
        self.code = CODES[config.tijepa.parity]
        self.image = FrozenImage(config)
        self.captions: CaptionTower = CaptionTower(config)
        if config.tijepa.parity and config.tijepa.width != self.captions.width:
            rule = f"{self.captions.width}, that of the words: with parity they are not projected"
            raise ConfigError("tijepa.width", config.tijepa.width, rule)
        self.crosser = crosser.Crosser(config.tijepa, dtype, how)
        self.encoder = crosser.CrossedImage(self.image.module, self.crosser, self.captions.width)
        self.predictor = predictor.Predictor(
            grid=config.encoder.grid,
            out_width=config.tijepa.width,
            config=config.predictor,
            conditioner=config.conditioner,
            dtype=dtype,
            how=how,
        )
        self.distance = losses.DISTANCES[config.loss.distance]
        self.pairing = pairing.Masked(self)

    def init(self, rng: Array, batch: Batch) -> PyTree:
        """Parameters, float32: {crosser, predictor}."""
        keys, c = jax.random.split(rng), self.config
        ctx_idx, tgt_idx = batch["ctx_idx"], batch["tgt_idx"]
        seen = jnp.zeros((*ctx_idx.shape, c.encoder.width))
        shape = len(ctx_idx), 1
        words = jnp.zeros((*shape, self.captions.width)), jnp.ones(shape, bool)
        crossed, variables = self.crosser.init_with_output(keys[0], seen, *words)
        params = {"crosser": variables["params"]}
        variables = self.predictor.init(keys[1], crossed, ctx_idx, tgt_idx)
        return rescale_init(params | {"predictor": variables["params"]}, c.train.init)

    def load_frozen(self) -> PyTree:
        """{image} and, unless words come from a cache, {text}."""
        return self.image.load_frozen() | super().load_frozen()

    def frozen_spec(self) -> PyTree:
        """Shapes of :meth:`load_frozen`."""
        return self.image.frozen_spec() | super().frozen_spec()

    def target_of(self, params: PyTree) -> PyTree:
        """The crosser."""
        return params["crosser"]

    def encoder_params(self, target: PyTree, frozen: PyTree) -> PyTree:
        """Of the image tower and the crosser, which reads no caption in there."""
        return {"image": frozen["image"], "crosser": target}

    def loss(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, rng: Array, ramp: Array
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """See :class:`jepa_vl.objectives.base.Objective`; aux: prediction, targets, predicted."""
        del rng, ramp  # neither dropout nor regularisers
        full = self.image.all_patches(frozen, batch)
        visible = self.code.visible(self.image, frozen, batch, full)
        words, word_valid = self.words(frozen, batch)
        aux = self.predict(params, target, (visible, full), (words, word_valid), batch)
        distance = self.distance(aux["prediction"], aux["targets"])
        valid = batch.get("tgt_valid")
        total = losses.masked_mean(distance, valid)
        found = Predicted(aux["prediction"], aux["targets"], valid, distance)
        metrics = {"loss": total, "loss/predict": total}
        metrics["target_std"] = target_spread(aux["targets"])
        return total, metrics, aux | {"predicted": {"image": found}}

    def predict(
        self,
        params: PyTree,
        target: PyTree,
        features: tuple[Array, Array],
        words: tuple[Array, Array],
        batch: Batch,
    ) -> dict[str, Array]:
        """Prediction and targets, float32 [B, M, C, H] each, from the towers' outputs.

        Args:
          params, target: as for :meth:`loss`.
          features: [B, K, D] of the visible and [B, T, D] of all patches.
          words: states [B, S, E] and bool [B, S].
          batch: holds the masks.
        """
        visible, full = features
        context = self.crosser.apply({"params": params["crosser"]}, visible, *words)
        predicted: Any = self.predictor.apply(
            {"params": params["predictor"]},
            context, batch["ctx_idx"], batch["tgt_idx"], None,
            batch.get("ctx_valid"), batch.get("tgt_valid"),
        )  # fmt: skip
        with jax.named_scope("target"):
            crossed: Any = self.crosser.apply({"params": target}, full, *words)
        return {
            "prediction": predicted[0],
            "targets": pick_blocks(as_targets(crossed), batch["tgt_idx"]),
        }

    def features(self, target: PyTree, frozen: PyTree, batch: Batch) -> Array:
        """Patches that have read their image's captions: float32 [B, T, H].

        Their mean over patches is what the paper classifies sentiment from.
        """
        crossed: Any = self.crosser.apply(
            {"params": target}, self.image.all_patches(frozen, batch), *self.words(frozen, batch)
        )
        return crossed

    def words(self, frozen: PyTree, batch: Batch) -> tuple[Array, Array]:
        """All captions of an image as one text: states [B, N * S, E], bool [B, N * S]."""
        states, valid = self.captions.one_text({}, frozen, batch)
        return self.code.normalise(states), valid
