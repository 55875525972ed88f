"""The encoder of T5 (arXiv 1910.10683), v1.0 and v1.1, with Hugging Face's names."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jepa_vl.models.layers import NORMAL, Dense
from jepa_vl.models.stack import Plan, run_blocks
from jepa_vl.models.text_layers import GatedMlp, RmsNorm, TextAttention
from jepa_vl.models.weights import Rule, dense, require
from jepa_vl.shapes import Array, check_shape
from jepa_vl.sharding import constrain


class T5Shape(NamedTuple):
    """What a config.json says about the encoder."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    head_width: int
    hidden: int
    feed_forward: str
    buckets: int
    max_distance: int
    eps: float


def read_shape(config: dict[str, Any], where: tuple[str, str]) -> T5Shape:
    """Reads a config.json.

    Raises:
      ConfigError: a feed-forward layer that is not here.
    """
    require(config, {"model_type": ("t5",), "feed_forward_proj": tuple(MLPS)}, where)
    return T5Shape(
        vocabulary=config["vocab_size"],
        width=config["d_model"],
        depth=config["num_layers"],
        heads=config["num_heads"],
        head_width=config["d_kv"],
        hidden=config["d_ff"],
        feed_forward=config.get("feed_forward_proj", "relu"),
        buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128),
        eps=config.get("layer_norm_epsilon", 1e-6),
    )


def distance_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each (query, key): int32 [S, S], half of them for keys to the right.

    Of a half, the first half are exact distances, the others grow logarithmically up to
    ``max_distance`` and then stay.
    """
    place = np.arange(length)
    ahead = place[None, :] - place[:, None]
    half = buckets // 2
    exact = half // 2
    # float32 in this order: at powers of two the floor depends on it.
    ratio = np.log(np.maximum(np.abs(ahead), 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + steps.astype(np.int32), half - 1)
    return ((ahead > 0) * half + np.where(np.abs(ahead) < exact, np.abs(ahead), far)).astype(
        np.int32
    )


class ReluMlp(nn.Module):
    """T5 v1.0: fc1, ReLU, fc2; no biases."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., E] -> [..., E] in ``dtype``."""
        y = jax.nn.relu(Dense(self.hidden, False, self.dtype, name="fc1")(x))
        return Dense(x.shape[-1], False, self.dtype, name="fc2")(y)


def gated_gelu(hidden: int, dtype: Any, name: str) -> nn.Module:
    """T5 v1.1; the one place where GELU is meant by its tanh approximation."""
    return GatedMlp(hidden, jax.nn.gelu, False, dtype, name=name)


MLPS = {"relu": ReluMlp, "gated-gelu": gated_gelu}


class T5Encoder(nn.Module):
    """Pre-norm blocks with RMSNorm; logits unscaled; one table of relative positions for all."""

    shape: T5Shape
    dtype: Any = jnp.float32
    how: Plan = Plan()

    @nn.compact
    def __call__(self, word_ids: Array, word_mask: Array) -> Array:
        """Embeds captions.

        Args:
          word_ids: int32 [B, N, S].
          word_mask: bool [B, N, S], False for padding; or int32, see :class:`TextAttention`.

        Returns:
          [B, N, S, E] float32, after the final norm.
        """
        c = self.shape
        check_shape("word_mask", word_mask, "B N S", **check_shape("word_ids", word_ids, "B N S"))
        b, n, s = word_ids.shape
        embedding = self.param("word_embedding", NORMAL, (c.vocabulary, c.width))
        table = self.param("relative_bias", NORMAL, (c.buckets, c.heads))
        buckets = distance_buckets(s, c.buckets, c.max_distance)
        bias = jnp.moveaxis(table.astype(jnp.float32)[buckets], -1, 0)
        x = embedding[word_ids.reshape(b * n, s)].astype(jnp.float32)
        valid = word_mask.reshape(b * n, s)
        make = functools.partial(T5Block, c, self.dtype)
        x = run_blocks(self, make, c.depth, x, valid, bias, how=self.how)
        return RmsNorm(c.eps, name="norm")(x).reshape(b, n, s, c.width)


class T5Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the stream is float32."""

    shape: T5Shape
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, valid: Array, bias: Array) -> Array:
        """[B, S, E] -> [B, S, E] float32; see :class:`TextAttention`."""
        c = self.shape
        # No 1 / sqrt(d): T5 folds it into the initialisation of q.
        attention = TextAttention(c.heads, c.head_width, 1.0, False, self.dtype, name="attn")
        attended = attention(RmsNorm(c.eps, name="norm1")(x), valid, bias)
        x = x + attended.astype(jnp.float32)
        mlp = MLPS[c.feed_forward](c.hidden, self.dtype, name="mlp")
        read: Any = mlp(RmsNorm(c.eps, name="norm2")(x))
        return constrain(x + read.astype(jnp.float32), "batch", None, "embed")


_BLOCK = r"encoder\.block\.(\d+)\.layer\."
_FEED = _BLOCK + r"1\.DenseReluDense\."
RULES = [
    Rule(r"shared\.weight|encoder\.embed_tokens\.weight", ("word_embedding",)),
    Rule(_BLOCK + r"0\.SelfAttention\.relative_attention_bias\.weight", ("relative_bias",)),
    *dense(_BLOCK + r"0\.SelfAttention\.q", r"block_\1/attn/q"),
    *dense(_BLOCK + r"0\.SelfAttention\.k", r"block_\1/attn/k"),
    *dense(_BLOCK + r"0\.SelfAttention\.v", r"block_\1/attn/v"),
    *dense(_BLOCK + r"0\.SelfAttention\.o", r"block_\1/attn/out"),
    Rule(_BLOCK + r"0\.layer_norm\.weight", (r"block_\1/norm1/scale",)),
    *dense(_FEED + "wi", r"block_\1/mlp/fc1"),
    *dense(_FEED + "wi_0", r"block_\1/mlp/gate"),
    *dense(_FEED + "wi_1", r"block_\1/mlp/fc1"),
    *dense(_FEED + "wo", r"block_\1/mlp/fc2"),
    Rule(_BLOCK + r"1\.layer_norm\.weight", (r"block_\1/norm2/scale",)),
    Rule(r"encoder\.final_layer_norm\.weight", ("norm/scale",)),
    Rule(r"decoder\..*|lm_head\..*"),
]
