"""Diagnostics that the loss cannot show: is the text read, and do the features keep their rank?

Computed on fixed held-out images, masks and captions, from step 0.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jepa_vl.config import Config, reads_text
from jepa_vl.data import pipeline
from jepa_vl.data.faults import Log
from jepa_vl.data.sources import Source
from jepa_vl.evaluators import features, spectral
from jepa_vl.objectives import Objective
from jepa_vl.objectives.base import Batch
from jepa_vl.shapes import Array, PyTree
from jepa_vl.sharding import batch_sharding, replicated
from jepa_vl.training import explained
from jepa_vl.training.state import TrainState

Measured = dict[str, Any]  # of a batch: loss, read and predicted
READING = ("dead_share", "attention_entropy")
MODALITIES = {"image": "", "text": "_text"}  # suffix of what is measured of their predictions
OF_FEATURES = {
    "rankme": spectral.rankme,
    "effective_rank": spectral.effective_rank,
    "std": spectral.spread,
    "cosine": spectral.mean_cosine,
}
CAPTION_ARRAYS = ("word_ids", "word_states", "word_mask", "caption_mask")
HOST_ONLY = ("label", "index", "position", "valid")


def to_device(batch: Batch, mesh: Mesh) -> Batch:
    """The arrays that the objective reads, placed on the mesh; each host brings its own rows."""
    place = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(place, value)
        for name, value in batch.items()
        if name not in HOST_ONLY
    }


def whole_to_device(batch: Batch, mesh: Mesh) -> Batch:
    """As :func:`to_device`, of a batch that every host has whole."""
    place = batch_sharding(mesh)
    return {
        name: features.from_all_hosts(value, place)
        for name, value in batch.items()
        if name not in HOST_ONLY
    }


class Health:
    """Compiles once, runs on a schedule."""

    def __init__(
        self,
        config: Config,
        objective: Objective,
        frozen: PyTree,
        mesh: Mesh,
        held_out: Source,
        encode: features.Encode,
        log: Log | None = None,
    ):
        """Loads ``log.diagnostics_images`` held-out images, in chunks of a training batch.

        ``log`` lists those that cannot be used; others take their place.
        """
        self.mesh, self.encode, self.objective, self.frozen = mesh, encode, objective, frozen
        self.reads_text = reads_text(config)
        self.regularised = config.conditioner.kind != "none"
        size = config.train.batch_size
        count = max(size, config.log.diagnostics_images // size * size)
        indices = np.arange(count) % len(held_out)
        self.batches = list(pipeline.eval_batches(config, held_out, indices, size, log))

        def parts(
            params: PyTree, target: PyTree, frozen: PyTree, batch: Batch
        ) -> tuple[Array, dict[str, Array], PyTree]:
            """L_predict and the regularisers at full ramp, float32 [2]; metrics; aux."""
            key, ramp = jax.random.key(0), jnp.ones(())
            loss, metrics, aux = objective.loss(params, target, frozen, batch, key, ramp)
            both = jnp.stack([metrics["loss/predict"], loss - metrics["loss/predict"]])
            return both, metrics, aux

        def measure(params: PyTree, target: PyTree, frozen: PyTree, batch: Batch) -> Measured:
            both, metrics, aux = parts(params, target, frozen, batch)
            read = {name: metrics[name] for name in READING if name in metrics}
            found = {name: explained.summary(made) for name, made in aux["predicted"].items()}
            return {"loss": both[0], "read": read, "predicted": found}

        # One backward pass to compile for both parts. (jit of jax.jacrev gives wrong numbers here:
        # XLA:CPU of jaxlib 0.10.2 miscompiles the backward pass over two cotangents.)
        def gradient_norm(
            params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, weights: Array
        ) -> Array:
            grad = jax.grad(lambda p: jnp.dot(weights, parts(p, target, frozen, batch)[0]))(params)
            return optax.tree.norm(grad)

        def drift(params: PyTree, target: PyTree) -> Array:
            gap = jax.tree.map(jnp.subtract, objective.target_of(params), target)
            return optax.tree.norm(gap) / jnp.maximum(optax.tree.norm(target), 1e-12)

        self._measure = jax.jit(measure, out_shardings=replicated(mesh))
        self._gradient_norm = jax.jit(gradient_norm)
        self._drift = jax.jit(drift)

    def indices(self) -> list[int]:
        """Of the images, in their source."""
        return [index for batch in self.batches for index in batch["index"].tolist()]

    def run(self, state: TrainState) -> dict[str, Any]:
        """Diagnostics of a state.

        Returns:
          ``held_out_loss``: L_predict with own captions. ``text_gain``: L_predict with the captions
          of another image minus that with its own, on the same masks. In control runs "its own" is
          what ``data.captions`` gives it: with shuffled the captions of the image that it is paired
          with, so that a gain above noise would mean that the pairing itself tells something; with
          random as many tokens of noise; with empty both sides are the same and the gain is 0.
          ``text_gain_noise``: its standard error over images; absent where nothing is predicted.
          ``dead_share``, ``attention_entropy`` (0 to 1): as in the step's metrics, of these images.
          ``regulariser_gradient_ratio``: norm of the regularisers' gradient at full ramp over that
          of L_predict. ``ema_drift``: relative distance between encoder and target.

          For each branch, of features pooled by image (n = ``rankme_images``): ``rankme/BRANCH``,
          ``effective_rank/BRANCH``, ``std/BRANCH``, ``cosine/BRANCH``, see
          :mod:`jepa_vl.evaluators.spectral`. Branches are target and context, and predictor: what
          it predicts of an image, pooled over its targets; of the cross-modal JEPA also
          predictor_text, what it predicts of captions. ``unexplained``: see
          :func:`explained.unexplained`; of captions ``unexplained/text``. The contrastive control
          predicts nothing: of it there is neither.
        """
        online, target = self.objective.target_of(state.params), state.target
        encoders = {
            "target": self.objective.encoder_params(target, self.frozen),
            "context": self.objective.encoder_params(online, self.frozen),
        }
        weights = state.params, target, self.frozen
        with jax.set_mesh(self.mesh):
            own, other, norms = [], [], []
            pooled = {"target": [], "context": []}
            for batch in self.batches:
                placed = whole_to_device(batch, self.mesh)
                own.append(self._measure(*weights, placed))
                if self.reads_text:
                    there = [name for name in CAPTION_ARRAYS if name in batch]
                    swapped = {name: np.roll(batch[name], 1, axis=0) for name in there}
                    swapped = placed | whole_to_device(swapped, self.mesh)
                    other.append(self._measure(*weights, swapped))
                for branch, encoder in encoders.items():
                    pooled[branch].append(np.asarray(self.encode(encoder, batch["image"])))
            if self.regularised:  # one chunk tells the order of magnitude
                placed = whole_to_device(self.batches[0], self.mesh)
                norms = [self._gradient_norm(*weights, placed, w) for w in np.eye(2)]
            drift = float(self._drift(state.params, target))
        own, other = jax.device_get(own), jax.device_get(other)
        out: dict[str, Any] = {"held_out_loss": _mean([x["loss"] for x in own])}
        out |= {"ema_drift": drift, "rankme_images": sum(len(x) for x in pooled["target"])}
        for name in own[0]["read"]:
            out[name] = _mean([x["read"][name] for x in own])
        for modality in own[0]["predicted"]:
            parts = [x["predicted"][modality] for x in own]
            suffix = MODALITIES[modality]
            out[f"unexplained{suffix.replace('_', '/')}"] = explained.unexplained(parts)
            pooled[f"predictor{suffix}"] = [part["pooled"] for part in parts]
        for branch, features_of in pooled.items():
            out |= _of_branch(branch, np.concatenate(features_of))
        if self.reads_text:
            out |= _text_gain(own, other)
        if self.regularised:
            ratio = float(norms[1]) / max(float(norms[0]), 1e-12)
            out["regulariser_gradient_ratio"] = ratio
        return out


def _mean(values: Sequence[Any]) -> float:
    return float(np.mean([float(x) for x in values]))


def _of_branch(branch: str, x: Array) -> dict[str, float]:
    return {f"{name}/{branch}": measure(x) for name, measure in OF_FEATURES.items()}


def _text_gain(own: Sequence[Measured], other: Sequence[Measured]) -> dict[str, float]:
    """The gain and, where predictions tell the images apart, its standard error."""

    def by_image(found: Sequence[Measured]) -> Array:
        rows = [sum(made["distance"] for made in x["predicted"].values()) for x in found]
        return np.concatenate(rows).astype(np.float64)

    gain = _mean([x["loss"] for x in other]) - _mean([x["loss"] for x in own])
    if not own[0]["predicted"]:
        return {"text_gain": gain}
    gap = by_image(other) - by_image(own)
    return {"text_gain": gain, "text_gain_noise": float(gap.std() / len(gap) ** 0.5)}
