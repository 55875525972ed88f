"""Parts that pretrained text towers share: attention, gated MLP, RMSNorm, post-norm block."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jepa_vl.models.layers import Dense, LayerNorm
from jepa_vl.shapes import Array
from jepa_vl.sharding import constrain

Activation = Callable[[Array], Array]


class RmsNorm(nn.Module):
    """``x / rms(x) * scale`` in float32: no mean is taken off, no bias (arXiv 1910.07467)."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., E] -> [..., E] float32."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps) * scale


def rotate(x: Array, angles: Array) -> Array:
    """Rotary positions (arXiv 2104.09864): channel i turns with channel i + h / 2.

    Args:
      x: float32 [B, S, heads, h].
      angles: float32 [S, h / 2].

    Returns:
      Shaped as x.
    """
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def seen(valid: Array) -> Array:
    """Which words each word sees.

    Args:
      valid: bool [B, S], False for padding; or int32 [B, S], the number of a word's caption.

    Returns:
      bool [B, 1 or S, S].
    """
    if valid.dtype == jnp.bool_:
        return valid[:, None, :]
    return valid[:, :, None] == valid[:, None, :]


def places(valid: Array) -> Array:
    """Position of each word in its own caption: int32 [B, S], or [S] where a row is a caption.

    Args:
      valid: see :func:`seen`; words of one caption stand side by side.
    """
    place = jnp.arange(valid.shape[1])
    if valid.dtype == jnp.bool_:
        return place
    begins = jnp.diff(valid, axis=1, prepend=-1) != 0
    return place - jax.lax.cummax(jnp.where(begins, place, 0), axis=1)


class TextAttention(nn.Module):
    """Self-attention over the words of a caption; softmax in float32.

    Attributes:
      heads: number of heads, each ``head_width`` wide; together they need not be E.
      scale: of the logits.
      use_bias: of all four projections.
    """

    heads: int
    head_width: int
    scale: float
    use_bias: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, valid: Array, bias: Array | None = None, angles: Array | None = None
    ) -> Array:
        """Attends.

        Args:
          x: [B, S, E].
          valid: bool [B, S]; padded words get no attention. Or int32 [B, S], where a row holds
            several captions: the number of each word's, which sees the words of that alone.
          bias: optional float32 [heads, S, S], added to the logits.
          angles: optional float32 [S, head_width / 2], turns queries and keys.

        Returns:
          [B, S, E] in ``dtype``.
        """
        inner = self.heads * self.head_width

        def project(name: str) -> Array:
            y = Dense(inner, self.use_bias, self.dtype, name=name)(x)
            y = y.reshape(*y.shape[:-1], self.heads, self.head_width)
            return constrain(y, "batch", None, "heads", None)

        q, k, v = project("q"), project("k"), project("v")
        if angles is not None:
            q, k = (rotate(y.astype(jnp.float32), angles).astype(self.dtype) for y in (q, k))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * self.scale
        if bias is not None:
            logits = logits + bias
        # Finite: a caption that is all padding must not become NaN.
        logits = jnp.where(seen(valid)[:, None], logits, -1e9)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:-1], inner)
        return Dense(x.shape[-1], self.use_bias, self.dtype, name="out")(y)


class GatedMlp(nn.Module):
    """``activation(x gate) * (x fc1)``, then fc2 (arXiv 2002.05202): [..., E] -> [..., E]."""

    hidden: int
    activation: Activation
    out_bias: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., E] -> [..., E] in ``dtype``."""
        gate = self.activation(Dense(self.hidden, False, self.dtype, name="gate")(x))
        y = gate * Dense(self.hidden, False, self.dtype, name="fc1")(x)
        return Dense(x.shape[-1], self.out_bias, self.dtype, name="fc2")(y)


class PostNormBlock(nn.Module):
    """BERT's order: attend, add, normalise; MLP, add, normalise. The stream is float32.

    Attributes:
      mlp: makes the MLP, a module [B, S, E] -> [B, S, E], under the name it is given.
    """

    heads: int
    eps: float
    mlp: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, valid: Array, angles: Array | None = None) -> Array:
        """[B, S, E] -> [B, S, E] float32; see :class:`TextAttention`."""
        width = x.shape[-1] // self.heads
        attention = TextAttention(self.heads, width, width**-0.5, True, self.dtype, name="attn")
        attended = attention(x, valid, angles=angles).astype(jnp.float32)
        x = LayerNorm(self.eps, name="norm1")(x + attended)
        read: Any = self.mlp(name="mlp")(x)
        x = LayerNorm(self.eps, name="norm2")(x + read.astype(jnp.float32))
        return constrain(x, "batch", None, "embed")


def rotary_angles(length: int, frequencies: np.ndarray) -> np.ndarray:
    """Angle of each position and pair of channels: float32 [S, h / 2]."""
    return np.arange(length, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
