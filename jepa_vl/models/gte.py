"""GTE v1.5 (arXiv 2407.19669, "new" in its config.json): BERT with rotary positions, gated MLP."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jepa_vl.config import ConfigError
from jepa_vl.models import fast
from jepa_vl.models.layers import NORMAL, LayerNorm
from jepa_vl.models.stack import Plan, run_blocks
from jepa_vl.models.text_layers import GatedMlp, PostNormBlock, rotary_angles
from jepa_vl.models.weights import Rule, dense, norm, require
from jepa_vl.shapes import Array, check_shape


class GteShape(NamedTuple):
    """What a config.json says about the encoder; types may be 0."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    hidden: int
    positions: int
    types: int
    eps: float
    theta: float
    stretch: float


def read_shape(config: dict[str, Any], where: tuple[str, str]) -> GteShape:
    """Reads a config.json, of the original or of transformers 5.

    Raises:
      ConfigError: a variant that is not here.
    """
    covered = {
        "model_type": ("new", "gte"),
        "hidden_act": ("gelu",),
        "position_embedding_type": ("rope",),
        "layer_norm_type": ("layer_norm",),
        "logn_attention_scale": (False,),
    }
    require(config, covered, where)
    theta, stretch = _rotary(config, where)
    return GteShape(
        vocabulary=config["vocab_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        positions=config["max_position_embeddings"],
        types=config.get("type_vocab_size", 0),
        eps=config.get("layer_norm_eps", 1e-12),
        theta=theta,
        stretch=stretch,
    )


def _rotary(config: dict[str, Any], where: tuple[str, str]) -> tuple[float, float]:
    """Base of the frequencies, and the factor of their NTK scaling (1: none)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "ntk") or rope.get("mixed_b") is not None:
        raise ConfigError(*where, f"its config.json scales rotary positions by {rope!r}: not here")
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    return float(theta), float(rope.get("factor", 1.0)) if kind == "ntk" else 1.0


def frequencies(head_width: int, theta: float, stretch: float) -> np.ndarray:
    """Turns a position: float64 [h / 2]. NTK: base times factor, all over factor^(2 / h)."""
    share = np.arange(0, head_width, 2) / head_width
    return (theta * stretch) ** -share / stretch ** (2 / head_width)


class GteEncoder(nn.Module):
    """Post-norm blocks; positions enter by rotation of queries and keys alone."""

    shape: GteShape
    dtype: Any = jnp.float32
    how: Plan = Plan()

    @nn.compact
    def __call__(self, word_ids: Array, word_mask: Array) -> Array:
        """Embeds captions.

        Args:
          word_ids: int32 [B, N, S].
          word_mask: bool [B, N, S], False for padding; or int32, see ``TextAttention``.

        Returns:
          [B, N, S, E] float32, the last hidden state.
        """
        c = self.shape
        check_shape("word_mask", word_mask, "B N S", **check_shape("word_ids", word_ids, "B N S"))
        b, n, s = word_ids.shape
        embedding = self.param("word_embedding", NORMAL, (c.vocabulary, c.width))
        x = embedding[word_ids.reshape(b * n, s)].astype(jnp.float32)
        if c.types:
            kind = self.param("word_type", NORMAL, (c.types, c.width))
            x = x + kind[0].astype(jnp.float32)
        x = LayerNorm(c.eps, name="norm")(x)
        angles = rotary_angles(s, frequencies(c.width // c.heads, c.theta, c.stretch))
        mlp = functools.partial(GatedMlp, c.hidden, fast.gelu, True, self.dtype)
        make = functools.partial(PostNormBlock, c.heads, c.eps, mlp, self.dtype)
        seen = word_mask.reshape(b * n, s), jnp.asarray(angles)
        x = run_blocks(self, make, c.depth, x, *seen, how=self.how)
        return x.reshape(b, n, s, c.width)


_NEW = r"(?:new\.|gte\.)?"
_LAYER = _NEW + r"encoder\.layer\.(\d+)\."
_QKV = tuple(rf"block_\1/attn/{name}" for name in "qkv")
RULES = [
    Rule(_NEW + r"embeddings\.word_embeddings\.weight", ("word_embedding",)),
    Rule(_NEW + r"embeddings\.token_type_embeddings\.weight", ("word_type",)),
    *norm(_NEW + r"embeddings\.LayerNorm", "norm"),
    *dense(_LAYER + r"attention\.qkv_proj", *_QKV),
    *dense(_LAYER + r"attention\.o_proj", r"block_\1/attn/out"),
    *norm(_LAYER + "attn_ln", r"block_\1/norm1"),
    *dense(_LAYER + r"mlp\.up_gate_proj", r"block_\1/mlp/fc1", r"block_\1/mlp/gate"),
    *dense(_LAYER + r"mlp\.down_proj", r"block_\1/mlp/fc2"),
    *norm(_LAYER + "mlp_ln", r"block_\1/norm2"),
    Rule(_NEW + r"embeddings\.position_ids|.*rotary_emb\..*"),
    Rule(_NEW + r"pooler\..*|(?:lm_head|classifier)\..*"),
]
