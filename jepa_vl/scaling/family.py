"""The sizes of a study: encoders between Ti and g, tiny ones below, and what follows from each.

A size is a name of :data:`FAMILY` or ``WIDTHxDEPTH``. Heads: the published ones where the name is a
published variant; else one for each 64 of the width from 192 on, for each 32 (or 16) below. The
predictor has half the encoder's width, at most I-JEPA's 384, half its depth, at most 16, and as
many heads, or 12 where so many do not divide its width; the conditioner is as wide as the predictor
that it stands in. MLPs keep the ratio 4.
"""

import re
from typing import Any, NamedTuple

from jepa_vl.config import ConfigError
from jepa_vl.schema import VARIANTS

PREDICTOR_WIDTH = 384  # I-JEPA's for all sizes
PREDICTOR_DEPTH = 16  # that of g, the deepest
PREDICTOR_HEADS = 12
# Between the published ones: widths in multiples of 64.
BETWEEN = {
    "XS": (256, 12), "M": (512, 12), "SB": (640, 12), "BL": (896, 18), "LH": (1152, 28),
}  # fmt: skip
FAMILY = tuple(
    sorted([*VARIANTS, *BETWEEN], key=lambda name: (VARIANTS.get(name) or BETWEEN[name])[:2])
)
_CROSS = re.compile(r"(\d+)x(\d+)")


class Size(NamedTuple):
    """Widths and depths of one size."""

    name: str
    width: int
    depth: int
    heads: int
    mlp_width: int
    predictor_width: int
    predictor_depth: int
    predictor_heads: int

    def overrides(self) -> dict[str, Any]:
        """The configuration's keys that it sets."""
        return {
            "encoder.variant": "", "encoder.width": self.width, "encoder.depth": self.depth,
            "encoder.heads": self.heads, "encoder.mlp_width": self.mlp_width,
            "predictor.width": self.predictor_width, "predictor.depth": self.predictor_depth,
            "predictor.heads": self.predictor_heads,
        }  # fmt: skip


def size(name: str) -> Size:
    """What a name stands for.

    Raises:
      ConfigError: it is neither of the family nor WIDTHxDEPTH, or heads do not divide the width.
    """
    if name in VARIANTS:
        width, depth, heads, mlp = VARIANTS[name]
    else:
        width, depth = BETWEEN.get(name) or _crossed(name)
        heads, mlp = _heads(name, width), 4 * width
    narrow = min(width // 2, PREDICTOR_WIDTH)
    half = min(-(-depth // 2), PREDICTOR_DEPTH)
    same = heads if narrow % heads == 0 else PREDICTOR_HEADS
    return Size(name, width, depth, heads, mlp, narrow, half, same)


def _crossed(name: str) -> tuple[int, int]:
    found = _CROSS.fullmatch(name)
    if not found or not int(found[1]) or not int(found[2]):
        rule = f"one of {', '.join(FAMILY)}, or WIDTHxDEPTH as in 96x4"
        raise ConfigError("study.sizes", name, rule)
    return int(found[1]), int(found[2])


def _heads(name: str, width: int) -> int:
    each = (64, 32, 16) if width >= 192 else (32, 16)
    for of_head in each:
        if width % of_head == 0:
            return width // of_head
    raise ConfigError("study.sizes", name, "a width that is a multiple of 16, for its heads")
