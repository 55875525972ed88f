"""Text towers: token ids of captions -> word embeddings [B, N, S, E]."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.config import ConfigError
from jepa_vl.models import bert, gte, runs, t5, weights
from jepa_vl.models.layers import NORMAL, Block, LayerNorm
from jepa_vl.models.stack import PLAIN, Plan, run_blocks
from jepa_vl.models.weights import Rule
from jepa_vl.pretrained import META, locate, read_json
from jepa_vl.schema import TextConfig
from jepa_vl.shapes import Array, PyTree, check_shape

PATH = "text.path"


class HashedText(nn.Module):
    """The built-in tower, trained with the model: hashed word pieces, positions, a few blocks.

    It needs no download and no vocabulary file. It is no substitute for a pretrained tower:
    captions in which a word is new tell it nothing about that word.
    """

    config: TextConfig
    dtype: Any = jnp.float32
    how: Plan = Plan()

    @nn.compact
    def __call__(self, word_ids: Array, word_mask: Array) -> Array:
        """Embeds captions.

        Args:
          word_ids: int32 [B, N, S], 0 = padding.
          word_mask: bool [B, N, S].

        Returns:
          [B, N, S, E] float32, after a LayerNorm.
        """
        c = self.config
        sizes = check_shape("word_ids", word_ids, "B N S", S=c.words)
        check_shape("word_mask", word_mask, "B N S", **sizes)
        b, n, s = word_ids.shape
        embedding = self.param("word_embedding", NORMAL, (c.vocabulary, c.width))
        # From 0, so that a word starts as itself wherever it stands. Normalised, as blocks would
        # drown embeddings of 0.02 in what all words of a caption share.
        position = self.param("word_position", nn.initializers.zeros, (c.words, c.width))
        x = LayerNorm(name="embedding_norm")(embedding[word_ids] + position)
        x = x.reshape(b * n, s, c.width)
        make = functools.partial(Block, c.heads, 4 * c.width, self.dtype)
        x = run_blocks(self, make, c.depth, x, word_mask.reshape(b * n, s), how=self.how)
        return LayerNorm(name="norm")(x).reshape(b, n, s, c.width)


class CachedText(nn.Module):
    """Embeddings that were computed before training: what the batch brings, as float32."""

    @nn.compact
    def __call__(self, word_states: Array, word_mask: Array) -> Array:
        """word_states [B, N, S, E] of any float type -> the same in float32."""
        sizes = check_shape("word_mask", word_mask, "B N S")
        check_shape("word_states", word_states, "B N S E", **sizes)
        return word_states.astype(jnp.float32)


class Family(NamedTuple):
    """A kind of pretrained tower.

    Attributes:
      read_shape: config.json and (configuration key, path) to what ``encoder`` is built from.
      encoder: the module's class.
      rules: from the names in its files to ours.
    """

    read_shape: Callable[[dict[str, Any], tuple[str, str]], Any]
    encoder: Callable[..., nn.Module]
    rules: Sequence[Rule]


FAMILIES = {
    "t5": Family(t5.read_shape, t5.T5Encoder, t5.RULES),
    "bert": Family(bert.read_shape, bert.BertEncoder, bert.RULES),
    "gte": Family(gte.read_shape, gte.GteEncoder, gte.RULES),
}


def _read_shape(config: TextConfig) -> Any:
    where, folder = (PATH, config.path), locate(config.path, PATH, weights=False)
    return FAMILIES[config.kind].read_shape(read_json(folder, "config.json", PATH), where)


def _pretrained(config: TextConfig, dtype: Any, how: Plan) -> nn.Module:
    shape = _read_shape(config)
    positions = getattr(shape, "positions", config.words)
    if config.words > positions:
        rule = f"at most {positions}, the positions that {config.path} knows"
        raise ConfigError("text.words", config.words, rule)
    return FAMILIES[config.kind].encoder(shape, dtype, how)


TOWERS: dict[str, Callable[[TextConfig, Any, Plan], nn.Module]] = {
    "hashed": HashedText,
    "cached": lambda config, dtype, how: CachedText(),
    **dict.fromkeys(FAMILIES, _pretrained),
}
WIDTHS: dict[str, Callable[[TextConfig], int]] = {
    "hashed": lambda config: config.width,
    "cached": lambda config: read_json(locate(config.path, PATH), META, PATH)["width"],
    **dict.fromkeys(FAMILIES, lambda config: _read_shape(config).width),
}


def build(config: TextConfig, dtype: Any = jnp.float32, how: Plan = PLAIN) -> nn.Module:
    """The text tower of a resolved configuration; weights are not read yet.

    Raises:
      ConfigError: the folder of a pretrained tower is absent, or not of this kind.
    """
    return TOWERS[config.kind](config, dtype, how)


def width(config: TextConfig) -> int:
    """E, channels of a word: ``text.width`` of the built-in tower, else what its files say.

    Raises:
      ConfigError: see :func:`build`.
    """
    return WIDTHS[config.kind](config)


def expected(config: TextConfig) -> PyTree:
    """Shapes of a tower's parameters, for any kind but cached; weights are not read.

    Raises:
      ConfigError: see :func:`build`.
    """
    ids = jax.ShapeDtypeStruct((1, 1, config.words), jnp.int32)
    mask = jax.ShapeDtypeStruct(ids.shape, jnp.bool_)
    return weights.expected(build(config), ids, mask)


def load(config: TextConfig) -> PyTree:
    """The weights of a pretrained tower: numpy arrays, matrices in ``text.weights_dtype``.

    Trained towers are float32 whatever that says.

    Raises:
      ConfigError: the files do not fit; lists how.
    """
    folder, where = locate(config.path, PATH), (PATH, config.path)
    dtype = jnp.dtype(config.weights_dtype if config.frozen == "yes" else "float32")
    return weights.load(folder, FAMILIES[config.kind].rules, expected(config), where, dtype)


def load_from_run(config: TextConfig, path: str, key: str) -> PyTree:
    """The weights of the built-in tower out of a run of ours: float32 numpy arrays.

    Args:
      config: of the tower.
      path: workdir of the run.
      key: configuration key of the path, for errors.

    Raises:
      ConfigError: no run there, or none of its parts is such a tower.
    """
    return runs.read(locate(path, key), "text", expected(config), (key, path))
