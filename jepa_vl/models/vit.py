"""The vision transformer: no class token, no dropout, a final LayerNorm on every token."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jepa_vl.models import fast
from jepa_vl.models.layers import NORMAL, Block, LayerNorm, gather, sincos_table
from jepa_vl.schema import EncoderConfig
from jepa_vl.shapes import Array, PyTree, check_shape

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

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Array, ctx_idx: Array | None = None, ctx_valid: Array | None = None
    ) -> Array:
        """Encodes all patches, or the visible ones alone.

        Args:
          images: [B, H, W, 3], uint8 or normalised float32.
          ctx_idx: optional int32 [B, K], the visible patches; the others are never read.
          ctx_valid: optional bool [B, K], False where ctx_idx is padding.

        Returns:
          [B, T, D] or [B, K, D] float32, after the final LayerNorm.
        """
        check_shape("images", images, "B H W 3", H=self.image_size, W=self.image_size)
        patch = self.patch_size
        kernel = self.param("patch_kernel", NORMAL, (patch, patch, 3, self.width))
        bias = self.param("patch_bias", nn.initializers.zeros, (self.width,))
        patches = patchify(normalise(images), patch)
        table = jnp.asarray(sincos_table(self.width, self.image_size // patch))
        if ctx_idx is None:
            position = table[None]
        else:
            patches, position = gather(patches, ctx_idx), table[ctx_idx]
        flat = kernel.reshape(-1, self.width).astype(self.dtype)
        x = fast.dense(patches.astype(self.dtype), flat).astype(jnp.float32) + bias + position
        self.sow("intermediates", "stream", x)  # kept for the two functions below alone
        for i in range(self.depth):
            block = Block(self.heads, self.mlp_width, self.dtype, name=f"block_{i}")
            x = block(x, ctx_valid)
            self.sow("intermediates", "stream", x)
        return LayerNorm(name="norm")(x)


def encode_with_stream(
    encoder: ViT, params: PyTree, images: Array, ctx_idx: Array, ctx_valid: Array | None = None
) -> tuple[Array, Array]:
    """Visible patches with and without the final LayerNorm, [B, K, D] float32 each; see ViT."""
    out, streams = _apply_keeping(encoder, params, images, ctx_idx, ctx_valid)
    return out, streams[-1]


def last_layers(encoder: ViT, params: PyTree, images: Array, layers: int) -> Array:
    """Features of several layers of all patches, as I-JEPA's linear probes read them (App. A).

    Args:
      encoder: the encoder; params: its parameters.
      images: [B, H, W, 3].
      layers: how many of the last blocks, at most the depth.

    Returns:
      [B, T, layers * D] float32, the last block last, each after the final LayerNorm.
    """
    _, streams = _apply_keeping(encoder, params, images)
    last = jnp.stack(streams[-layers:], axis=2)
    norm: Any = LayerNorm().apply({"params": params["norm"]}, last)
    return norm.reshape(*norm.shape[:2], -1)


def _apply_keeping(encoder: ViT, params: PyTree, *args: Any) -> tuple[Array, tuple[Array, ...]]:
    """The output; what enters the first block and leaves each, before the last norm; see ViT."""
    out, kept = encoder.apply({"params": params}, *args, mutable=["intermediates"])
    return out, kept["intermediates"]["stream"]  # pyright: ignore[reportReturnType]


def build(config: EncoderConfig, dtype: Any = jnp.float32) -> ViT:
    """The encoder of a resolved configuration."""
    return ViT(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        mlp_width=config.mlp_width,
        dtype=dtype,
    )
