"""Pooled features of data sets, from any encoder."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jepa_vl.shapes import Array, PyTree
from jepa_vl.sharding import batch_sharding, replicated

# (encoder parameters, images [B, H, W, 3]) -> [B, D] float32
Encode = Callable[[PyTree, Array], Array]


def make_encode(encoder: Any, mesh: Mesh) -> Encode:
    """Compiles average pooling over all patches of an objective's ``encoder``.

    For a ViT that is its final layer, after the LayerNorm.

    Callers inside and outside the mesh's context share one compilation: it is entered here.
    """

    def pool(params: PyTree, images: Array) -> Array:
        tokens: Any = encoder.apply({"params": params}, images)
        return jnp.mean(tokens, axis=1)

    compiled = jax.jit(
        pool, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh)
    )

    def encode(params: PyTree, images: Array) -> Array:
        with jax.set_mesh(mesh):
            return compiled(params, images)

    return encode


def pooled(
    encode: Encode, params: PyTree, images: Iterable[Array], valid: Iterable[Array]
) -> Array:
    """Features of all valid images: float32 [n, D], in order.

    Args:
      encode: see :func:`make_encode`.
      params: parameters of the encoder.
      images: batches, uint8 [b, H, W, 3], all of one size.
      valid: bool [b] for each, False for padding.
    """
    parts = [np.asarray(encode(params, x))[v] for x, v in zip(images, valid, strict=True)]
    return np.concatenate(parts)


def unit(x: Array) -> Array:
    """Rows of x, float [n, D], scaled to length 1; rows of zeros stay."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def pixels(images: Array, size: int = 16) -> Array:
    """The floor: raw pixels, uint8 [n, H, W, 3] -> float32 [n, size * size * 3], box-averaged."""
    n, height, width, _ = images.shape
    rows = np.arange(size + 1) * height // size
    columns = np.arange(size + 1) * width // size
    x = np.add.reduceat(images.astype(np.float32), rows[:-1], axis=1)
    x = np.add.reduceat(x, columns[:-1], axis=2)
    area = np.diff(rows)[:, None] * np.diff(columns)[None, :]
    return (x / area[..., None]).reshape(n, -1)
