"""The index of a folder of tar files: made once, shard by shard, and opened without reading it.

In the cache folder ``tar/parts`` holds what each shard holds, so that a scan that was killed goes
on and a folder that has grown costs its new shards alone; ``tar/HASH`` holds the index of a whole
folder as arrays that are mapped into memory, shared by all processes that read them.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from jepa_vl.config import ConfigError
from jepa_vl.data import storage, tar_scan, worker
from jepa_vl.data.faults import Fault
from jepa_vl.data.files import cache_folder, write_whole
from jepa_vl.data.records import class_names
from jepa_vl.data.tar_scan import Part
from jepa_vl.shapes import Array

VERSION = 2  # of the files in the cache
SHARDS_A_PROCESS = 16  # fewer are not worth starting one
_ARRAYS = ("keys", "ends", "hashes", "spans", "labels", "shards")
_META = "meta.json"


class Keys(Sequence[str]):
    """The keys of all samples, kept as one run of bytes."""

    def __init__(self, joined: Array, ends: Array):
        """``joined``: uint8; ``ends``: int64 [n], where each key ends in it, a newline between."""
        self._joined, self._ends = joined, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = int(self._ends[index - 1]) + 1 if index else 0
        raw = self._joined[start : int(self._ends[index])].tobytes()
        return raw.decode("utf-8", "surrogateescape")

    def tolist(self) -> list[str]:
        """All of them."""
        return self[:]


class TarIndex:
    """Where the samples of a folder of shards lie.

    Attributes:
      folder: where it is stored; None where the cache cannot be written.
      root: folder or URL of the shards.
      shards: their names.
      keys: of the samples.
      hashes: uint64 [n], blake2b of the keys.
      labels: int32 [n], -1 for none.
      shard: int32 [n], which one each lies in.
      spans: int64 [n, 4, 2], as of ``tar_scan.Part``.
      classes: names of the labels, sorted.
      json_keys: seen.
      captioned: number of samples with a caption.
      faults: what was left out.
      fingerprint: 16 hex digits of names, sizes and keys.
    """

    def __init__(self, arrays: dict[str, Array], meta: dict[str, Any], folder: Path | None):
        """As :func:`_merge` or :func:`_load` found it."""
        self._content, self.folder, self.root = (arrays, meta), folder, meta["root"]
        self.shards: list[str] = meta["shards"]
        self.keys, self.hashes = Keys(arrays["keys"], arrays["ends"]), arrays["hashes"]
        self.labels, self.spans, self.shard = arrays["labels"], arrays["spans"], arrays["shards"]
        self.classes, self.json_keys = tuple(meta["classes"]), tuple(meta["json_keys"])
        self.captioned, self.fingerprint = int(meta["captioned"]), meta["fingerprint"]
        self.faults = tuple(Fault(-1, *fault) for fault in meta["faults"])

    def __reduce__(self) -> tuple:
        # A data worker maps the same files: it never looks at the shards, which may have changed.
        if self.folder is not None:
            return _load, (self.folder,)
        return TarIndex, (*self._content, None)


def open_index(
    root: str, caption_keys: Sequence[str], label_key: str, key: str = "data.path"
) -> TarIndex:
    """Loads the index of a folder of shards, or makes it.

    Args:
      root: folder of the shards, or one tar file; a path or a URL.
      caption_keys: JSON keys of the captions; the first that is present counts.
      label_key: JSON key of the class name.
      key: configuration key that gave the path, for errors.

    Raises:
      ConfigError: no shards, or none of them holds an image that can be used.
    """
    folder, files = _find_shards(root, key)
    parts = cache_folder() / "tar" / "parts"
    names = [
        _digest((VERSION, folder, f.name, f.size, f.stamp, tuple(caption_keys), label_key))
        for f in files
    ]
    whole = parts.parent / _digest(names)
    try:
        return _load(whole)
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        pass  # absent or damaged: made anew
    jobs = [
        (parts / name, storage.join(folder, file.name), file.size, key, caption_keys, label_key)
        for name, file in zip(names, files, strict=True)
    ]
    found = list(_parts(jobs))
    arrays, meta = _merge(found, folder, files, (tuple(caption_keys), label_key))
    if not len(arrays["ends"]):
        raise ConfigError(key, root, _nothing(len(files), meta["faults"]))
    final = all(part.final for part in found)
    return TarIndex(arrays, meta, _store(whole, arrays, meta) if final else None)


def _nothing(shards: int, faults: list[list[str]]) -> str:
    rule = f"its {shards} tar file(s) hold no image ({', '.join(tar_scan.IMAGES)}) that can be used"
    return rule + (f"; {len(faults)} fault(s), first: {faults[0][2]}" if faults else "")


def _find_shards(root: str, key: str) -> tuple[str, list[storage.File]]:
    """The folder and its tar files, by one listing."""
    try:
        files, folders = storage.list_folder(root, ".tar")
    except OSError as error:
        rule = f"is no folder that can be read: {error.strerror or error}"
        raise ConfigError(key, root, rule) from error
    except ConfigError as error:
        raise ConfigError(key, root, error.rule) from error
    if not files:
        hint = f"; give one of its folders: {', '.join(folders[:4])}" if folders else ""
        raise ConfigError(key, root, f"holds no .tar file{hint}")
    folder, name = storage.split(root)
    alone = [file.name for file in files] == [name] and not storage.is_folder(root)
    folder = folder if alone else root
    return (folder if storage.is_url(folder) else os.path.realpath(folder)), files


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _parts(jobs: list[tuple]) -> Iterator[Part]:
    """The part of each shard: from the cache, or scanned, several at a time."""
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(_cached, [job[0] for job in jobs]))
    todo = [job for job, part in zip(jobs, found, strict=True) if part is None]
    with _executor(todo) as pool:
        try:
            scanned = iter(pool.map(_scan, todo))
            for part in found:
                yield part if part is not None else next(scanned)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # an interrupt waits for the shards at hand alone
            raise


def _executor(todo: list[tuple]) -> Executor:
    """Processes where many shards are to be scanned: most of the work is Python's; else threads.

    What lies in the memory of this process can be read by its threads alone.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    count = min(cores, len(todo) // SHARDS_A_PROCESS)
    if count < 2 or todo[0][1].startswith("memory://"):
        return ThreadPoolExecutor(8)
    return ProcessPoolExecutor(count, worker.SpawnContext(), worker.end_with_parent, (0, 0))


def _scan(job: tuple) -> Part:
    """Scans a shard and stores what it holds."""
    path, *arguments = job
    part = tar_scan.scan(*arguments)
    if part.final:
        content = safetensors.numpy.save(tar_scan.to_bytes(part))
        with contextlib.suppress(OSError):  # without it the shard is scanned again, nothing else
            write_whole(path, lambda file: file.write(content))
    return part


def _cached(path: Path) -> Part | None:
    try:
        return tar_scan.from_bytes(safetensors.numpy.load(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _merge(
    parts: list[Part], folder: str, files: list[storage.File], settings: tuple
) -> tuple[dict[str, Array], dict[str, Any]]:
    """One index of all shards, in their order."""
    filled = [(number, part) for number, part in enumerate(parts) if len(part.arrays["ends"])]
    classes = class_names([name for _, part in filled for name in part.names])
    numbers = {name: i for i, name in enumerate(classes)}
    columns: dict[str, list[Array]] = {name: [np.zeros(0, np.uint8)] for name in _ARRAYS}
    columns["spans"] = [np.zeros((0, len(tar_scan.PARTS), 2), np.int64)]
    offset = 0
    newline = np.frombuffer(b"\n", np.uint8)
    for place, (number, part) in enumerate(filled):
        arrays = part.arrays
        table = np.array([*(numbers[name] for name in part.names), -1], np.int32)
        columns["keys"] += [newline, arrays["keys"]] if place else [arrays["keys"]]
        columns["ends"].append(arrays["ends"] + offset)
        columns["hashes"].append(arrays["hashes"])
        columns["spans"].append(arrays["spans"])
        columns["labels"].append(table[arrays["labels"]])
        columns["shards"].append(np.full(len(arrays["ends"]), number, np.int32))
        offset += len(arrays["keys"]) + 1
    types = {"ends": np.int64, "hashes": np.uint64, "labels": np.int32, "shards": np.int32}
    merged = {
        name: np.concatenate(column).astype(types.get(name, column[0].dtype), copy=False)
        for name, column in columns.items()
    }
    # Names and sizes, not times: a copy on another machine is the same data.
    text = [(file.name, file.size) for file in files], *settings
    digest = hashlib.sha256(repr(text).encode("utf-8", "surrogateescape"))
    digest.update(merged["keys"].tobytes())
    meta = {
        "root": folder,
        "shards": [file.name for file in files],
        "classes": classes,
        "json_keys": list(dict.fromkeys(key for part in parts for key in part.json_keys)),
        "captioned": sum(part.captioned for part in parts),
        "faults": [[f.key, f.cause, f.message] for part in parts for f in part.faults],
        "fingerprint": digest.hexdigest()[:16],
        "images": len(merged["ends"]),
    }
    return merged, meta


def _load(folder: Path) -> TarIndex:
    meta = json.loads((folder / _META).read_text())
    arrays: dict[str, Array] = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="r") for name in _ARRAYS
    }
    if len(arrays["ends"]) != meta["images"]:
        raise ValueError(f"{folder} is damaged")
    return TarIndex(arrays, meta, folder)


def _store(folder: Path, arrays: dict[str, Array], meta: dict[str, Any]) -> Path | None:
    """Writes a folder of its own, then renames it: readers see all or nothing."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".tmp"))
    except OSError:
        return None  # a cache that cannot be written costs a scan in each run, nothing else
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        (temporary / _META).write_text(json.dumps(meta))
        try:
            temporary.rename(folder)
        except OSError:  # there is one: damaged, or another process was faster
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        return folder
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        return None
