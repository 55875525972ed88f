"""What a conditioner is: three places of the predictor where captions may enter."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models.layers import Modulation
from jepa_vl.shapes import Array


class Words(NamedTuple):
    """Embedded captions of a batch.

    Attributes:
      states: [B, N, S, E], word embeddings; padding holds anything.
      word_mask: bool [B, N, S], True for words.
      caption_mask: bool [B, N], True for captions that exist and are read.
      known: bool [B, N], True for captions that exist; None: all of these are read. The others
        enter the contrast alone.
    """

    states: Array
    word_mask: Array
    caption_mask: Array
    known: Array | None = None

    @property
    def present(self) -> Array:
        """bool [B, N, S]: words of captions that exist and are read."""
        return self.word_mask & self.caption_mask[..., None]

    @property
    def existing(self) -> "Words":
        """As if all captions that exist were read."""
        return self if self.known is None else self._replace(caption_mask=self.known, known=None)


class Reading(NamedTuple):
    """What one conditioner saw; R runs over all tokens of all block copies of an image.

    Attributes:
      similarity: float32 [B, R, N, S], what the regularisers read, O of TC-JEPA: >= 0, and 0 at
        padding.
      entropy: float32 [B, R, N], of the attention over words, divided by log(number of words).
      contrast: float32 [B], see ``contrast.contrast``; 0 where it is not asked for.
    """

    similarity: Array
    entropy: Array
    contrast: Array


class Conditioner(nn.Module):
    """Reads nothing: I-JEPA. Other kinds override the hook of the place where they read.

    A kind is a module of this folder with a subclass under :func:`register`; nothing else knows it.

    Attributes:
      mlp_ratio: hidden over outer width of the kind's MLP; 0: none, where it can do without.
      scale_logits: divide attention logits by sqrt(P).
      fusion: of captions, a name of ``fusion.FUSIONS``.
      pool: fuse captions before_mlp or after_mlp.
      similarity: what the regularisers see, a name of ``similarity.REGULARISERS``.
      others: images whose captions stand against an image's own in ``Reading.contrast``; 0: none.
      dtype: of matrix products.
      settings: keys ``conditioner.*`` that the kind reads, of layers, fusion, pool, scale_logits.
      at_input: one conditioner at the predictor's input instead of one in each layer.
      reads: ``read`` uses every token, and gives a :class:`Reading`.
      word_level: the reading tells words apart.
      needs_mlp: ``mlp_ratio`` cannot be 0.
    """

    mlp_ratio: float = 4.0
    scale_logits: bool = False
    fusion: str = "max"
    pool: str = "before_mlp"
    similarity: str = "paper"
    others: int = 0
    dtype: Any = jnp.float32

    settings: ClassVar[tuple[str, ...]] = ()
    at_input: ClassVar[bool] = False
    reads: ClassVar[bool] = False
    word_level: ClassVar[bool] = False
    needs_mlp: ClassVar[bool] = False

    def prepare(
        self, x: Array, valid: Array | None, words: Words | None
    ) -> tuple[Array, Array | None]:
        """At the input.

        Args:
          x: [B, M, T, P] float32, context and mask tokens of each block copy.
          valid: bool [B, M, T], False for padding; None: all valid.
          words: see :class:`Words`; None where no text is read.

        Returns:
          Both again. Tokens that are added stand in front: the end is what is predicted.
        """
        return x, valid

    def modulate(self, words: Words | None, width: int) -> Modulation | None:
        """Scales and shifts [B, 1, P] for the LayerNorms of a block of this width; None: none."""
        return None

    def read(
        self, x: Array, valid: Array | None, words: Words | None
    ) -> tuple[Array, Reading | None]:
        """After a block.

        Args:
          x: [B, M, T, P] float32.
          valid, words: as for :meth:`prepare`.

        Returns:
          [B, M, T, P] float32; similarity [B, M, T, N, S], entropy [B, M, T, N] and contrast [B],
          or None.
        """
        return x, None


CONDITIONERS: dict[str, type[Conditioner]] = {"none": Conditioner}


def register(name: str) -> Callable[[type[Conditioner]], type[Conditioner]]:
    """Makes a kind known by the name that ``conditioner.kind`` gives."""

    def add(kind: type[Conditioner]) -> type[Conditioner]:
        CONDITIONERS[name] = kind
        return kind

    return add


def mean_words(words: Words) -> Array:
    """Mean word embedding of each caption, [B, N, E] float32; 0 for captions that are missing."""
    present = words.present[..., None]
    # Not a product with the mask: what padding holds may not be finite.
    total = jnp.sum(jnp.where(present, words.states, 0.0), axis=-2)
    return total / jnp.maximum(jnp.sum(present, axis=-2), 1)
