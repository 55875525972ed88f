"""Raw pixels in place of an encoder: a floor of what reads patches, or their average."""

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jepa_vl.config import Config
from jepa_vl.data import faults
from jepa_vl.data.sources import Source
from jepa_vl.evaluators import features
from jepa_vl.evaluators.network import Network
from jepa_vl.models.vit import IMAGENET_MEAN, IMAGENET_STD
from jepa_vl.shapes import Array, PyTree

POOLED = (
    "pixels: 16 x 16 boxes in place of averages, centred by the training mean or, where heads are "
    "trained on crops, scaled as encoders see them; patches as they are"
)


class PatchPixels:
    """In place of an encoder: the raw pixels of each patch."""

    FEATURES = "raw pixels of each patch"

    def __init__(self, patch: int):
        """``patch``: side of a patch, pixels."""
        self.patch = patch

    def apply(self, _: PyTree, images: Array) -> Array:
        """uint8 [B, H, W, 3] -> float32 [B, T, 3 p * p] in [0, 1], row-major patches."""
        (b, h, w, _three), p = images.shape, self.patch
        tiles = images.reshape(b, h // p, p, w // p, p, 3).swapaxes(2, 3)
        return tiles.reshape(b, (h // p) * (w // p), 3 * p * p).astype(jnp.float32) / 255


class PixelNetwork(Network):
    """A network of one layer that nobody has trained; its parameters are empty.

    The mean of an image's patches would be a blurred patch: in the place of averages stand boxes
    of the whole image, the floor of kNN and of its like.
    """

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        train: Source,
        held_out: Source,
        log: faults.Log | None = None,
    ):
        """Reads nothing yet."""
        patches = PatchPixels(config.encoder.patch_size)
        super().__init__(config, patches, mesh, train, held_out, log)

    @property
    def width(self) -> int:
        """Of a patch."""
        return 3 * self.config.encoder.patch_size**2

    def pooled(self, params: PyTree, images: Array, layers: int = 1) -> Array:
        """uint8 [b, H, W, 3] -> float32 [b, 768], by ImageNet's mean and deviation."""
        del params, layers  # there is one
        boxes = features.pixels(images).reshape(len(images), -1, 3) / 255
        scaled = (boxes - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
        return scaled.reshape(len(images), -1).astype(np.float32)
