"""The image side of an objective that trains no image tower: pretrained, of a run, or untrained."""

import jax
import jax.numpy as jnp

from jepa_vl.config import Config, ConfigError
from jepa_vl.models import frozen_vit, intake, stack
from jepa_vl.objectives.base import Batch, rescale_init
from jepa_vl.schema import RANDOM
from jepa_vl.shapes import Array, PyTree

KEY = "frozen.image"
# What ``encoder`` says of a tower, and what the tower's files call it here.
NAMES = {
    "width": "width",
    "depth": "depth",
    "heads": "heads",
    "mlp_width": "hidden",
    "patch_size": "patch",
    "image_size": "side",
}


class FrozenImage:
    """Embeds images with the tower that ``frozen.image`` names: ``frozen["image"]``.

    ``encoder`` describes it; the configuration of a run then says what was used, and data, masks
    and predictor agree with the tower.
    """

    def __init__(self, config: Config):
        """Builds the module of a resolved configuration; weights are not read yet.

        Raises:
          ConfigError: no tower there, or ``encoder`` describes another one.
        """
        self.config, self.path = config, config.frozen.image
        ours = frozen_vit.shape_of(config.encoder)
        shape = ours
        if self.path != RANDOM:
            self.source = intake.open_source(self.path, KEY, heads=ours.heads)
            shape = self.source.shape
        gaps = [
            f"encoder.{name} = {getattr(ours, own)} (there: {getattr(shape, own)})"
            for name, own in NAMES.items()
            if getattr(ours, own) != getattr(shape, own)
        ]
        if gaps:
            rule = f"encoder must describe this tower, but {', '.join(gaps)}"
            raise ConfigError(KEY, self.path, rule)
        self.module = frozen_vit.FrozenViT(
            shape, jnp.dtype(config.train.dtype), stack.plan(config.train)
        )

    def load_frozen(self) -> PyTree:
        """{image}: its weights.

        Raises:
          ConfigError: the files do not fit.
        """
        if self.path != RANDOM:
            return {"image": intake.load(self.source, self.module)}
        rng = jax.random.fold_in(jax.random.key(self.config.seed), 1)
        params = frozen_vit.untrained(self.module.shape, rng)
        return {"image": rescale_init(params, self.config.train.init)}

    def frozen_spec(self) -> PyTree:
        """Shapes of :meth:`load_frozen`, all float32."""
        return {"image": frozen_vit.expected(self.module.shape)}

    def all_patches(self, frozen: PyTree, batch: Batch) -> Array:
        """Features [B, T, D] of whole images."""
        with jax.named_scope("image_tower"):
            return self.module.apply({"params": frozen["image"]}, batch["image"])  # pyright: ignore[reportReturnType]

    def visible_patches(self, frozen: PyTree, batch: Batch) -> Array:
        """Features [B, K, D] of the visible patches, which have seen no other."""
        visible = batch["ctx_idx"], batch.get("ctx_valid")
        with jax.named_scope("image_tower"):
            return self.module.apply({"params": frozen["image"]}, batch["image"], *visible)  # pyright: ignore[reportReturnType]
