"""Small tar shards, whole and damaged."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

KEYS = ("captions", "caption")


def jpeg(color: int = 0, size: tuple[int, int] = (40, 36)) -> bytes:
    """A picture of one grey."""
    out = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), color, np.uint8)).save(out, "JPEG")
    return out.getvalue()


def sample(key: str, color: int = 0, **extra) -> list[tuple[str, bytes]]:
    """The members of one sample."""
    item = {"captions": [f"a picture of {key}"], "label": str(color % 3), **extra}
    return [(f"{key}.jpg", jpeg(color)), (f"{key}.json", json.dumps(item).encode())]


def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A shard; names may repeat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def shards(folder: Path, count: int, each: int) -> Path:
    """A folder of shards of samples s000, s001, ..., each of its own grey."""
    for number in range(count):
        first = number * each
        members = [m for i in range(first, first + each) for m in sample(f"s{i:03}", i % 250)]
        write(folder / f"{number:03}.tar", members)
    return folder


def offset_of(path: Path, name: str) -> int:
    """Where the data of a member begin."""
    with tarfile.open(path) as file:
        return file.getmember(name).offset_data


def overwrite(path: Path, name: str, data: bytes) -> None:
    """Changes the bytes of a member, and neither size nor time of the shard."""
    with path.open("r+b") as file:
        file.seek(offset_of(path, name))
        file.write(data)
