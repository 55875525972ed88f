"""Pooled features of data sets, from any encoder."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jepa_vl.config import Config, ConfigError
from jepa_vl.data import faults, pipeline
from jepa_vl.data.sources import Record, Source, labelled_indices
from jepa_vl.evaluators import progress
from jepa_vl.evaluators.base import Extract, Features
from jepa_vl.models.frozen_vit import FrozenViT
from jepa_vl.models.vit import ViT, last_layers
from jepa_vl.shapes import Array, PyTree
from jepa_vl.sharding import batch_sharding, replicated

# (encoder parameters, images [B, H, W, 3]) -> [B, D] float32
Encode = Callable[[PyTree, Array], Array]
Q = 10  # views of an image
Look = Callable[[Config, Source, int], tuple[Record, Array]]  # how an image is shown
# images, uint8 [b, H, W, 3], and the labels of those that are no padding, int [<= b]
Batch = tuple[Array, Array]


def from_all_hosts(array: Array, place: NamedSharding) -> Array:
    """An array that every host has whole, spread over the devices of all."""
    return jax.make_array_from_callback(array.shape, place, lambda part: array[part])


def make_encode(encoder: Any, mesh: Mesh, layers: int = 1) -> Encode:
    """Compiles average pooling over all patches of an objective's ``encoder``.

    Callers inside and outside the mesh's context share one compilation: it is entered here.

    Args:
      encoder: of the parameters to come.
      mesh: devices.
      layers: how many of the last blocks; their features, [B, D] each, lie side by side.
    """

    def pool(params: PyTree, images: Array) -> Array:
        return jnp.mean(last(encoder, params, images, layers), axis=1)

    return over(mesh, pool)


def last(encoder: Any, params: PyTree, images: Array, layers: int) -> Array:
    """Features of all patches of the last blocks side by side: [B, T, layers * D]."""
    if layers == 1:
        return encoder.apply({"params": params}, images)
    return last_layers(encoder, params, images, layers)


def readable(encoder: Any) -> int:
    """Blocks whose features can be read: all of a ViT, the last one of other encoders."""
    return encoder.depth if isinstance(encoder, ViT | FrozenViT) else 1


def over(mesh: Mesh, read: Callable[[PyTree, Array], Array]) -> Encode:
    """Compiles a reading of images, spread over the mesh; every device gets the whole result."""
    place = batch_sharding(mesh)
    compiled = jax.jit(read, in_shardings=(None, place), out_shardings=replicated(mesh))

    def encode(params: PyTree, images: Array) -> Array:
        progress.beat()  # callers have read what they asked for before
        with jax.set_mesh(mesh):
            return compiled(params, from_all_hosts(images, place))

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


class Reader:
    """The labelled images of both parts; those that cannot be read or decoded are left out.

    They pass through, and only their features stay in memory, unless :meth:`keep_images` is called.
    """

    def __init__(
        self, config: Config, train: Source, held_out: Source, log: faults.Log | None = None
    ):
        """Draws the images: ``eval.train_images`` and ``eval.val_images``, or all there are.

        ``log`` lists those that are left out; they count for no limit.

        Raises:
          ConfigError: one of the parts has no labelled image.
        """
        self.config, self.parts = config, (train, held_out)
        counts = (config.eval.train_images, config.eval.val_images)
        self.indices = [
            labelled_indices(source, count, config.seed)
            for source, count in zip(self.parts, counts, strict=True)
        ]
        for source, indices in zip(self.parts, self.indices, strict=True):
            if not len(indices):
                rule = f"no image of {source.name} has a label"
                raise ConfigError("data.label_key", config.data.label_key, rule)
        self._log, self._bad = log, (set[int](), set[int]())
        self._kept: Sequence[Iterable[Batch]] = ()

    def tested(self) -> int:
        """Held-out images that numbers are of, as far as they have been read."""
        return len(self.indices[1]) - len(self._bad[1])

    def keep_images(self) -> None:
        """Reads all images now and holds them, for those who read features again and again.

        Raises:
          ConfigError: no image of a part can be read.
        """
        self._kept = [list(batches) for batches in self._batches()]

    def batches(self, part: int) -> Iterable[Batch]:
        """The images of one part, 0 or 1, by their centres; the last batch repeats its last.

        Raises:
          ConfigError: none of them can be read.
        """
        return self._batches()[part]

    def _batches(self) -> Sequence[Iterable[Batch]]:
        return self._kept or [self._read_part(part) for part in range(len(self.parts))]

    def _read_part(self, part: int, look: Look = pipeline.centred) -> Iterator[Batch]:
        """Images as ``look`` makes them, uint8 [b, H, W, 3], and labels, int [<= b].

        The last batch repeats its last image. Neither masks nor captions are needed here.
        """
        size, source, bad = self.config.eval.batch_size, self.parts[part], self._bad[part]
        indices = [index for index in self.indices[part].tolist() if index not in bad]

        def load(index: int) -> tuple[Array, int] | faults.Fault:
            try:
                record, image = look(self.config, source, index)
            except faults.BadSample as error:
                return faults.of(error, index)
            return image, record["label"]

        with ThreadPoolExecutor(self.config.data.threads) as pool:
            for start in range(0, len(indices), size):
                loaded = list(pool.map(load, indices[start : start + size]))
                rows = [row for row in loaded if not isinstance(row, faults.Fault)]
                self._leave_out(part, [row for row in loaded if isinstance(row, faults.Fault)])
                if rows:
                    images = [image for image, _ in rows] + [rows[-1][0]] * (size - len(rows))
                    yield np.stack(images), np.array([label for _, label in rows], np.int64)

    def _leave_out(self, part: int, found: list[faults.Fault]) -> None:
        bad, source = self._bad[part], self.parts[part]
        bad.update(fault.index for fault in found)
        if self._log is not None:
            self._log.write(found, source.name)
        if len(bad) == len(self.indices[part]):
            rule = f"{found[-1].message}; nor can any other of {len(bad)} labelled images be used"
            raise ConfigError("data.path", found[-1].key, rule)

    def read(self, embed: Callable[[Array], Array]) -> Features:
        """Features of all images.

        Args:
          embed: uint8 [b, H, W, 3] -> float [b, X], always of ``eval.batch_size`` images.

        Raises:
          ConfigError: no image of a part can be read.
        """
        train, held_out = (_embedded(batches, embed) for batches in self._batches())
        return Features(*train, *held_out)

    def left_out(self) -> list[list[int]]:
        """Indices of both parts that could not be read, as far as they have been read."""
        return [sorted(bad) for bad in self._bad]

    def leave_out(self, indices: Sequence[Sequence[int]]) -> None:
        """Of both parts: not to be read, as is known already."""
        for bad, more in zip(self._bad, indices, strict=True):
            bad.update(more)

    def read_part(
        self, part: int, embed: Callable[[Array], Array], look: Look
    ) -> tuple[Array, Array]:
        """Features and labels of one part, float [n, X] and int [n], images as ``look`` has them.

        Args:
          part: 0, the training part, or 1, the held-out one.
          embed: as of :meth:`read`.
          look: (configuration, source, index) -> record and uint8 [H, W, 3].

        Raises:
          ConfigError: no image of the part can be read.
        """
        return _embedded(self._read_part(part, look), embed)

    def describe(self) -> dict[str, Any]:
        """Which images these are: for each part its name, fingerprint and number of images.

        After reading, the number is that of the images that could be read. Where a class is in one
        part alone, ``absent`` says so.
        """
        names = ("train", "held_out")
        parts = zip(names, self.parts, self.indices, self._bad, strict=True)
        told: dict[str, Any] = {
            name: {"name": x.name, "fingerprint": x.fingerprint, "images": len(indices) - len(bad)}
            for name, x, indices, bad in parts
        }
        absent = self._absent()
        return {**told, "absent": absent} if absent else told

    def _absent(self) -> str:
        """Classes of one part alone, in words; empty: none, or the sources do not tell."""
        labels = [getattr(source, "labels", None) for source in self.parts]
        learnt, tested = (
            set() if known is None else set(np.asarray(known)[indices].tolist())
            for known, indices in zip(labels, self.indices, strict=True)
        )
        if not learnt or not tested:
            return ""
        texts = []
        if untested := len(learnt - tested):
            texts.append(f"{untested} of {len(learnt)} classes have no held-out image")
        if unlearnt := len(tested - learnt):
            texts.append(f"{unlearnt} classes have held-out images alone, which count as wrong")
        return "; ".join(texts)

    def data_hash(self) -> str:
        """16 hex digits of the images of both parts, in their order.

        After reading: of those that could be read.
        """
        used = [
            [index for index in indices.tolist() if index not in bad]
            for indices, bad in zip(self.indices, self._bad, strict=True)
        ]
        return data_hash(zip(self.parts, used, strict=True))


def _embedded(batches: Iterable[Batch], embed: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Features and labels of a part's images, without the repeats at its end."""
    rows = [(np.asarray(embed(x))[: len(labels)], labels) for x, labels in batches]
    found, labels = (np.concatenate(column) for column in zip(*rows, strict=True))
    return found, labels


def data_hash(parts: Iterable[tuple[Source, list[int]]]) -> str:
    """16 hex digits of the images of sources at the indices, in their order."""
    digest = hashlib.sha256()
    for source, indices in parts:
        digest.update(source.fingerprint.encode() + np.array(indices, np.int64).tobytes())
    return digest.hexdigest()[:16]


class Views:
    """Random crops of held-out images, as training makes them; labels are not needed."""

    def __init__(self, config: Config, held_out: Source):
        """Draws ``eval.val_images`` images, or all there are."""
        self.config, self.source = config, held_out
        order = np.random.Generator(np.random.Philox(config.seed)).permutation(len(held_out))
        self.indices = np.sort(order[: config.eval.val_images]).tolist()
        self.element = pipeline.TrainElement(config, held_out)

    def read(self, embed: Callable[[Array], Array]) -> Array:
        """Features of Q crops of each image that can be read: float [n, Q, X].

        Args:
          embed: uint8 [b, H, W, 3] -> float [b, X], always of ``eval.batch_size`` images.

        Raises:
          ConfigError: none can be read.
        """
        size, rows, waiting = self.config.eval.batch_size, [], []

        def flush(least: int) -> None:
            while len(waiting) >= least and waiting:
                part, waiting[:] = waiting[:size], waiting[size:]
                full = np.stack(part + part[-1:] * (size - len(part)))
                rows.append(np.asarray(embed(full))[: len(part)])

        with ThreadPoolExecutor(self.config.data.threads) as pool:
            for crops in pool.map(self._crops, self.indices):
                waiting += crops
                flush(size)
        flush(1)
        if not rows:
            rule = "none of the images can be read"
            raise ConfigError("data.path", self.source.name, rule)
        return np.concatenate(rows).reshape(-1, Q, rows[0].shape[-1])

    def _crops(self, index: int) -> list[Array]:
        try:
            with faults.reading():
                record = self.source[index]
            seeds = [[self.config.seed, index, view] for view in range(Q)]
            return [self.element.crop(record, np.random.default_rng(seed)) for seed in seeds]
        except faults.BadSample:
            return []

    def data_hash(self) -> str:
        """16 hex digits of the images, in their order."""
        return data_hash([(self.source, self.indices)])

    def describe(self) -> dict[str, Any]:
        """Which images these are."""
        source, count = self.source, len(self.indices)
        part = {"name": source.name, "fingerprint": source.fingerprint, "images": count}
        return {"held_out": part}


def remember(extract: Extract) -> Extract:
    """Several evaluators in a row read the same features: those of the last parameters are kept."""
    last: list[tuple[PyTree, Features]] = []

    def remembered(params: PyTree) -> Features:
        if not last or last[0][0] is not params:
            last[:] = [(params, extract(params))]
        return last[0][1]

    return remembered


def centred(found: Features) -> Features:
    """Moves both parts by the mean of the training part."""
    mean = found.train.mean(axis=0)
    return dataclasses.replace(found, train=found.train - mean, held_out=found.held_out - mean)


def standardise(train: Array, *others: Array) -> list[Array]:
    """Scales columns to mean 0 and standard deviation 1 over ``train``: float64 [n, X] each.

    Columns that are constant up to rounding of float32 become 0.
    """
    train = np.asarray(train, np.float64)
    mean, spread = train.mean(axis=0), train.std(axis=0)
    varies = spread > 1e-6 * np.abs(train).max(axis=0)
    scale = np.where(varies, 1.0 / np.where(varies, spread, 1.0), 0.0)
    return [(np.asarray(x, np.float64) - mean) * scale for x in (train, *others)]


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
