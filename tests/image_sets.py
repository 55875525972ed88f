"""The same images and captions in the forms that users have them in."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jepa_vl.data import array_record


class Item(NamedTuple):
    key: str  # a file name
    image: bytes
    captions: list[str]
    label: str | None


def picture(color: object = (200, 0, 0), kind: str = "JPEG", size=(20, 16)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, kind)  # pyright: ignore[reportArgumentType]
    return out.getvalue()


def some(count: int, prefix: str = "") -> list[Item]:
    """Distinct pictures of two classes, two captions each."""
    return [
        Item(
            f"{prefix}{i:03d}.jpg",
            picture((i * 7 % 256, 99, i)),
            [f"picture {i}", "said too"],
            "ab"[i % 2],
        )
        for i in range(count)
    ]


def of_source(source: Any, count: int) -> list[Item]:
    """The first records of a source of JPEG files."""
    found = []
    for index in range(count):
        record = source[index]
        label = source.classes[record["label"]] if record["label"] >= 0 else None
        name = f"{index:05d}.jpg"
        found.append(Item(name, record["image"], record["captions"], label))
    return found


def write_tar(folder: Path, items: list[Item], shard: int = 20) -> None:
    folder.mkdir(parents=True)
    for start in range(0, len(items), shard):
        with tarfile.open(folder / f"{start:05d}.tar", "w") as out:
            for item in items[start : start + shard]:
                said = json.dumps({"captions": item.captions, "label": item.label}).encode()
                stem = item.key.removesuffix(".jpg")
                for name, data in ((f"{stem}.jpg", item.image), (f"{stem}.json", said)):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    out.addfile(info, io.BytesIO(data))


def write_array_record(folder: Path, items: list[Item], shard: int = 20) -> None:
    folder.mkdir(parents=True)
    for start in range(0, len(items), shard):
        records = (
            array_record.encode({"key": i.key, "captions": i.captions, "label": i.label}, i.image)
            for i in items[start : start + shard]
        )
        array_record.write_shard(folder / f"{start:05d}.array_record", records)


def write_table(path: Path, columns: dict[str, Iterable[Any]], group: int = 7, **how: Any) -> Path:
    """A Parquet file; ``how`` goes to ``pyarrow.table``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, **how), path, row_group_size=group)
    return path


def write_parquet(folder: Path, items: list[Item], shard: int = 20) -> None:
    """As Hugging Face's datasets write images."""
    for start in range(0, len(items), shard):
        part = items[start : start + shard]
        columns = {
            "image": [{"bytes": item.image, "path": item.key} for item in part],
            "captions": [item.captions for item in part],
            "label": [item.label for item in part],
        }
        write_table(folder / f"{start:05d}.parquet", columns)


def write_images(folder: Path, items: list[Item]) -> None:
    for item in items:
        path = folder / item.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.image)


def write_folder(folder: Path, items: list[Item]) -> None:
    write_images(folder, items)
    lines = [
        json.dumps({"image": item.key, "captions": item.captions, "label": item.label})
        for item in items
    ]
    (folder / "captions.jsonl").write_text("\n".join(lines))


def write_csv(folder: Path, items: list[Item]) -> None:
    """One row a caption."""
    write_images(folder, items)
    with open(folder / "captions.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image", "caption", "label"])
        for item in items:
            for text in item.captions:
                out.writerow([item.key, text, item.label])


WRITERS = {
    "tar": write_tar,
    "array_record": write_array_record,
    "parquet": write_parquet,
    "folder": write_folder,
}
