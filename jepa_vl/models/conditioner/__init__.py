"""How the predictor reads captions: one file for each kind, chosen by ``conditioner.kind``."""

from typing import Any

from jepa_vl.models.conditioner.adaln import AdaLN
from jepa_vl.models.conditioner.base import Conditioner as Conditioner
from jepa_vl.models.conditioner.base import Reading as Reading
from jepa_vl.models.conditioner.base import Words as Words
from jepa_vl.models.conditioner.caption_attention import CaptionAttention
from jepa_vl.models.conditioner.feature import Feature
from jepa_vl.models.conditioner.sequence import WordSequence
from jepa_vl.models.conditioner.similarity import centred_similarity as centred_similarity
from jepa_vl.models.conditioner.similarity import entropy_similarity as entropy_similarity
from jepa_vl.models.conditioner.similarity import paper_similarity as paper_similarity
from jepa_vl.models.conditioner.word_attention import WordAttention as WordAttention
from jepa_vl.schema import ConditionerConfig

CONDITIONERS: dict[str, type[Conditioner]] = {
    "word_attention": WordAttention,
    "caption_attention": CaptionAttention,
    "adaln": AdaLN,
    "feature": Feature,
    "sequence": WordSequence,
    "none": Conditioner,
}


def conditioned_layers(layers: str, depth: int) -> range:
    """Which of the predictor's layers read the captions.

    The paper does not say which one its single-layer variant conditions. We take the middle one:
    mask tokens have seen the context by then, and half of the blocks remain to use what was read.
    """
    return range(depth) if layers == "all" else range(depth // 2, depth // 2 + 1)


def build(
    config: ConditionerConfig, depth: int, similarity: str, others: int, dtype: Any
) -> tuple[Conditioner, list[Conditioner]]:
    """The conditioner at the predictor's input, and that of each of its layers.

    A place that the kind does not condition gets one whose hooks do nothing. To be called where
    the parent module defines its submodules.

    Args:
      config: resolved.
      depth: layers of the predictor.
      similarity: what the regularisers see, a name of ``similarity.SIMILARITIES``.
      others: images whose captions the contrast sets against an image's own; 0: none.
      dtype: of matrix products.
    """
    kind = CONDITIONERS[config.kind]
    chosen = conditioned_layers(config.layers, depth)

    def make(active: bool, name: str) -> Conditioner:
        return (kind if active else Conditioner)(
            mlp_ratio=config.mlp_ratio,
            scale_logits=config.scale_logits,
            fusion=config.fusion,
            pool=config.pool,
            similarity=similarity,
            others=others,
            dtype=dtype,
            name=name,
        )

    at_input = make(kind.at_input, "conditioner_input")
    inside = [make(i in chosen and not kind.at_input, f"conditioner_{i}") for i in range(depth)]
    return at_input, inside
