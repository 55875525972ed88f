"""A model under evaluation: what each evaluator is built with, and what it is called with."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jepa_vl import sharding
from jepa_vl.config import Config, ConfigError
from jepa_vl.data import faults
from jepa_vl.data.sources import Source, open_sources
from jepa_vl.evaluators import features
from jepa_vl.evaluators.base import (
    JOINT,
    LABELLED,
    NETWORK,
    REGISTRY,
    VIEWS,
    Features,
    Measured,
    majority,
    read_by,
)
from jepa_vl.evaluators.cache import Cache
from jepa_vl.evaluators.network import Network
from jepa_vl.evaluators.pixels import POOLED, PixelNetwork
from jepa_vl.schema import MeshConfig
from jepa_vl.shapes import PyTree

POOLING = "mean over all patches"
TRANSFORM = "short side to image_size, centre square, no augmentation"
Parts = tuple[Source, Source]


class Model(NamedTuple):
    """What computes features; its parameters come later.

    Attributes:
      encoder: module of images, uint8 [B, H, W, 3] -> [B, T, D]; its FEATURES are words on these.
      frozen: the weights beside an objective, {} of an encoder alone.
      objective: None: an encoder alone, which reads no text.
    """

    encoder: Any
    frozen: PyTree
    objective: Any = None


class Weights(NamedTuple):
    """The parameters of one checkpoint or export.

    Attributes:
      encoder: of ``Model.encoder``.
      whole: (params, target) of the objective; None of an encoder alone.
      name: tells these from all others: the hash of the checkpoint and the branch.
    """

    encoder: PyTree
    whole: tuple[PyTree, PyTree] | None
    name: str


def local_mesh() -> Mesh:
    """All devices of this process, for data alone."""
    return sharding.make_mesh(MeshConfig(), jax.local_devices())


def for_devices(config: Config, mesh: Mesh) -> Config:
    """The configuration with ``eval.batch_size`` rounded up to what the devices share evenly."""
    size = sharding.round_up(config.eval.batch_size, mesh)
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=size))


class Images:
    """The data of an evaluation, opened when they are first asked for, for all kinds of features.

    Args:
      config: resolved.
      parts: training and held-out source; None: as the configuration says.
      log: lists images that cannot be read.
    """

    def __init__(self, config: Config, parts: Parts | None = None, log: faults.Log | None = None):
        self.config, self.log, self._parts = config, log, parts

    @functools.cached_property
    def parts(self) -> Parts:
        """The sources; of those that text is not read of, captions may be absent."""
        return self._parts or open_sources(_without_text(self.config))

    @functools.cached_property
    def captioned(self) -> Parts:
        """The sources with the captions that the objective reads."""
        return self._parts or open_sources(self.config)

    def _read_by(self, reads: str) -> Parts:
        return self.captioned if reads == JOINT else self.parts

    @functools.cached_property
    def reader(self) -> features.Reader:
        """The labelled images."""
        return features.Reader(self.config, *self.parts, self.log)

    @functools.cached_property
    def views(self) -> features.Views:
        """Crops of held-out images."""
        return features.Views(self.config, self.parts[1])

    def data_hash(self, reads: str) -> str:
        """16 hex digits of the images that evaluators of a kind read, as far as is known."""
        if reads == LABELLED:
            return self.reader.data_hash()
        if reads == VIEWS:
            return self.views.data_hash()
        counts = self.config.eval.train_images, self.config.eval.val_images
        told = repr(([part.fingerprint for part in self._read_by(reads)], counts, self.config.seed))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def describe(self, reads: str) -> dict[str, Any]:
        """Which images these are."""
        if reads == VIEWS:
            return self.views.describe()
        if reads == LABELLED:
            return {**self.reader.describe(), "classes": len(self.parts[0].classes)}
        parts = self._read_by(reads)
        return {
            name: {"name": part.name, "fingerprint": part.fingerprint, "images": len(part)}
            for name, part in zip(("train", "held_out"), parts, strict=True)
        }


class Bench:
    """Readings of one model, each compiled once for all its weights."""

    def __init__(
        self,
        config: Config,
        model: Model,
        images: Images,
        mesh: Mesh,
        layers: int = 1,
        encode: features.Encode | None = None,
    ):
        """Compiles nothing yet.

        Args:
          config: resolved.
          model: its parameters come later.
          images: what is read.
          mesh: devices.
          layers: how many of the last blocks pooled features are of.
          encode: of ``features.make_encode`` for the same; None: a new one.

        Raises:
          ConfigError: the encoder has not so many.
        """
        most = features.readable(model.encoder)
        if layers > most:
            raise ConfigError("--layers", layers, f"at most {most}, the blocks that can be read")
        self.config, self.model, self.images, self.mesh = config, model, images, mesh
        self.encode = encode or features.make_encode(model.encoder, mesh, layers)
        pooling = f"{POOLING}, {model.encoder.FEATURES}"
        self.protocol = {"layers": layers, "pooling": pooling}

    @functools.cached_property
    def network(self) -> Any:
        """See ``evaluators.network``."""
        images = self.images
        return Network(self.config, self.model.encoder, self.mesh, *images.parts, images.log)

    @functools.cached_property
    def joint(self) -> Any:
        """See ``evaluators.joint``."""
        from jepa_vl.evaluators.joint import Joint

        model, images = self.model, self.images
        if model.objective is None:
            raise ConfigError("--model", model.encoder.FEATURES, "is no model with a text side")
        return Joint(
            self.config, model.objective, model.frozen, self.mesh, *images.captioned, images.log
        )

    def subject(self, name: str, weights: Weights, cache: Cache | None = None) -> "Subject":
        """The model with these weights; pooled features are kept, and found, in the cache."""
        images, encode = self.images, self.encode
        key = {"weights": weights.name, **self.protocol, "transform": TRANSFORM}
        key |= {"encoder": repr(self.model.encoder)}

        def labelled(params: PyTree) -> Features:
            def compute() -> Features:
                return images.reader.read(lambda x: encode(params, x))

            return cache.labelled(images.reader, key, compute) if cache else compute()

        readings = {
            LABELLED: lambda: features.remember(labelled),
            VIEWS: lambda: lambda params: images.views.read(lambda x: encode(params, x)),
            NETWORK: lambda: self.network,
            JOINT: lambda: self.joint,
        }
        params = dict.fromkeys((LABELLED, VIEWS, NETWORK), weights.encoder)
        return Subject(name, self.config, images, readings, {**params, JOINT: weights.whole},
                       self.protocol)  # fmt: skip


def pixels(config: Config, images: Images, mesh: Mesh) -> "Subject":
    """Raw pixels in place of features."""

    def labelled(_: PyTree) -> Features:
        return features.centred(images.reader.read(features.pixels))

    readings = {
        LABELLED: lambda: features.remember(labelled),
        VIEWS: lambda: lambda _: images.views.read(features.pixels),
        NETWORK: lambda: PixelNetwork(config, mesh, *images.parts, images.log),
    }
    protocol = {"pooling": POOLED}
    return Subject("pixels", config, images, readings, {NETWORK: {}}, protocol, raw=True)


class Subject:
    """One kind of features, and all that evaluators read of it.

    Attributes:
      name: encoder, untrained or pixels.
      protocol: how its features come about.
      raw: are its patches pixels, which not every evaluator of a network reads?
    """

    def __init__(
        self,
        name: str,
        config: Config,
        images: Images,
        readings: dict[str, Callable[[], Any]],
        params: dict[str, Any],
        protocol: dict[str, Any],
        raw: bool = False,
    ):
        self.name, self.protocol, self.raw = name, protocol, raw
        self._images, self._config = images, config
        self._make, self._params = readings, params
        self._made: dict[str, Any] = {}

    def serves(self, task: str) -> bool:
        """Can this evaluator read these features?"""
        reads = read_by(task)
        return reads in self._make and (not self.raw or REGISTRY[task].of_pixels)

    def evaluator(self, task: str) -> Any:
        """The evaluator of a name; nothing is read yet.

        Raises:
          ConfigError: the model, the data or the configuration cannot serve it.
        """
        reads = read_by(task)
        if reads not in self._made:
            self._made[reads] = self._make[reads]()
        return REGISTRY[task](self._config, self._made[reads])

    def measure(self, task: str) -> tuple[Measured, dict[str, Any]]:
        """What an evaluator found, and its whole protocol.

        Raises:
          ConfigError: see :meth:`evaluator`; or the data turn out not to serve it.
        """
        reads, evaluator = read_by(task), self.evaluator(task)
        params = self._params.get(reads)
        found = evaluator.measure(params)
        if reads == LABELLED:
            commonest = majority(self._made[reads](params))
            floors = {"majority": dict.fromkeys(found.hits, commonest)}
            found = found._replace(baselines={**floors, **found.baselines})
        of_images = self._images.describe(reads)  # after reading: those that could be read
        common = {"transform": TRANSFORM, "seed": self._config.seed, **of_images}
        return found, {**common, **self.protocol, **evaluator.protocol}


def tasks_of(names: Sequence[str], option: str) -> list[str]:
    """Names of registered evaluators.

    Raises:
      ConfigError: one is unknown, or there is one twice.
    """
    from jepa_vl.config import one_of

    for name in names:
        one_of(option, name, REGISTRY)
    if len(set(names)) < len(names):
        raise ConfigError(option, ",".join(names), "each evaluator once")
    return list(names)


def _without_text(config: Config) -> Config:
    """For opening the images of a run that reads captions: labelled ones need not have any."""
    conditioner = dataclasses.replace(config.conditioner, kind="none")
    return dataclasses.replace(config, objective="ijepa", conditioner=conditioner)
