"""What an objective is, the registry, and the one place where targets are made."""

import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from jepa_vl import tree
from jepa_vl.config import Config
from jepa_vl.models import vit
from jepa_vl.models.layers import INIT_STD, layer_norm
from jepa_vl.shapes import Array, PyTree

TARGET_EPS = 1e-5  # of the parameter-free LayerNorm of targets; torch's functional default

Batch = dict[str, Array]
REGISTRY: dict[str, Callable[[Config], "Objective"]] = {}


class Objective(Protocol):
    """One method of pretraining. A new one is one file with ``@register`` and one config."""

    encoder: vit.ViT

    def init(self, rng: Array, batch: Batch) -> PyTree:
        """Parameters, float32, for batches shaped like this one."""
        ...

    def target_of(self, params: PyTree) -> PyTree:
        """The subtree that the EMA target follows."""
        ...

    def loss(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, rng: Array, ramp: Array
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """The loss of a batch.

        Args:
          params: what is trained.
          target: shaped as ``target_of(params)``; an argument, never a closure.
          frozen: weights that nothing updates.
          batch: see ``data.pipeline``.
          rng: key of this step.
          ramp: scalar in [0, 1] on the regularisers, from a schedule that is not ours.

        Returns:
          Scalar float32 loss; scalar metrics by name; ``aux``, arrays for diagnostics and pictures.
        """
        ...


def register(name: str) -> Callable[[type], type]:
    """Enters an objective, built from the resolved configuration, under its name."""

    def enter(cls: type) -> type:
        REGISTRY[name] = cls
        return cls

    return enter


TARGET_NORMS: dict[str, Callable[[Array], Array]] = {
    "layer_norm": lambda features: layer_norm(features, TARGET_EPS),
    "none": lambda features: features,
}


def encode_targets(
    encoder: vit.ViT, target: PyTree, images: Array, tgt_idx: Array, norm: str = "layer_norm"
) -> Array:
    """Features to predict: full image, parameter-free LayerNorm, the blocks' tokens; no gradient.

    Args:
      encoder: the encoder; target: its EMA parameters.
      images: [B, H, W, 3].
      tgt_idx: int32 [B, M, C].
      norm: a name of :data:`TARGET_NORMS`; that of I-JEPA is ``layer_norm``.

    Returns:
      [B, M, C, D] float32.
    """
    features = TARGET_NORMS[norm](encoder.apply({"params": target}, images))
    b, m, c = tgt_idx.shape
    picked = jnp.take_along_axis(features, tgt_idx.reshape(b, m * c)[..., None], axis=1)
    return jax.lax.stop_gradient(picked.reshape(b, m, c, -1))


def target_spread(targets: Array) -> Array:
    """Standard deviation of targets [B, M, C, D] over tokens, mean over channels; 0 is collapse."""
    tokens = targets.reshape(-1, targets.shape[-1])
    return jnp.mean(jnp.std(tokens, axis=0))


def rescale_init(params: PyTree, init: str) -> PyTree:
    """Gives kernels, drawn from N(0, 0.02), the spread that ``train.init`` asks for.

    Args:
      params: fresh parameters.
      init: ``normal`` leaves them; ``fan_in`` makes the standard deviation fan_in^-1/2. Below a
        width of some hundreds N(0, 0.02) starts all but linear, with attention that is all but
        uniform.
    """

    def rescale(name: str, leaf: Array) -> Array:
        if not name.endswith("kernel"):
            return leaf
        return leaf * (math.prod(leaf.shape[:-1]) ** -0.5 / INIT_STD)

    return params if init == "normal" else tree.map_named(rescale, params)
