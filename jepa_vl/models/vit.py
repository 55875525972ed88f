"""The vision transformer: no class token, no dropout, a final LayerNorm on every token."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jepa_vl.models import fast
from jepa_vl.models.layers import EPS, NORMAL, Block, LayerNorm, gather, sincos_table
from jepa_vl.models.stack import PLAIN, Plan, run_blocks
from jepa_vl.schema import LEARNED, EncoderConfig
from jepa_vl.shapes import Array, PyTree, check_shape
from jepa_vl.sharding import whole

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(
    images: Array, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Array:
    """uint8 [B, H, W, 3] -> float32 by mean and std of channels; floats are returned unchanged."""
    if images.dtype != jnp.uint8:
        return images
    centred = images.astype(jnp.float32) / 255.0 - np.array(mean, np.float32)
    return centred / np.array(std, np.float32)


def patchify(images: Array, patch: int) -> Array:
    """[B, H, W, 3] -> [B, T, patch * patch * 3]: row-major patches; pixels (row, column, RGB)."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // patch) * (w // patch), patch * patch * c)


class ViT(nn.Module):
    """Encoder of I-JEPA (methods: Assran et al. 2023, public code)."""

    FEATURES: ClassVar[str] = "after the final LayerNorm"  # what is said beside numbers of them
    eps: ClassVar[float] = EPS

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    dtype: Any = jnp.float32
    how: Plan = Plan()
    learned: bool = False  # positions, a parameter that starts as the fixed table

    @nn.compact
    def __call__(
        self,
        images: Array,
        ctx_idx: Array | None = None,
        ctx_valid: Array | None = None,
        keep: int = 0,
    ) -> Any:
        """Encodes all patches, or the visible ones alone.

        Args:
          images: [B, H, W, 3], uint8 or normalised float32.
          ctx_idx: optional int32 [B, K], the visible patches; the others are never read.
          ctx_valid: optional bool [B, K], False where ctx_idx is padding.
          keep: how many of the last blocks' outputs to return too, at most the depth.

        Returns:
          [B, T, D] or [B, K, D] float32, after the final LayerNorm; with ``keep`` also a tuple of
          so many, as they leave the blocks, the last block last.
        """
        check_shape("images", images, "B H W 3", H=self.image_size, W=self.image_size)
        patch = self.patch_size
        kernel = self.param("patch_kernel", NORMAL, (patch, patch, 3, self.width))
        bias = self.param("patch_bias", nn.initializers.zeros, (self.width,))
        patches = patchify(normalise(images), patch)
        table = jnp.asarray(sincos_table(self.width, self.image_size // patch))
        if self.learned:
            table = self.param("position", lambda rng, start=table: start)
        if ctx_idx is None:
            position = table[None]
        else:
            patches, position = gather(patches, ctx_idx), table[ctx_idx]
        kernel = whole(kernel.astype(self.dtype), "patch_kernel").reshape(-1, self.width)
        x = fast.dense(patches.astype(self.dtype), kernel).astype(jnp.float32) + bias + position
        make = functools.partial(Block, self.heads, self.mlp_width, self.dtype)
        below = self.depth + 1 - max(keep, 1)
        x = run_blocks(self, make, below, x, ctx_valid, how=self.how)
        kept = [x]
        for i in range(below, self.depth):
            kept.append(make(name=f"block_{i}")(kept[-1], ctx_valid))
        out = LayerNorm(name="norm")(kept[-1])
        return (out, tuple(kept)) if keep else out


def encode_with_stream(
    encoder: ViT, params: PyTree, images: Array, ctx_idx: Array, ctx_valid: Array | None = None
) -> tuple[Array, Array]:
    """Visible patches with and without the final LayerNorm, [B, K, D] float32 each; see ViT."""
    kept: Any = encoder.apply({"params": params}, images, ctx_idx, ctx_valid, keep=1)
    return kept[0], kept[1][-1]


def last_layers(encoder: Any, params: PyTree, images: Array, layers: int) -> Array:
    """Features of several layers of all patches, as I-JEPA's linear probes read them (App. A).

    Args:
      encoder: a :class:`ViT`, or another one with ``keep`` and a norm; params: its parameters.
      images: [B, H, W, 3].
      layers: how many of the last blocks, at most the depth.

    Returns:
      [B, T, layers * D] float32, the last block last, each after the final LayerNorm.
    """
    kept: Any = encoder.apply({"params": params}, images, keep=layers)
    last = jnp.stack(kept[1], axis=2)
    norm: Any = LayerNorm(encoder.eps).apply({"params": params["norm"]}, last)
    return norm.reshape(*norm.shape[:2], -1)


def build(config: EncoderConfig, dtype: Any = jnp.float32, how: Plan = PLAIN) -> ViT:
    """The encoder of a resolved configuration."""
    return ViT(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        mlp_width=config.mlp_width,
        dtype=dtype,
        how=how,
        learned=config.positions == LEARNED,
    )
