"""An encoder that came in as one of ours: what ``vit.ViT`` computes it with."""

from collections.abc import Sequence

import numpy as np

from jepa_vl import tree
from jepa_vl.config import ConfigError
from jepa_vl.models import intake, vit
from jepa_vl.models.intake.source import Source
from jepa_vl.models.layers import sincos_table
from jepa_vl.schema import LEARNED, EncoderConfig
from jepa_vl.shapes import Array


def as_ours(source: Source) -> tuple[EncoderConfig, dict[str, Array]]:
    """Its configuration and float32 parameters by name; positions as they are.

    Raises:
      ConfigError: it has what ours has not, or the files do not fit.
    """
    shape = source.shape
    if shape.cls or shape.layer_scale:
        more = " and ".join(
            name
            for name, there in (("a class token", shape.cls), ("LayerScale", shape.layer_scale))
            if there
        )
        raise ConfigError(*source.where, f"has {more}, which our encoder has not")
    params = tree.flatten(intake.load(source, intake.build(source)))
    fixed = np.array_equal(params["position"], sincos_table(shape.width, shape.grid))
    config = EncoderConfig(
        image_size=shape.side,
        patch_size=shape.patch,
        width=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        mlp_width=shape.hidden,
        positions="fixed" if fixed else LEARNED,
    )
    if fixed:
        del params["position"]
    return config, params | for_our_pixels(params, shape.mean, shape.std)


def for_our_pixels(
    found: dict[str, Array], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Array]:
    """The patch embedding that does with our pixels what it did with those of other moments.

    (p - m') / s' = x s / s' + (m - m') / s' where p = x s + m.
    """
    if tuple(mean) == vit.IMAGENET_MEAN and tuple(std) == vit.IMAGENET_STD:
        return {}
    m, s, their_m, their_s = (
        np.array(v, np.float64) for v in (vit.IMAGENET_MEAN, vit.IMAGENET_STD, mean, std)
    )
    kernel = found["patch_kernel"].astype(np.float64)
    bias = found["patch_bias"] + np.einsum("pqcd,c->d", kernel, (m - their_m) / their_s)
    kernel = kernel * (s / their_s)[:, None]
    return {"patch_kernel": kernel.astype(np.float32), "patch_bias": bias.astype(np.float32)}
