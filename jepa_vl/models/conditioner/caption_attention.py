"""Ablation of TC-JEPA: cross-attention to the mean-pooled caption vector."""

from jepa_vl.models.conditioner.base import Reading, Words, mean_words, register
from jepa_vl.models.conditioner.word_attention import WordAttention
from jepa_vl.shapes import Array


@register("caption_attention")
class CaptionAttention(WordAttention):
    """Word attention to captions of one word, the mean of their words; S = 1 in the reading.

    A softmax over one key is 1: every token reads W_V t, and its query acts through O alone. The
    regularisers ``centred`` and ``entropy`` compare the words of a caption: here they are 0 or
    constant.
    """

    word_level = False

    def read(
        self, x: Array, valid: Array | None, words: Words | None
    ) -> tuple[Array, Reading | None]:
        """See :meth:`Conditioner.read`."""
        assert words is not None
        whole = words.existing
        known = whole.present.any(axis=-1)
        read_now = words.present.any(axis=-1)
        pooled = Words(mean_words(whole)[:, :, None], known[..., None], read_now, known)
        return super().read(x, valid, pooled)
