"""TC-JEPA (arXiv 2605.03245), and I-JEPA (arXiv 2301.08243): the same road, no conditioner."""

from typing import Any

import jax
import jax.numpy as jnp

from jepa_vl.config import Config, reads_text
from jepa_vl.models import conditioner, predictor, stack, vit
from jepa_vl.models.conditioner import Reading, Words
from jepa_vl.objectives import anticollapse, captions, losses
from jepa_vl.objectives.base import (
    Batch,
    Predicted,
    encode_targets,
    register,
    rescale_init,
    target_spread,
)
from jepa_vl.objectives.captions import ReadsCaptions
from jepa_vl.shapes import Array, PyTree


@register("ijepa")
@register("tcjepa")
class TCJepa(ReadsCaptions):
    """L = L_predict + ramp * (lambda / N sum L_sparse + beta / N sum L_consistency + w L_contrast).

    L_contrast is ours, and off where its weight is 0; so are the terms of ``anticollapse``.

    Parameters: ``encoder`` (the EMA target follows it), ``predictor`` with its conditioners,
    ``text`` where that tower is trained.
    """

    def __init__(self, config: Config):
        """Builds the modules of a resolved configuration; allocates nothing.

        Raises:
          ConfigError: the text tower that it names is absent.
        """
        dtype, how = jnp.dtype(config.train.dtype), stack.plan(config.train)
        self.config = config
        self.captions = captions.build(config)
        kind = conditioner.CONDITIONERS[config.conditioner.kind]
        self.maps_words = reads_text(config) and kind.word_level
        self.encoder = vit.build(config.encoder, dtype, how)
        self.predictor = predictor.Predictor(
            grid=config.encoder.grid,
            out_width=config.encoder.width,
            config=config.predictor,
            conditioner=config.conditioner,
            similarity=config.loss.regulariser,
            others=config.loss.contrast_images if config.loss.contrast else 0,
            dtype=dtype,
            how=how,
        )

    def init(self, rng: Array, batch: Batch) -> PyTree:
        """Parameters, float32: {encoder, predictor} and, where a text tower is trained, {text}."""
        keys = jax.random.split(rng, 3)
        images, ctx_idx, tgt_idx = batch["image"], batch["ctx_idx"], batch["tgt_idx"]
        params, words = self.captions.init(keys[2], batch)
        params |= {"encoder": self.encoder.init(keys[0], images)["params"]}
        context = jnp.zeros((*ctx_idx.shape, self.config.encoder.width))
        variables = self.predictor.init(keys[1], context, ctx_idx, tgt_idx, words)
        params |= {"predictor": variables["params"]}
        return rescale_init(params, self.config.train.init)

    def target_of(self, params: PyTree) -> PyTree:
        """The encoder."""
        return params["encoder"]

    def encoder_params(self, target: PyTree, frozen: PyTree) -> PyTree:
        """The target itself."""
        del frozen
        return target

    def targets(self, target: PyTree, frozen: PyTree, batch: Batch) -> Array:
        """What is predicted, float32 [B, M, C, D], without gradient; for methods to replace."""
        del frozen
        norm = self.config.loss.target_norm
        return encode_targets(self.encoder, target, batch["image"], batch["tgt_idx"], norm)

    def loss(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, rng: Array, ramp: Array
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """See :class:`jepa_vl.objectives.base.Objective`; aux: prediction, targets, predicted
        (the same, for diagnostics), reading."""
        ctx_valid, tgt_valid = batch.get("ctx_valid"), batch.get("tgt_valid")
        targets = self.targets(target, frozen, batch)
        context, stream = vit.encode_with_stream(
            self.encoder, params["encoder"], batch["image"], batch["ctx_idx"], ctx_valid
        )
        words = self.captions.words(params, frozen, batch)
        if words is not None and "caption_read" in batch:
            read = words.caption_mask & batch["caption_read"][:, None]
            words = words._replace(caption_mask=read, known=words.caption_mask)
        predicted: Any = self.predictor.apply(
            {"params": params["predictor"]},
            context, batch["ctx_idx"], batch["tgt_idx"], words, ctx_valid, tgt_valid,
        )  # fmt: skip
        prediction, reading = predicted
        distances = {name: d(prediction, targets) for name, d in losses.DISTANCES.items()}
        apart = {
            f"distance/{name}": losses.masked_mean(distance, tgt_valid)
            for name, distance in distances.items()
        }
        minimised = self.config.loss.distance
        predict = apart[f"distance/{minimised}"]
        collapse, terms = anticollapse.penalty(self.config.anticollapse, stream, ctx_valid, rng)
        metrics = {"loss/predict": predict, "target_std": target_spread(targets)} | apart | terms
        total = predict + collapse
        if reading is not None and words is not None:
            valid = _token_valid(ctx_valid, tgt_valid)
            regulariser, terms = self.regularise(reading, words, valid)
            total, metrics = total + ramp * regulariser, metrics | terms
            read_now = {**batch, "caption_mask": words.caption_mask}
            metrics |= reading_metrics(reading, read_now)
        metrics["loss"] = total
        found = Predicted(prediction, targets, tgt_valid, distances[minimised])
        aux = {"prediction": prediction, "targets": targets, "reading": reading}
        return total, metrics, aux | {"predicted": {"image": found}}

    def regularise(
        self, reading: Reading, words: Words, token_valid: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        """The weighted sum of the terms that have a weight, and what all of them measure."""
        c, captions = self.config.loss, words.caption_mask
        sparse, consistency = losses.sparsity_terms(reading, captions, token_valid, c.regulariser)
        metrics = {"loss/sparse": sparse, "loss/consistency": consistency}
        weights = (0.0, 0.0) if c.regulariser == "off" else (c.sparse, c.consistency)
        total = weights[0] * sparse + weights[1] * consistency
        if c.contrast:
            captioned = jnp.any(words.existing.caption_mask, axis=-1)
            captioned = jnp.broadcast_to(captioned, reading.contrast.shape)
            apart = losses.masked_mean(reading.contrast, captioned)
            total, metrics["loss/contrast"] = total + c.contrast * apart, apart
        return total, metrics


def _token_valid(ctx_valid: Array | None, tgt_valid: Array | None) -> Array | None:
    if ctx_valid is None or tgt_valid is None:
        return None
    b, m, _ = tgt_valid.shape
    copies = jnp.broadcast_to(ctx_valid[:, None], (b, m, ctx_valid.shape[-1]))
    return jnp.concatenate([copies, tgt_valid], axis=-1)


def reading_metrics(reading: Reading, batch: Batch) -> dict[str, Array]:
    """Is the text read? Share of (layer, token, caption) with O = 0; entropy of the attention."""
    k = batch["ctx_idx"].shape[-1]
    caption = batch["caption_mask"][None, :, None, None, :]
    o = reading.similarity
    dead = jnp.all(losses.joined(o) == 0, axis=-1).astype(jnp.float32).reshape(o.shape[:-1])
    context, target = dead[:, :, :, :k], dead[:, :, :, k:]
    return {
        "dead_share": losses.masked_mean(dead, caption),
        "dead_share/context": losses.masked_mean(context, caption),
        "dead_share/target": losses.masked_mean(target, caption),
        "attention_entropy": losses.masked_mean(reading.entropy, caption),
    }
