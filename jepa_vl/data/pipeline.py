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
from jepa_vl.data import controls, masking, tokenizers, transforms, worker
from jepa_vl.data.mixture import Mixture
from jepa_vl.data.sources import Record, Source
from jepa_vl.methods import tower_files
from jepa_vl.pretrained import fingerprint
from jepa_vl.shapes import Array

Batch = dict[str, Array]
REFERENCE_SEED = 0x6A657061  # keeps the masks' stream apart from others made of (seed, step)


class TrainElement:
    """One image of a batch: crop, masks and captions, drawn from the generator of its position."""

    def __init__(self, config: Config, source: Source):
        self.source, self.data, self.size = source, config.data, config.encoder.image_size
        self.captions = controls.build(config, source) if reads_text(config) else None
        self.plan = masking.plan_masks(config)

    def __call__(self, element: dict[str, int], rng: np.random.Generator) -> Batch:
        """``element`` holds ``index`` in the source and ``position`` in the infinite order."""
        record = self.source[element["index"]]
        return self.complete(record, element, self.crop(record, rng), rng)

    def crop(self, record: Record, rng: np.random.Generator) -> Array:
        """The random crop of a record's image, uint8 [H, W, 3]."""
        data, key = self.data, record["key"]
        return transforms.random_crop(
            record["image"], self.size, data.crop_scale, data.crop_ratio, rng, key
        )

    def complete(
        self, record: Record, element: dict[str, int], crop: Array, rng: np.random.Generator
    ) -> Batch:
        """A record's crop with masks, captions, label and numbers."""
        out = {"image": crop}
        if self.plan.mode == "production":
            out.update(masking.production_masks(self.plan, rng))
        # Last, so that runs with and without text see the same crops and masks.
        if self.captions is not None:
            out.update(self.captions.draw(element["index"], record["captions"], rng))
        out["label"] = np.int32(record["label"])
        out["index"] = np.int64(element["index"])
        out["position"] = np.int64(element["position"])
        return out


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
        self, config: Config, source: Source, start_step: int, host: int = 0, hosts: int = 1
    ):
        """See :func:`make_batches`."""
        import grain  # imports jax where that is installed: not before it is needed

        batch_size, data = config.train.batch_size, config.data
        if hosts < 1 or not 0 <= host < hosts or batch_size % hosts:
            rule = f"a multiple of the number of hosts (host {host} of {hosts})"
            raise ConfigError("train.batch_size", batch_size, rule)
        worker.install()
        if isinstance(source, Mixture):
            order = grain.MapDataset.source(source.order(config.seed)).seed(config.seed)
        else:
            order = grain.MapDataset.range(len(source)).seed(config.seed).shuffle().repeat()
        elements = order.map_with_index(_number).random_map(TrainElement(config, source))
        batches = elements[start_step * batch_size :][host::hosts]
        batches = batches.batch(batch_size // hosts, drop_remainder=True)
        if config.masks.mode == "reference":
            batches = batches.map_with_index(ReferenceMasks(config, start_step, host, hosts))
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
          ConfigError: a record cannot be read or decoded.
        """
        if not self._open:
            raise StopIteration
        # Copies: workers hand over shared memory, whose lifetime should not leave this class.
        return {name: np.array(array) for name, array in next(self._open[0]).items()}

    def __enter__(self) -> "TrainStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops workers and threads."""
        self._close()


def make_batches(
    config: Config, source: Source, start_step: int, host: int = 0, hosts: int = 1
) -> TrainStream:
    """Training batches from a step on, forever.

    Args:
      config: reads seed, data, text, masks, the batch size and the image size.
      source: the training source.
      start_step: the first batch is that of this step; any step costs the same.
      host: which slice of each global batch; rows ``host :: hosts`` of it.
      hosts: number of slices, a divisor of the batch size.

    Returns:
      Batches with b = batch_size / hosts: ``image`` uint8 [b, H, W, 3]; ``ctx_idx`` int32 [b, K];
      ``tgt_idx`` int32 [b, M, C]; in mask mode reference also ``ctx_valid`` bool [b, K] and
      ``tgt_valid`` bool [b, M, C]; where the objective reads text ``word_ids`` int32 [b, N, S], or
      from a cache ``word_states`` [b, N, S, E], ``word_mask`` bool [b, N, S], ``caption_mask`` bool
      [b, N]; ``label`` int32 [b], -1 for none;
      ``index`` int64 [b], in the source; ``position`` int64 [b], in the infinite order.

    Raises:
      ConfigError: the batch does not divide by hosts, or the masks are infeasible.
    """
    return TrainStream(config, source, start_step, host, hosts)


def eval_batches(
    config: Config, source: Source, indices: Sequence[int] | Array, batch_size: int
) -> Iterator[Batch]:
    """Batches for evaluation: no chance but in the masks, which depend on seed and index alone.

    Args:
      config: as for :func:`make_batches`.
      source: any source.
      indices: records to read, in this order.
      batch_size: b of each batch, also of the last, which repeats its last image.

    Yields:
      As :func:`make_batches` without ``position``, and ``valid`` bool [b], False for repeats.
    """
    plan = masking.plan_masks(config)
    reader = controls.build(config, source) if reads_text(config) else None
    indices = np.asarray(indices, np.int64)

    def load(index: int) -> Batch:
        record = source[index]
        image = transforms.centre_crop(record["image"], config.encoder.image_size, record["key"])
        masks = masking.draw(plan, 1, np.random.default_rng([config.seed, index]))
        out = {"image": image, **{name: array[0] for name, array in masks.items()}}
        if reader is not None:
            out.update(reader.first(index, record["captions"]))
        return {**out, "label": np.int32(record["label"]), "index": np.int64(index)}

    with ThreadPoolExecutor(config.data.threads) as pool:
        for start in range(0, len(indices), batch_size):
            rows = list(pool.map(load, indices[start : start + batch_size].tolist()))
            valid = np.arange(batch_size) < len(rows)
            rows += rows[-1:] * (batch_size - len(rows))
            batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            yield {**batch, "valid": valid}


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


def _number(position: int, index: int) -> dict[str, int]:
    return {"index": int(index), "position": int(position)}


def _close(opened: list[Any]) -> None:
    while opened:
        opened.pop().close()
