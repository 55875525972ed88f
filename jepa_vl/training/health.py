"""Diagnostics that the loss cannot show: is the text read, and do the features keep their rank?

Computed on fixed held-out images, masks and captions, from step 0.
"""

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
from jepa_vl.sharding import batch_sharding
from jepa_vl.training.state import TrainState

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

        def parts(params: PyTree, target: PyTree, frozen: PyTree, batch: Batch) -> Array:
            """L_predict, and the regularisers at full ramp: float32 [2]."""
            key, ramp = jax.random.key(0), jnp.ones(())
            loss, metrics, _ = objective.loss(params, target, frozen, batch, key, ramp)
            return jnp.stack([metrics["loss/predict"], loss - metrics["loss/predict"]])

        # One backward pass to compile for both parts. (jit of jax.jacrev gives wrong numbers here:
        # XLA:CPU of jaxlib 0.10.2 miscompiles the backward pass over two cotangents.)
        def gradient_norm(
            params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, weights: Array
        ) -> Array:
            grad = jax.grad(lambda p: jnp.dot(weights, parts(p, target, frozen, batch)))(params)
            return optax.tree.norm(grad)

        def drift(params: PyTree, target: PyTree) -> Array:
            gap = jax.tree.map(jnp.subtract, objective.target_of(params), target)
            return optax.tree.norm(gap) / jnp.maximum(optax.tree.norm(target), 1e-12)

        self._predict_loss = jax.jit(lambda *args: parts(*args)[0])
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
          ``regulariser_gradient_ratio``: norm of the regularisers' gradient at full ramp over that
          of L_predict. ``rankme/target`` and ``rankme/context``: RankMe of pooled features
          (n = ``rankme_images``) of either encoder. ``ema_drift``: relative distance between
          encoder and target.
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
                own.append(self._predict_loss(*weights, placed))
                if self.reads_text:
                    there = [name for name in CAPTION_ARRAYS if name in batch]
                    swapped = {name: np.roll(batch[name], 1, axis=0) for name in there}
                    swapped = placed | whole_to_device(swapped, self.mesh)
                    other.append(self._predict_loss(*weights, swapped))
                for branch, encoder in encoders.items():
                    pooled[branch].append(np.asarray(self.encode(encoder, batch["image"])))
            if self.regularised:  # one chunk tells the order of magnitude
                placed = whole_to_device(self.batches[0], self.mesh)
                norms = [self._gradient_norm(*weights, placed, w) for w in np.eye(2)]
            out: dict[str, Any] = {
                "held_out_loss": float(np.mean([float(x) for x in own])),
                "ema_drift": float(self._drift(state.params, target)),
                "rankme_images": sum(len(x) for x in pooled["target"]),
            }
        for branch, parts in pooled.items():
            out[f"rankme/{branch}"] = spectral.rankme(np.concatenate(parts))
        if self.reads_text:
            out["text_gain"] = float(np.mean([float(x) for x in other])) - out["held_out_loss"]
        if self.regularised:
            ratio = float(norms[1]) / max(float(norms[0]), 1e-12)
            out["regulariser_gradient_ratio"] = ratio
        return out
