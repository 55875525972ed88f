"""The whole objective with its text side, on images and captions: what some evaluators read."""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jepa_vl.config import Config, ConfigError, reads_text
from jepa_vl.data import captions, faults, pipeline
from jepa_vl.data.sources import Record, Source
from jepa_vl.evaluators import progress
from jepa_vl.evaluators.features import data_hash, from_all_hosts
from jepa_vl.shapes import Array, PyTree
from jepa_vl.sharding import batch_sharding, replicated, round_up


class Shown(NamedTuple):
    """A batch of images that could be read.

    Attributes:
      images: uint8 [B, H, W, 3] by the transform of evaluation; the last one is repeated at the end
        of the data.
      records: of the images that are no repeats: their ``captions``, ``label``, ``key``.
      indices: of these in their source.
    """

    images: Array
    records: list[Record]
    indices: list[int]


class Joint:
    """An objective, its frozen weights, and the images and captions of both parts.

    Evaluators that read it are called with ``(params, target)`` of a train state.

    Attributes:
      size: B, images or captions a forward pass: ``eval.batch_size``, or the next multiple of the
        devices that share a batch.
    """

    def __init__(
        self,
        config: Config,
        objective: Any,
        frozen: PyTree,
        mesh: Mesh,
        train: Source,
        held_out: Source,
        log: faults.Log | None = None,
    ):
        """Nothing is read yet.

        Args:
          config: resolved; of the run, but for ``eval``, ``data`` and ``seed``.
          objective: built from it.
          frozen: ``objective.load_frozen()``, placed.
          mesh: devices that share each batch.
          train: the training source; held_out: the one that is measured on.
          log: lists images that cannot be used; they are left out.
        """
        self.config, self.objective, self.frozen, self.mesh = config, objective, frozen, mesh
        self.sources: dict[str, Source] = {"train": train, "held_out": held_out}
        self.log = log
        self.size = round_up(config.eval.batch_size, mesh)
        self._used: dict[str, list[int]] = {}

    def need_text(self, task: str) -> None:
        """Refuses an objective without a text side.

        Raises:
          ConfigError: it reads no captions.
        """
        if not reads_text(self.config):
            rule = f"{task} reads captions, which this objective does not"
            raise ConfigError("objective", self.config.objective, rule)

    @functools.cached_property
    def captions(self) -> captions.CaptionReader:
        """The reader of captions of the configuration."""
        return captions.build(self.config.text)

    def draw(self, part: str) -> Array:
        """Indices of ``eval.train_images`` or ``eval.val_images`` images, or of all there are.

        Drawn without replacement by ``seed``, sorted: int64 [n].
        """
        evaluation = self.config.eval
        counts = {"train": evaluation.train_images, "held_out": evaluation.val_images}
        generator = np.random.Generator(np.random.Philox(self.config.seed))
        order = generator.permutation(len(self.sources[part]))
        return np.sort(order[: counts[part]])

    def read(self, part: str, indices: Sequence[int] | Array) -> Iterator[Shown]:
        """Images and what is said of them, B at a time; those that cannot be used are left out.

        Raises:
          ConfigError: none can be used.
        """
        config, source = self.config, self.sources[part]
        wanted, used = np.asarray(indices, np.int64).tolist(), []

        def load(index: int) -> tuple[Record, Array] | faults.Fault:
            try:
                record, image = pipeline.centred(config, source, index)
            except faults.BadSample as error:
                return faults.of(error, index)
            return {name: value for name, value in record.items() if name != "image"}, image

        bad: list[faults.Fault] = []
        with ThreadPoolExecutor(config.data.threads) as pool:
            for start in range(0, len(wanted), self.size):
                progress.beat()
                asked = wanted[start : start + self.size]
                found = list(zip(asked, pool.map(load, asked), strict=True))
                bad += [row for _, row in found if isinstance(row, faults.Fault)]
                rows = [(i, *row) for i, row in found if not isinstance(row, faults.Fault)]
                if rows:
                    places, records, images = zip(*rows, strict=True)
                    used += places
                    yield Shown(self.fill(np.stack(images)), list(records), list(places))
        if self.log is not None:
            self.log.write(bad, source.name)
        if not used:
            rule = bad[-1].message if bad else "has no image"
            raise ConfigError("data.path", source.name, f"none of its images can be used: {rule}")

    def fill(self, rows: Array) -> Array:
        """B rows: those of [b, ...], b <= B, the last one repeated."""
        return np.concatenate([rows, np.repeat(rows[-1:], self.size - len(rows), axis=0)])

    def used(self, part: str, indices: Sequence[int]) -> None:
        """Notes which images a number is of, for :meth:`describe`."""
        self._used[part] = sorted(indices)

    def describe(self) -> dict[str, Any]:
        """Which images were noted: for each part its name, fingerprint and number of images."""
        out: dict[str, Any] = {}
        for part, indices in self._used.items():
            source = self.sources[part]
            named = {"name": source.name, "fingerprint": source.fingerprint}
            out[part] = {**named, "images": len(indices)}
        return out

    def data_hash(self) -> str:
        """16 hex digits of the images that were noted."""
        return data_hash((self.sources[part], indices) for part, indices in self._used.items())

    def words(self, texts: Sequence[str]) -> dict[str, Array]:
        """Captions, each alone, at most B of them: arrays [B, 1, ...] as of ``data.pipeline``.

        Rows beyond them repeat the last one.
        """
        rows = [self.captions.encode_all([text]) for text in texts]
        return {name: self.fill(np.stack([row[name][:1] for row in rows])) for name in rows[0]}

    def compiled(self, function: Callable[..., PyTree], shared: int) -> Callable[..., PyTree]:
        """Compiles a function whose first ``shared`` arguments are no batch.

        Args:
          function: of pytrees; those after the first ``shared`` have B rows, spread over the mesh.
          shared: number of arguments such as parameters.

        Returns:
          A function that takes whole host arrays as rows and gives whole ones, on the host.
        """
        place = batch_sharding(self.mesh)
        run = jax.jit(function, out_shardings=replicated(self.mesh))

        def call(*args: PyTree) -> PyTree:
            rows = jax.tree.map(lambda x: from_all_hosts(np.asarray(x), place), args[shared:])
            with jax.set_mesh(self.mesh):
                found = jax.device_get(run(*args[:shared], *rows))
            progress.beat()
            return found

        return call
