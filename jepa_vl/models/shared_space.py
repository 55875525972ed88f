"""The heads of the contrastive control: both modalities in one space."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models.layers import Dense
from jepa_vl.shapes import Array


class Head(nn.Module):
    """One linear map without bias: float32 [B, D] -> [B, width] float32, not yet of unit length."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """[B, D] -> [B, width]."""
        project = Dense(self.width, use_bias=False, dtype=self.dtype, name="project")
        return project(features).astype(jnp.float32)
