"""Batches whose content is a pure function of the step.

Order: source -> seed -> shuffle -> repeat -> random transform -> [step * B :] -> [host :: hosts] ->
batch -> iterate -> prefetch in workers. Of a mixture, :mod:`jepa_vl.data.mixture` says which image
stands where instead of shuffle and repeat. Nothing here has state to save: a run that is killed at
any moment continues at its last checkpoint's step with the same batches, on any number of hosts and
workers.
"""

import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jepa_vl.config import Config, ConfigError, reads_text
from jepa_vl.data import controls, faults, masking, tokenizers, transforms, turbo, worker
from jepa_vl.data.mixture import Mixture
from jepa_vl.data.sources import Record, Source
from jepa_vl.methods import tower_files
from jepa_vl.pretrained import fingerprint
from jepa_vl.shapes import Array

Batch = dict[str, Array]
REFERENCE_SEED = 0x6A657061  # keeps the masks' stream apart from others made of (seed, step)
NO_CAPTION = "has no caption with a word (data.require_captions=False takes it without)"


class TrainElement:
    """One image of a batch: crop and captions, drawn from the generator of its position."""

    def __init__(self, config: Config, source: Source):
        self.source, self.data, self.size = source, config.data, config.encoder.image_size
        self.captions = controls.build(config, source) if reads_text(config) else None
        self.dropout = config.text.dropout
        self.needs_captions = _needs_captions(config)
        if self.data.decoder == "turbo":
            turbo.require()

    def __call__(self, element: dict[str, int], rng: np.random.Generator) -> Batch:
        """``element`` holds ``index`` in the source and ``position`` in the infinite order.

        An image that cannot be used is replaced; ``index`` then is that of the one that is.

        Raises:
          ConfigError: none of the images that are tried in its place can be used either.
        """
        start = rng.bit_generator.state

        def make(index: int) -> Batch:
            rng.bit_generator.state = start  # one that stands in draws what it would have drawn
            return self.make(index, rng)

        out, fault = faults.first_usable(element["index"], len(self.source), make)
        out["position"] = np.int64(element["position"])
        return {**out, faults.FIELD: faults.pack(fault)}

    def make(self, index: int, rng: np.random.Generator) -> Batch:
        """The image of an index.

        Raises:
          BadSample: it cannot be read, decoded or, where captions are needed, has none.
        """
        with faults.reading():
            record = self.source[index]
        return self.complete(index, record, self.crop(record, rng), rng)

    def crop(self, record: Record, rng: np.random.Generator) -> Array:
        """The random crop of a record's image, uint8 [H, W, 3].

        Raises:
          BadSample: it cannot be decoded, or has too many pixels.
        """
        data = self.data
        return transforms.random_crop(
            record["image"],
            self.size,
            data.crop_scale,
            data.crop_ratio,
            rng,
            record["key"],
            data.decoder,
            data.max_pixels,
        )

    def complete(self, index: int, record: Record, crop: Array, rng: np.random.Generator) -> Batch:
        """A record's crop with captions, label and index.

        Raises:
          BadSample: it has no caption, where captions are needed.
        """
        out = {"image": crop}
        # Last, so that runs with and without text see the same crops.
        if self.captions is not None:
            drawn = self.captions.draw(index, record["captions"], rng)
            if self.needs_captions and not drawn["caption_mask"].any():
                raise faults.BadSample("caption", "data.path", record["key"], NO_CAPTION)
            out.update(drawn)
            if self.dropout:
                out["caption_read"] = np.bool_(rng.random() >= self.dropout)
        return {**out, "label": np.int32(record["label"]), "index": np.int64(index)}


class ProductionMasks:
    """Adds masks, each a function of the seed and the position of its image."""

    def __init__(self, config: Config):
        self.plan, self.seed = masking.plan_masks(config), config.seed

    def __call__(self, batch: Batch) -> Batch:
        """``position`` of a batch, int64 [b], is what they are drawn for."""
        return {**batch, **masking.at_positions(self.plan, self.seed, batch["position"])}


class ReferenceMasks:
    """Adds masks of the reference collator, truncated over the global batch of the step."""

    def __init__(self, config: Config, start_step: int, host: int, hosts: int):
        self.plan, self.seed = masking.plan_masks(config), config.seed
        self.batch, self.start = config.train.batch_size, start_step
        self.part = slice(host, None, hosts)

    def __call__(self, index: int, batch: Batch) -> Batch:
        """``index`` counts batches from the start step."""
        rng = np.random.default_rng([REFERENCE_SEED, self.seed, self.start + index])
        masks = masking.draw(self.plan, self.batch, rng)
        return {**batch, **{name: array[self.part] for name, array in masks.items()}}


class TrainStream:
    """Iterator over training batches; call :meth:`close`, or use ``with``, to stop its workers."""

    def __init__(
        self,
        config: Config,
        source: Source,
        start_step: int,
        host: int = 0,
        hosts: int = 1,
        log: faults.Log | None = None,
    ):
        """See :func:`make_batches`."""
        import grain  # imports jax where that is installed: not before it is needed

        batch_size, data = config.train.batch_size, config.data
        if hosts < 1 or not 0 <= host < hosts or batch_size % hosts:
            rule = f"a multiple of the number of hosts (host {host} of {hosts})"
            raise ConfigError("train.batch_size", batch_size, rule)
        worker.install()
        self.log, self._name = log or faults.Log(data.max_bad_share), source.name
        seed = config.seed % 2**32
        if isinstance(source, Mixture):
            order = grain.MapDataset.source(source.order(config.seed)).seed(seed)
        else:
            order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        elements = order.map_with_index(_number).random_map(TrainElement(config, source))
        batches = elements[start_step * batch_size :][host::hosts]
        batches = batches.batch(batch_size // hosts, drop_remainder=True)
        if config.masks.mode == "reference":
            batches = batches.map_with_index(ReferenceMasks(config, start_step, host, hosts))
        else:
            batches = batches.map(ProductionMasks(config))
        in_process = data.workers == 0
        options = grain.ReadOptions(
            num_threads=data.threads if in_process else 0,
            prefetch_buffer_size=data.prefetch if in_process else 0,
        )
        stream = batches.to_iter_dataset(options)
        if not in_process:
            workers = grain.MultiprocessingOptions(data.workers, data.prefetch)
            stream = stream.mp_prefetch(workers, worker_init_fn=worker.end_with_parent)
        self._open = [stream.__iter__()]
        # Also at exit: Grain's own clean-up is too late then and prints tracebacks.
        self._close = weakref.finalize(self, _close, self._open)

    def __iter__(self) -> "TrainStream":
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          ConfigError: too many images were bad, as :class:`faults.Log` judges.
        """
        if not self._open:
            raise StopIteration
        # Copies: workers hand over shared memory, whose lifetime should not leave this class.
        batch = {name: np.array(array) for name, array in next(self._open[0]).items()}
        found = faults.unpack(batch.pop(faults.FIELD))
        self.log.note(len(batch["index"]), found, self._name)
        return batch

    def __enter__(self) -> "TrainStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops workers and threads."""
        self._close()


def make_batches(
    config: Config,
    source: Source,
    start_step: int,
    host: int = 0,
    hosts: int = 1,
    log: faults.Log | None = None,
) -> TrainStream:
    """Training batches from a step on, forever.

    An image that cannot be used is replaced by another one, the same on every host and with any
    number of workers, and so that no other row changes; see :mod:`jepa_vl.data.faults`.

    Args:
      config: reads seed, data, text, masks, the batch size and the image size.
      source: the training source.
      start_step: the first batch is that of this step; any step costs the same.
      host: which slice of each global batch; rows ``host :: hosts`` of it.
      hosts: number of slices, a divisor of the batch size.
      log: counts and lists the images that were replaced; None: a new one without a list, which
        stops at ``data.max_bad_share`` all the same.

    Returns:
      Batches with b = batch_size / hosts: ``image`` uint8 [b, H, W, 3]; ``ctx_idx`` int32 [b, K];
      ``tgt_idx`` int32 [b, M, C]; in mask mode reference also ``ctx_valid`` bool [b, K] and
      ``tgt_valid`` bool [b, M, C]; where the objective reads text ``word_ids`` int32 [b, N, S], or
      from a cache ``word_states`` [b, N, S, E], ``word_mask`` bool [b, N, S], ``caption_mask`` bool
      [b, N], with ``text.dropout`` also ``caption_read`` bool [b], False where the predictor is to
      do without; ``label`` int32 [b], -1 for none;
      ``index`` int64 [b], in the source; ``position`` int64 [b], in the infinite order.

    Raises:
      ConfigError: the batch does not divide by hosts, or the masks are infeasible.
    """
    return TrainStream(config, source, start_step, host, hosts, log)


def eval_batches(
    config: Config,
    source: Source,
    indices: Sequence[int] | Array,
    batch_size: int,
    log: faults.Log | None = None,
) -> Iterator[Batch]:
    """Batches for evaluation: no chance but in the masks, which depend on seed and index alone.

    An image that cannot be used is replaced, as in training, and ``index`` tells by which. None
    is missing for its captions.

    Args:
      config: as for :func:`make_batches`.
      source: any source.
      indices: records to read, in this order.
      batch_size: b of each batch, also of the last, which repeats its last image.
      log: lists the images that were replaced; they count for no limit.

    Yields:
      As :func:`make_batches` without ``position``, and ``valid`` bool [b], False for repeats.

    Raises:
      ConfigError: nor can any image be used that is tried in the place of one.
    """
    plan = masking.plan_masks(config)
    reader = controls.build(config, source) if reads_text(config) else None
    indices = np.asarray(indices, np.int64)

    def load(index: int) -> Batch:
        record, image = centred(config, source, index)
        masks = masking.draw(plan, 1, np.random.default_rng([config.seed, index]))
        out = {"image": image, **{name: array[0] for name, array in masks.items()}}
        if reader is not None:
            out.update(reader.first(index, record["captions"]))
        return {**out, "label": np.int32(record["label"]), "index": np.int64(index)}

    def usable(index: int) -> tuple[Batch, faults.Fault | None]:
        return faults.first_usable(index, len(source), load)

    with ThreadPoolExecutor(config.data.threads) as pool:
        for start in range(0, len(indices), batch_size):
            loaded = list(pool.map(usable, indices[start : start + batch_size].tolist()))
            if log is not None:
                log.write([fault for _, fault in loaded if fault is not None], source.name)
            rows = [row for row, _ in loaded]
            valid = np.arange(batch_size) < len(rows)
            rows += rows[-1:] * (batch_size - len(rows))
            batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            yield {**batch, "valid": valid}


def centred(config: Config, source: Source, index: int) -> tuple[Record, Array]:
    """A record and its image by the transform of evaluation: uint8 [S, S, 3].

    Raises:
      BadSample: it cannot be read or decoded.
    """
    with faults.reading():
        record = source[index]
    size, most = config.encoder.image_size, config.data.max_pixels
    return record, transforms.centre_crop(record["image"], size, record["key"], most)


def describe(config: Config, source: Source) -> dict[str, Any]:
    """What the order of batches depends on, and frozen towers: the data item of a checkpoint."""
    return {
        "seed": config.seed,
        "fingerprint": source.fingerprint,
        "global_batch": config.train.batch_size,
        "name": source.name,
        "images": len(source),
        **(tokenizers.describe(config.text) if reads_text(config) else {}),
        **{key: fingerprint(path, key) for key, path in tower_files(config).items()},
    }


def check_resume(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Compares the data item of a checkpoint with that of this run.

    Raises:
      ConfigError: they differ; names each key with both values.
    """
    keys = [k for k in {**saved, **current} if saved.get(k) != current.get(k)]
    if keys:
        lines = [f"{k}: {saved.get(k)!r} -> {current.get(k)!r}" for k in keys]
        rule = "the checkpoint was trained on other data or in another order:\n  "
        raise ConfigError("data", current.get("name"), rule + "\n  ".join(lines))


def _needs_captions(config: Config) -> bool:
    return config.data.require_captions and config.data.captions != "empty"


def _number(position: int, index: int) -> dict[str, int]:
    return {"index": int(index), "position": int(position)}


def _close(opened: list[Any]) -> None:
    while opened:
        opened.pop().close()
