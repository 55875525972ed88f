"""What lies in a path: an encoder's shape, its tensors, and the table of their names."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from math import isqrt
from typing import NamedTuple

import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.models import vit
from jepa_vl.models.frozen_vit import VitShape
from jepa_vl.models.layers import EPS
from jepa_vl.models.weights import Rule, Tensors
from jepa_vl.schema import VARIANTS
from jepa_vl.shapes import Array

HEADS = {width: heads for width, _, heads, _ in VARIANTS.values()}
Named = Mapping[str, Callable[[], Array]]


@dataclasses.dataclass(frozen=True)
class Part:
    """Tensors under foreign names: what :func:`weights.match` reads."""

    tensors: Callable[[], Tensors]
    rules: Sequence[Rule]


class Whole(NamedTuple):
    """All that a run of ours trains, the encoder among it.

    Attributes:
      config: resolved, of the run.
      arrays: reads them, by their names in the train state: ``params/...``, ``target/...``.
    """

    config: Config
    arrays: Callable[[], dict[str, Array]]


@dataclasses.dataclass(frozen=True)
class Source:
    """An image encoder that lies in files.

    Attributes:
      where: configuration key and path, for errors.
      kind: in words.
      branch: target or context; empty where the files do not tell.
      shape: what it was trained as.
      encoder: its tensors.
      parts: what else there may be, by name: ``predictor``, ``text``.
      whole: the model that the encoder is a part of; None where files hold an encoder alone.
    """

    where: tuple[str, str]
    kind: str
    branch: str
    shape: VitShape
    encoder: Part
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    whole: Whole | None = None


@dataclasses.dataclass(frozen=True)
class Told:
    """What is known of a state dict beside its tensors: pixels, and heads, 0 if not."""

    heads: int = 0
    mean: tuple[float, ...] = vit.IMAGENET_MEAN
    std: tuple[float, ...] = vit.IMAGENET_STD


def of_timm(tensors: Named, told: Told, where: tuple[str, str]) -> VitShape:
    """The shape of a state dict under timm's names.

    How many heads there are no tensor tells; without ``told.heads`` they are those of the preset
    of this width.

    Raises:
      ConfigError: other names, other shapes, or a width that no preset has.
    """

    def sizes(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors:
            rule = f"holds no {name}: no ViT under the names of timm or facebookresearch/ijepa"
            raise ConfigError(*where, rule)
        found = np.shape(tensors[name]())
        if len(found) != rank:
            raise ConfigError(*where, f"{name} has shape {found}, not {rank} axes")
        return found

    width, _, patch, _ = sizes("patch_embed.proj.weight", 4)
    cls = int("cls_token" in tensors)
    rows = sizes("pos_embed", 3)[1] - cls
    grid = isqrt(max(rows, 0))
    if grid * grid != rows:
        raise ConfigError(*where, f"pos_embed has {rows} patches, which is no square")
    heads = told.heads or HEADS.get(width, 0)
    if not heads or width % heads:
        rule = f"how many heads its width of {width} has is not known"
        raise ConfigError(*where, f"{rule}; give a folder with config.json")
    numbers = [re.match(r"blocks\.(\d+)\.", name) for name in tensors]
    return VitShape(
        grid=grid,
        patch=patch,
        width=width,
        depth=len({found[1] for found in numbers if found}),
        heads=heads,
        hidden=sizes("blocks.0.mlp.fc1.weight", 2)[0],
        eps=EPS,
        cls=cls,
        layer_scale="blocks.0.ls1.gamma" in tensors,
        mean=tuple(told.mean),  # pyright: ignore[reportArgumentType]
        std=tuple(told.std),  # pyright: ignore[reportArgumentType]
    )
