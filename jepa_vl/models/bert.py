"""BERT (arXiv 1810.04805) and its kin, MiniLM among them, with Hugging Face's names."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models.layers import NORMAL, LayerNorm, Mlp
from jepa_vl.models.stack import Plan, run_blocks
from jepa_vl.models.text_layers import PostNormBlock, places
from jepa_vl.models.weights import Rule, dense, norm, require
from jepa_vl.shapes import Array, check_shape


class BertShape(NamedTuple):
    """What a config.json says about the encoder."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    hidden: int
    positions: int
    types: int
    eps: float


def read_shape(config: dict[str, Any], where: tuple[str, str]) -> BertShape:
    """Reads a config.json.

    Raises:
      ConfigError: an activation or kind of position that is not here.
    """
    covered = {
        "model_type": ("bert",),
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
    }
    require(config, covered, where)
    return BertShape(
        vocabulary=config["vocab_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        positions=config["max_position_embeddings"],
        types=config.get("type_vocab_size", 2),
        eps=config.get("layer_norm_eps", 1e-12),
    )


class BertEncoder(nn.Module):
    """Post-norm blocks over word, position and type embeddings; captions are of type 0."""

    shape: BertShape
    dtype: Any = jnp.float32
    how: Plan = Plan()

    @nn.compact
    def __call__(self, word_ids: Array, word_mask: Array) -> Array:
        """Embeds captions.

        Args:
          word_ids: int32 [B, N, S], S at most the table of positions.
          word_mask: bool [B, N, S], False for padding; or int32, see ``TextAttention``.

        Returns:
          [B, N, S, E] float32, the last hidden state.
        """
        c = self.shape
        check_shape("word_mask", word_mask, "B N S", **check_shape("word_ids", word_ids, "B N S"))
        b, n, s = word_ids.shape
        embedding = self.param("word_embedding", NORMAL, (c.vocabulary, c.width))
        position = self.param("word_position", NORMAL, (c.positions, c.width))
        kind = self.param("word_type", NORMAL, (c.types, c.width))
        x = embedding[word_ids.reshape(b * n, s)].astype(jnp.float32)
        valid = word_mask.reshape(b * n, s)
        x = x + position[places(valid)].astype(jnp.float32) + kind[0].astype(jnp.float32)
        x = LayerNorm(c.eps, name="norm")(x)
        mlp = functools.partial(Mlp, c.hidden, self.dtype)
        make = functools.partial(PostNormBlock, c.heads, c.eps, mlp, self.dtype)
        x = run_blocks(self, make, c.depth, x, valid, how=self.how)
        return x.reshape(b, n, s, c.width)


_BERT = r"(?:bert\.)?"
_LAYER = _BERT + r"encoder\.layer\.(\d+)\."
RULES = [
    Rule(_BERT + r"embeddings\.word_embeddings\.weight", ("word_embedding",)),
    Rule(_BERT + r"embeddings\.position_embeddings\.weight", ("word_position",)),
    Rule(_BERT + r"embeddings\.token_type_embeddings\.weight", ("word_type",)),
    *norm(_BERT + r"embeddings\.LayerNorm", "norm"),
    *dense(_LAYER + r"attention\.self\.query", r"block_\1/attn/q"),
    *dense(_LAYER + r"attention\.self\.key", r"block_\1/attn/k"),
    *dense(_LAYER + r"attention\.self\.value", r"block_\1/attn/v"),
    *dense(_LAYER + r"attention\.output\.dense", r"block_\1/attn/out"),
    *norm(_LAYER + r"attention\.output\.LayerNorm", r"block_\1/norm1"),
    *dense(_LAYER + r"intermediate\.dense", r"block_\1/mlp/fc1"),
    *dense(_LAYER + r"output\.dense", r"block_\1/mlp/fc2"),
    *norm(_LAYER + r"output\.LayerNorm", r"block_\1/norm2"),
    Rule(_BERT + r"embeddings\.position_ids|" + _BERT + r"pooler\..*|cls\..*"),
]
