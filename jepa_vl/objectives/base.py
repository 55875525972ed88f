"""What an objective is, the registry, and the one place where targets are made."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jepa_vl import tree
from jepa_vl.config import Config
from jepa_vl.models import vit
from jepa_vl.models.layers import INIT_STD, TARGET_EPS, gather, layer_norm
from jepa_vl.shapes import Array, PyTree

Batch = dict[str, Array]
REGISTRY: dict[str, Callable[[Config], "Objective"]] = {}


class Predicted(NamedTuple):
    """What was predicted of B images, or of their captions: ``aux["predicted"][modality]``.

    Attributes:
      prediction: float32 [B, ..., D].
      targets: float32 [B, ..., D], without gradient.
      valid: bool [B, ...], the tokens that count; None: all of them.
      distance: float32 [B, ...], of each token, with its weight in the loss.
    """

    prediction: Array
    targets: Array
    valid: Array | None
    distance: Array


class Objective(Protocol):
    """One method of pretraining. A new one is one file with ``@register`` and one config."""

    # Module of images [B, H, W, 3] -> [B, T, D], which evaluators look through; its FEATURES says
    # in words which features these are.
    encoder: Any

    def init(self, rng: Array, batch: Batch) -> PyTree:
        """Parameters, float32, for batches shaped like this one."""
        ...

    def target_of(self, params: PyTree) -> PyTree:
        """The subtree that the EMA target follows."""
        ...

    def encoder_params(self, target: PyTree, frozen: PyTree) -> PyTree:
        """The parameters of ``encoder`` out of a tree shaped as ``target_of(params)``."""
        ...

    def load_frozen(self) -> PyTree:
        """Weights that nothing updates, read from files: numpy arrays, {} if there are none.

        Raises:
          ConfigError: the files do not fit.
        """
        ...

    def frozen_spec(self) -> PyTree:
        """Shapes and dtypes of :meth:`load_frozen`; no weights are read.

        Raises:
          ConfigError: there is no such tower.
        """
        ...

    def load_initial(self) -> PyTree:
        """Top-level parts of ``params`` that start from files instead of chance; {} if none do.

        Raises:
          ConfigError: the files do not fit.
        """
        ...

    def loss(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, rng: Array, ramp: Array
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """The loss of a batch.

        Args:
          params: what is trained.
          target: shaped as ``target_of(params)``; an argument, never a closure.
          frozen: ``load_frozen()``, placed; no gradient, no moments, not in checkpoints.
          batch: see ``data.pipeline``.
          rng: key of this step.
          ramp: scalar in [0, 1] on the regularisers, from a schedule that is not ours.

        Returns:
          Scalar float32 loss; scalar metrics by name; ``aux``, arrays for diagnostics and pictures,
          with ``predicted``: a :class:`Predicted` for each modality that is predicted, {} for none.
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
    with jax.named_scope("target"):
        features: Any = encoder.apply({"params": target}, images)
    return pick_blocks(as_targets(features, norm), tgt_idx)


def as_targets(features: Array, norm: str = "layer_norm") -> Array:
    """What is predicted of features [..., D]: normalised, float32, without gradient."""
    return jax.lax.stop_gradient(TARGET_NORMS[norm](features))


def pick_blocks(features: Array, tgt_idx: Array) -> Array:
    """The tokens of blocks: [B, T, D] at int32 [B, M, C] -> [B, M, C, D]."""
    b, m, c = tgt_idx.shape
    return gather(features, tgt_idx.reshape(b, m * c)).reshape(b, m, c, -1)


def target_spread(targets: Array) -> Array:
    """Standard deviation of targets [B, M, C, D] over tokens, mean over channels; 0 is collapse."""
    tokens = targets.reshape(-1, targets.shape[-1])
    return jnp.mean(jnp.std(tokens, axis=0))


def tower_spread(features: Array, valid: Array) -> Array:
    """Standard deviation of pooled features over the batch, mean over channels; 0 is collapse.

    Pooled, because features that tell positions apart but not images would pass for alive.

    Args:
      features: [B, T, D]; valid: bool [B, T]. Rows without a valid token are left out.
    """
    pooled = masked_pool(layer_norm(features, TARGET_EPS), valid)
    weight = jnp.any(valid, axis=1, keepdims=True).astype(jnp.float32)
    count = jnp.maximum(jnp.sum(weight), 1.0)
    centred = (pooled - jnp.sum(pooled * weight, axis=0) / count) * weight
    return jnp.mean(jnp.sqrt(jnp.sum(jnp.square(centred), axis=0) / count))


def masked_pool(features: Array, valid: Array) -> Array:
    """Mean over valid tokens: [B, T, D], bool [B, T] -> [B, D]; zeros where none is valid."""
    weight = valid.astype(features.dtype)
    total = jnp.sum(jnp.where(valid[..., None], features, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(weight, axis=1), 1.0)[:, None]


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
