"""Image encoders come in: from folders, files and the hub, under whose names they were written.

What a path may name: a folder of transformers (ViT, I-JEPA, DINOv2; version 4 or 5), of timm, an
export or a run of ours; a file of weights, timm's or of facebookresearch/ijepa, safetensors or
``.pth``; ``hub:`` and ``package:`` as in :mod:`jepa_vl.pretrained`. torch is needed for ``.pth``.
"""

from typing import Any

import jax.numpy as jnp

from jepa_vl.config import ConfigError, one_of
from jepa_vl.models import frozen_vit, weights
from jepa_vl.models.frozen_vit import FrozenViT, resize_positions
from jepa_vl.models.intake import folders, pickles
from jepa_vl.models.intake.names import PREDICTOR, TIMM
from jepa_vl.models.intake.source import Named, Part, Source, Told, of_timm
from jepa_vl.models.runs import BRANCHES
from jepa_vl.pretrained import find, is_run
from jepa_vl.shapes import PyTree

TARGET = "target"


def open_source(path: str, key: str, branch: str = TARGET, heads: int = 0) -> Source:
    """What lies at a path; weights are read when they are asked for.

    Args:
      path: see above.
      key: configuration key of the path, for errors.
      branch: target or context, of runs and checkpoints that hold both.
      heads: of a file of weights alone, which does not say; 0: those of the preset of its width.

    Raises:
      ConfigError: nothing there, or nothing that is covered.
    """
    one_of("branch", branch, BRANCHES)
    place, where = find(path, key), (key, path)
    if place.is_file():
        return _of_file(place, where, branch, heads)
    return (folders.of_run if is_run(place) else folders.read)(place, where, branch)


def _of_file(file: Any, where: tuple[str, str], branch: str, heads: int) -> Source:
    if file.suffix == ".safetensors":
        tensors, predictor, told = dict(weights.read_file(file, where[0])), {}, ""
    else:
        tensors, predictor = pickles.read(file, where, branch)
        told = branch if predictor else ""
    shape = of_timm(tensors, Told(heads), where)
    parts = {"predictor": _part(predictor, PREDICTOR)} if predictor else {}
    return Source(where, "a file of weights", told, shape, _part(tensors, TIMM), parts)


def _part(tensors: Named, rules: list) -> Part:
    return Part(tensors.items, rules)


def build(source: Source, image_size: int = 0, dtype: Any = jnp.float32) -> FrozenViT:
    """The module of an encoder, for square images of a size.

    Args:
      source: of :func:`open_source`.
      image_size: pixels, a multiple of the patch; 0: what it was trained with.
      dtype: of matrix products.

    Raises:
      ConfigError: the size does not fit.
    """
    shape = source.shape
    if image_size % shape.patch:
        rule = f"{image_size} px is no multiple of its patch {shape.patch}"
        raise ConfigError(*source.where, rule)
    grid = image_size // shape.patch or shape.grid
    return FrozenViT(shape._replace(grid=grid), dtype)


def load(source: Source, module: FrozenViT, dtype: Any = jnp.float32) -> PyTree:
    """Its weights, numpy arrays; matrices in ``dtype``, positions resized to the module's grid.

    Raises:
      ConfigError: the files do not fit; lists how.
    """
    part, like = source.encoder, frozen_vit.expected(source.shape)
    params = weights.convert(part.tensors(), part.rules, like, source.where, dtype)
    position = resize_positions(params["position"], source.shape.cls, module.shape.grid)
    return {**params, "position": position.astype(dtype)}
