"""Word embeddings computed once: a folder of records, found by the text of the caption.

``embeddings.array_record`` holds one record a distinct caption, the bytes of its [words, E] array
without padding; ``index.npz`` sends the hash of a caption to its record; ``meta.json`` says which
tower and tokenizer made them; ``tokenizer.json`` is that tokenizer.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.data import array_record
from jepa_vl.data.tokenizers import FILE as TOKENIZER
from jepa_vl.data.tokenizers import PATH
from jepa_vl.pretrained import HUB, META, PACKAGE, fingerprint, locate, read_json
from jepa_vl.schema import TextConfig
from jepa_vl.shapes import Array

RECORDS, INDEX = "embeddings.array_record", "index.npz"
DTYPES: dict[str, Any] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
}


def text_hash(text: str) -> int:
    """64 bits that stand for a caption, or another text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def write(
    folder: Path, config: TextConfig, spec: str, rows: Iterable[tuple[str, Array]]
) -> dict[str, Any]:
    """Writes a cache; ``meta.json`` comes last, so that a folder that has it is whole.

    Args:
      folder: is made; files of an earlier cache are replaced.
      config: of the pretrained tower.
      spec: JSON of the tokenizer.
      rows: distinct captions, each with its embeddings, float [words, E].

    Returns:
      The meta data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / META).unlink(missing_ok=True)
    writer = array_record.module().ArrayRecordWriter(str(folder / RECORDS), "group_size:1")
    hashes, digest, width = [], hashlib.sha256(), 0
    for text, states in rows:
        content = states.astype(DTYPES[config.cache_dtype]).tobytes()
        writer.write(content)
        digest.update(content)
        hashes.append(text_hash(text))
        width = states.shape[-1]
    writer.close()
    fixed = config.path.startswith((HUB, PACKAGE))
    path = config.path if fixed else str(locate(config.path, PATH))
    keys = np.array(hashes, np.uint64)
    order = np.argsort(keys)
    np.savez(folder / INDEX, hashes=keys[order], records=order.astype(np.int64))
    (folder / TOKENIZER).write_text(spec, encoding="utf-8")
    meta = {
        "tower": {"kind": config.kind, "path": path},
        "fingerprint": fingerprint(config.path, PATH),
        "tokenizer": hashlib.sha256(spec.encode()).hexdigest()[:16],
        "records": digest.hexdigest()[:16],
        "bytes": (folder / RECORDS).stat().st_size,
        "captions": len(hashes),
        "words": config.words,
        "width": width,
        "dtype": config.cache_dtype,
    }
    temporary = folder / f".{META}.{os.getpid()}"
    temporary.write_text(json.dumps(meta, indent=2))
    os.replace(temporary, folder / META)
    return meta


def read_meta(config: TextConfig) -> dict[str, Any]:
    """The meta data of the cache at ``text.path``, checked against what lies there.

    Raises:
      ConfigError: no cache, parts of another one, other words a caption, or the tower that made it
        has changed since.
    """
    folder = locate(config.path, PATH)
    meta = read_json(folder, META, PATH)
    if config.words != meta["words"]:
        rule = f"{config.path} was made with {meta['words']} words a caption"
        raise ConfigError("text.words", config.words, rule)
    spec = (folder / TOKENIZER).read_bytes() if (folder / TOKENIZER).is_file() else b""
    records = folder / RECORDS
    same = {
        TOKENIZER: hashlib.sha256(spec).hexdigest()[:16] == meta["tokenizer"],
        RECORDS: records.is_file() and records.stat().st_size == meta["bytes"],
    }
    for name, agrees in same.items():
        if not agrees:
            raise ConfigError(PATH, config.path, f"{name} is not the one that {META} tells of")
    _check_tower(config, meta)
    return meta


def _check_tower(config: TextConfig, meta: dict[str, Any]) -> None:
    """Training needs the embeddings alone; a tower that is still there must be the same one."""
    path = meta["tower"]["path"]
    if path.startswith(HUB):
        return
    try:
        found = fingerprint(path, PATH)
    except ConfigError:
        return
    if found != meta["fingerprint"]:
        rule = f"the tower at {path} has changed since; run `jepa-vl data embed` again"
        raise ConfigError(PATH, config.path, rule)


class EmbeddingCache:
    """Random access by caption. Picklable: each process opens the records for itself.

    Attributes:
      width: E.
      dtype: of the embeddings.
    """

    def __init__(self, config: TextConfig):
        """Reads index and meta data.

        Raises:
          ConfigError: see :func:`read_meta`.
        """
        meta, self.path = read_meta(config), config.path
        self.folder = locate(config.path, PATH)
        self.width, self.dtype = meta["width"], np.dtype(DTYPES[meta["dtype"]])
        with np.load(self.folder / INDEX) as index:
            self._hashes, self._records = index["hashes"], index["records"]

    def states(self, text: str) -> Array:
        """Embeddings of a caption: [words, E] of ``dtype``.

        Raises:
          ConfigError: the cache was made from other captions.
        """
        wanted = np.uint64(text_hash(text))
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self._hashes) or self._hashes[place] != wanted:
            rule = (
                f"has no embedding of the caption {text!r}; run `jepa-vl data embed` on this data"
            )
            raise ConfigError(PATH, self.path, rule)
        return self._read([int(self._records[place])])[0]

    def random_states(self, count: int, rng: np.random.Generator) -> Array:
        """Embeddings of random tokens, each of a caption of its own: [count, E] of ``dtype``."""
        out = np.zeros((count, self.width), self.dtype)
        if count:
            found = self._read(rng.choice(self._records, count).tolist())
            for row, states in zip(out, found, strict=True):
                row[:] = states[rng.integers(len(states))]
        return out

    def _read(self, records: list[int]) -> list[Array]:
        contents = _reader(str(self.folder / RECORDS)).read(records)
        return [np.frombuffer(content, self.dtype).reshape(-1, self.width) for content in contents]


@functools.lru_cache(maxsize=4)
def _reader(path: str) -> Any:
    return array_record.module().ArrayRecordReader(path, "readahead_buffer_size:0")
