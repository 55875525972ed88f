"""From one reading a caption to one a token. Missing captions never count; without any it is 0."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models import fast
from jepa_vl.models.layers import NORMAL
from jepa_vl.shapes import Array

Fuse = Callable[[Array, Array], Array]  # [B, R, N, P] and bool [B, N] -> [B, R, P]


def fuse_max(read: Array, caption_mask: Array) -> Array:
    """Maximum by channel, as in the paper; a tie gives the gradient to the first caption."""
    # A finite floor: -inf would turn into NaN where it meets a factor 0.
    read = jnp.where(caption_mask[:, None, :, None], read, -1e9)
    any_caption = jnp.any(caption_mask, axis=-1)[:, None, None]
    return jnp.where(any_caption, fast.max_first(read), 0.0)


def fuse_mean(read: Array, caption_mask: Array) -> Array:
    """Mean over the captions that an image has."""
    present = caption_mask[:, None, :, None]
    total = jnp.sum(jnp.where(present, read, 0.0), axis=-2)
    return total / jnp.maximum(jnp.sum(present, axis=-2), 1)


class AttentionFusion(nn.Module):
    """Attention pooling: one learned query weighs the captions, for each token by what was read."""

    @nn.compact
    def __call__(self, read: Array, caption_mask: Array) -> Array:
        """[B, R, N, P] and bool [B, N] -> [B, R, P]."""
        width = read.shape[-1]
        query = self.param("query", NORMAL, (width,))
        present = caption_mask[:, None]
        read = jnp.where(present[..., None], read, 0.0)
        scores = jnp.einsum("brnp,p->brn", read, query) * width**-0.5
        weights = jax.nn.softmax(jnp.where(present, scores, -1e9), axis=-1) * present
        return jnp.einsum("brn,brnp->brp", weights, read)


# Each makes its function inside the compact method that calls it.
FUSIONS: dict[str, Callable[[], Fuse]] = {
    "max": lambda: fuse_max,
    "mean": lambda: fuse_mean,
    "attention": lambda: AttentionFusion(name="fusion"),
}
