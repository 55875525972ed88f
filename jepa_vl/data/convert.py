"""Any source as ArrayRecord shards: whole or not there at all, and resumed after a kill.

Shards are written to ``OUT.partial``, which becomes ``OUT`` by one rename when all of them have
been read back. Each shard holds a fixed range of the records, and has its name only once it is
whole: a conversion that is started again makes the shards that are missing.
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jepa_vl.config import ConfigError
from jepa_vl.data import array_record
from jepa_vl.data.array_record import SUFFIX
from jepa_vl.data.catalogue import check_distinct
from jepa_vl.data.sources import NO_LABEL, Source

PLAN = "conversion.json"  # of what the shards beside it are a conversion
SHARD_IMAGES = 4096
VERSION = 1  # of the encoding


def convert(
    parts: dict[str, Source],
    out: Path,
    caption_keys: Sequence[str],
    label_key: str,
    shard_images: int | None = None,
    tell: Callable[[str], object] = print,
) -> None:
    """Writes each part to its folder in ``out``; images stay byte for byte what they are.

    Captions and label stand in each record under the first of ``caption_keys`` and ``label_key``,
    so that the same configuration reads them back. Arrays (shapes_world) become PNG.

    Args:
      parts: name of the folder -> source; its keys are distinct.
      out: a folder that is not there yet, or is the same conversion.
      caption_keys: as in the configuration.
      label_key: as in the configuration.
      shard_images: records a shard; None: SHARD_IMAGES.
      tell: is given a line for each shard and part.

    Raises:
      ConfigError: ``out`` holds something else or cannot be written, a record cannot be read, or
        two have the same key.
    """
    shard_images = shard_images or SHARD_IMAGES
    plan = {
        "version": VERSION,
        "parts": {name: [part.fingerprint, len(part)] for name, part in parts.items()},
        "keys": [caption_keys[0], label_key],
        "shard_images": shard_images,
    }
    if _read_plan(out) == plan:
        tell(f"{out} is this conversion already")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("--out", str(out), "is there already and is not this conversion")
    for part in parts.values():
        check_distinct(list(map(str, part.keys)), "data.path", part.name)
    partial = out.with_name(f"{out.name}.partial")
    _prepare(partial, plan)
    for name, part in parts.items():
        folder = partial / name
        folder.mkdir(exist_ok=True)
        _write_part(part, folder, caption_keys[0], label_key, shard_images, tell)
        found = array_record.write_index(folder, caption_keys, label_key, "--out")
        tell(f"{name}: {len(found['keys']):,} images, {found['captioned']:,} with captions")
    os.rename(partial, out)  # over an empty folder, too


def _write_part(
    part: Source,
    folder: Path,
    caption_key: str,
    label_key: str,
    shard_images: int,
    tell: Callable[[str], object],
) -> None:
    starts = range(0, len(part), shard_images)
    for number, start in enumerate(starts):
        path = folder / f"images-{number:05d}-of-{len(starts):05d}{SUFFIX}"
        if path.exists():
            continue
        stop = min(start + shard_images, len(part))
        records = _records(part, range(start, stop), caption_key, label_key)
        try:
            array_record.write_shard(path, records)
        except OSError as error:
            raise ConfigError("--out", str(path), f"cannot be written: {error}") from error
        tell(f"{folder.name}: {stop:,} of {len(part):,} images")


def _records(
    part: Source, indices: Sequence[int], caption_key: str, label_key: str
) -> Iterator[bytes]:
    for index in indices:
        record = part[index]
        label = None if record["label"] == NO_LABEL else part.classes[record["label"]]
        header = {"key": record["key"], caption_key: record["captions"], label_key: label}
        image = _file(record["image"])
        if not image:
            raise ConfigError("data.path", record["key"], f"holds no image ({part.name})")
        yield array_record.encode(header, image)


def _file(image: Any) -> bytes:
    """The image as the bytes of a file, without loss."""
    if isinstance(image, bytes):
        return image
    out = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(out, "PNG")
    return out.getvalue()


def _prepare(partial: Path, plan: dict[str, Any]) -> None:
    """Makes the folder, or keeps what an earlier start of the same conversion left in it.

    Raises:
      ConfigError: the folder is not that of a conversion.
    """
    if _read_plan(partial) == plan:
        return
    if partial.exists() and not (partial / PLAN).is_file() and any(partial.iterdir()):
        raise ConfigError("--out", str(partial), "is in the way, and of no conversion; remove it")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    temporary = partial / f".{PLAN}"
    temporary.write_text(json.dumps(plan, indent=2))
    os.replace(temporary, partial / PLAN)


def _read_plan(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / PLAN).read_text())
    except (OSError, ValueError):
        return None
