"""What protocols read that train parts of their own: a network, and the images of both parts."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jepa_vl import sharding
from jepa_vl.config import Config, ConfigError
from jepa_vl.data import faults
from jepa_vl.data.sources import Source
from jepa_vl.evaluators import features
from jepa_vl.shapes import Array, PyTree


def _memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Network:
    """An encoder over a mesh and the sources of both parts; parameters come with each call.

    Attributes:
      config: resolved.
      encoder: ``encoder.apply({"params": p}, uint8 [B, H, W, 3]) -> [B, T, D]``.
      mesh: that batches are spread over.
      train, held_out: sources; a protocol reads what it needs of them.
      log: lists images that cannot be used; None: nowhere.
    """

    def __init__(
        self,
        config: Config,
        encoder: Any,
        mesh: Mesh,
        train: Source,
        held_out: Source,
        log: faults.Log | None = None,
    ):
        """Reads nothing yet."""
        self.config, self.encoder, self.mesh, self.log = config, encoder, mesh, log
        self.train, self.held_out = train, held_out
        self._compiled: dict[tuple[int, bool], Callable[[PyTree, Array], Array]] = {}

    @functools.cached_property
    def labelled(self) -> features.Reader:
        """The labelled images of both parts.

        Raises:
          ConfigError: one of the parts has no labelled image.
        """
        return features.Reader(self.config, self.train, self.held_out, self.log)

    def tokens(self, params: PyTree, images: Array, layers: int = 1) -> Array:
        """Features of all patches.

        Args:
          params: of the encoder.
          images: uint8 [b, H, W, 3]; the mesh need not divide b.
          layers: how many of the last blocks; their features lie side by side.

        Returns:
          float32 [b, T, layers * D], row-major patches, each layer after the final LayerNorm.

        Raises:
          ConfigError: the encoder has fewer layers that can be read.
        """
        return self._run(params, images, layers, False)

    def pooled(self, params: PyTree, images: Array, layers: int = 1) -> Array:
        """As :meth:`tokens`, averaged over the patches: float32 [b, layers * D]."""
        return self._run(params, images, layers, True)

    def _run(self, params: PyTree, images: Array, layers: int, pool: bool) -> Array:
        if (layers, pool) not in self._compiled:
            self._compiled[layers, pool] = self._compile(layers, pool)
        missing = sharding.round_up(len(images), self.mesh) - len(images)
        whole = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
        return np.asarray(self._compiled[layers, pool](params, whole))[: len(images)]

    def _compile(self, layers: int, pool: bool) -> Callable[[PyTree, Array], Array]:
        if layers > self.depth:
            rule = f"at most {self.depth}, the blocks that can be read"
            raise ConfigError("layers", layers, rule)

        def read(params: PyTree, images: Array) -> Array:
            found = features.last(self.encoder, params, images, layers)
            return jnp.mean(found, axis=1) if pool else found

        return features.over(self.mesh, read)

    def check_memory(self, images: int) -> None:
        """Refuses tokens of so many images that would fill most of the memory.

        Raises:
          ConfigError: says how much they need.
        """
        c = self.config.encoder
        need, have = 4 * images * c.grid**2 * self.width, _memory()
        if need > 0.5 * have:
            rule = (
                f"tokens of {images} crops need {need / 2**30:.1f} GiB of {have / 2**30:.1f}; give "
                "fewer images or eval.crops"
            )
            raise ConfigError("eval.train_images", self.config.eval.train_images, rule)

    @property
    def width(self) -> int:
        """D, of a patch."""
        return self.config.encoder.width

    @property
    def depth(self) -> int:
        """Blocks whose features can be read: all of a ViT, the last one of other encoders."""
        return features.readable(self.encoder)
