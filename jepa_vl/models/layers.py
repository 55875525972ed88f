"""The parts that all towers are made of: dense, LayerNorm, attention, MLP, block, position table.

Initialisation is what I-JEPA really trains with: kernels N(0, 0.02) without a depth rescale,
biases 0, LayerNorm (1, 0). The residual stream, norms, softmax and losses are float32; ``dtype`` is
that of the matrix products.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jepa_vl.models import fast
from jepa_vl.shapes import Array
from jepa_vl.sharding import constrain, whole

EPS = 1e-6  # of every affine LayerNorm that we train (torch's default would be 1e-5)
TARGET_EPS = 1e-5  # of the parameter-free LayerNorm of targets; torch's functional default
INIT_STD = 0.02
NORMAL = nn.initializers.normal(INIT_STD)


def sincos_table(width: int, grid: int) -> np.ndarray:
    """The fixed 2-D position table of I-JEPA.

    The first half of the channels encodes the column, the second the row; each half is all sines,
    then all cosines. Computed in float64.

    Args:
      width: channels, divisible by 4.
      grid: patches along a side.

    Returns:
      [grid * grid, width] float32, row-major patches.
    """
    quarter = width // 4
    omega = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)
    angles = np.arange(grid, dtype=np.float64)[:, None] * omega
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    column = np.broadcast_to(axis[None, :, :], (grid, grid, width // 2))
    row = np.broadcast_to(axis[:, None, :], (grid, grid, width // 2))
    return np.concatenate([column, row], axis=-1).reshape(grid * grid, width).astype(np.float32)


def layer_norm(x: Array, eps: float) -> Array:
    """Parameter-free LayerNorm over the last axis, float32. Two passes: E[x^2] - E[x]^2 cancels."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)


def gather(x: Array, index: Array) -> Array:
    """Picks tokens: x [B, T, D], index int [B, K] -> [B, K, D]."""
    return jnp.take_along_axis(x, index[..., None], axis=1)


class LayerNorm(nn.Module):
    """Affine LayerNorm, computed and returned in float32."""

    eps: float = EPS

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., D] float32."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, self.eps) * scale + bias


class Modulation(NamedTuple):
    """What conditions the two LayerNorms of a block, [B, 1, D] each: LN(x) (1 + scale) + shift."""

    scale1: Array
    shift1: Array
    scale2: Array
    shift2: Array


class Dense(nn.Module):
    """Linear map of the last axis: [..., I] -> [..., O] in ``dtype``."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    init: Any = NORMAL

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., I] -> [..., O]."""
        kernel = self.param("kernel", self.init, (x.shape[-1], self.features))
        kernel = whole(kernel.astype(self.dtype), "/".join((*self.path, "kernel")))
        y = fast.dense(x.astype(self.dtype), kernel)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


class Attention(nn.Module):
    """Multi-head self-attention; queries may be a tail of the sequence."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, key_valid: Array | None = None, first_query: int = 0) -> Array:
        """Attends.

        Args:
          x: [B, T, D], normalised.
          key_valid: optional bool [B, T]; False keys get no attention.
          first_query: rows before this one are keys and values only.

        Returns:
          [B, T - first_query, D] in ``dtype``.
        """
        width = x.shape[-1]

        def heads(name: str, tokens: Array) -> Array:
            y = Dense(width, dtype=self.dtype, name=name)(tokens)
            y = y.reshape(*y.shape[:-1], self.heads, width // self.heads)
            return constrain(y, "batch", None, "heads", None)

        q, k, v = heads("q", x[:, first_query:]), heads("k", x), heads("v", x)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32)
        logits = logits * (width // self.heads) ** -0.5
        if key_valid is not None:
            logits = jnp.where(key_valid[:, None, None, :], logits, -1e9)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return Dense(width, dtype=self.dtype, name="out")(y.reshape(*y.shape[:2], width))


class Mlp(nn.Module):
    """Two-layer MLP with exact GELU, in ``dtype``."""

    hidden: int
    dtype: Any = jnp.float32
    features: int = 0  # O; 0: as many as come in

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., O]."""
        y = fast.gelu(Dense(self.hidden, dtype=self.dtype, name="fc1")(x))
        return Dense(self.features or x.shape[-1], dtype=self.dtype, name="fc2")(y)


class Block(nn.Module):
    """Pre-norm transformer block with a float32 residual stream."""

    heads: int
    mlp_width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        key_valid: Array | None = None,
        first_query: int = 0,
        modulation: Modulation | None = None,
    ) -> Array:
        """[B, T, D] -> [B, T - first_query, D] float32; see :class:`Attention`."""
        y = LayerNorm(name="norm1")(x)
        if modulation is not None:
            y = y * (1.0 + modulation.scale1) + modulation.shift1
        attended = Attention(self.heads, self.dtype, name="attn")(y, key_valid, first_query)
        x = x[:, first_query:] + attended.astype(jnp.float32)
        y = LayerNorm(name="norm2")(x)
        if modulation is not None:
            y = y * (1.0 + modulation.scale2) + modulation.shift2
        mlp = Mlp(self.mlp_width, self.dtype, name="mlp")(y)
        return constrain(x + mlp.astype(jnp.float32), "batch", None, "embed")
