"""How the predictor reads captions: one file for each kind, chosen by ``conditioner.kind``."""

import importlib
import pkgutil
from typing import Any

from jepa_vl.config import ConfigError, one_of
from jepa_vl.models.conditioner.base import CONDITIONERS as CONDITIONERS
from jepa_vl.models.conditioner.base import Conditioner as Conditioner
from jepa_vl.models.conditioner.base import Reading as Reading
from jepa_vl.models.conditioner.base import Words as Words
from jepa_vl.models.conditioner.fusion import FUSIONS
from jepa_vl.models.conditioner.similarity import REGULARISERS as REGULARISERS
from jepa_vl.schema import ConditionerConfig

for _module in pkgutil.iter_modules(__path__):  # a new file of this folder registers itself
    importlib.import_module(f"{__name__}.{_module.name}")


def check(config: ConditionerConfig) -> None:
    """Refuses what no kind or fusion is called, and settings that the kind does not read.

    Raises:
      ConfigError: names the key and what it may be.
    """
    one_of("conditioner.kind", config.kind, CONDITIONERS)
    one_of("conditioner.fusion", config.fusion, FUSIONS)
    if config.kind == "none":
        return
    if CONDITIONERS[config.kind].needs_mlp and not config.mlp_ratio:
        rule = f"above 0 with kind {config.kind!r}, which reads captions by its MLP"
        raise ConfigError("conditioner.mlp_ratio", config.mlp_ratio, rule)
    usual, reads = ConditionerConfig(), CONDITIONERS[config.kind].settings
    for name in ("layers", "fusion", "pool", "scale_logits"):
        value, default = getattr(config, name), getattr(usual, name)
        if name not in reads and value != default:
            kinds = ", ".join(k for k, kind in CONDITIONERS.items() if name in kind.settings)
            rule = f"{default!r} with kind {config.kind!r}; for {kinds} alone"
            raise ConfigError(f"conditioner.{name}", value, rule)


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
      similarity: what the regularisers see, a name of ``similarity.REGULARISERS``.
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
