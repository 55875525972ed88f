"""Parquet files of images and captions, as Hugging Face's datasets hold them."""

import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.data import catalogue, files
from jepa_vl.data.catalogue import Arrays, Catalogue, Catalogued
from jepa_vl.data.records import first_line, lookup, read_captions
from jepa_vl.data.storage import local
from jepa_vl.schema import DataConfig
from jepa_vl.shapes import Array

KEY_COLUMNS = ("key", "__key__")
VERSION = 1  # of the index
OPEN_GROUPS = 4  # row groups that a process keeps in memory


class ParquetSource(Catalogued):
    """Random access to the rows of a folder of ``*.parquet`` files, by name and row.

    The image is a column of bytes, of Hugging Face's ``{bytes, path}``, or of paths inside the
    folder. The key of a record is its column ``key`` or ``__key__``; else the path of its image,
    where all have one and no two the same; else FILE:ROW.

    A row group is read whole, and the last few are kept: memory stays flat, but where row groups
    are large `jepa-vl data convert` makes shuffled reading much faster.
    """

    def __init__(
        self,
        path: str,
        caption_keys: Sequence[str],
        label_key: str,
        image_keys: Sequence[str] = DataConfig.image_keys,
        split: str = "",
        key: str = "data.path",
    ):
        """Loads the index of the rows, or scans them without their images.

        Args:
          path: folder of the files, or one of them.
          caption_keys: columns of the captions, of strings or lists; the first that is present
            counts, and a dot leads into a struct.
          label_key: column of the class: a string, a number, or Hugging Face's ClassLabel.
          image_keys: columns of the image; the first that is present counts.
          split: only files whose names begin so.
          key: configuration key that gave the path, for errors.

        Raises:
          ConfigError: names the path, or the file and its row, and the rule.
        """
        self._args = (path, tuple(caption_keys), label_key, tuple(image_keys), split, key)
        self.root, self.key, self.split = local(path), key, split
        self.caption_keys, self.label_key = tuple(caption_keys), label_key
        self.image_keys = tuple(image_keys)
        self.files = files.find_files(self.root, ".parquet", key, split)
        self.folder = self.root.parent if self.root.is_file() else self.root
        settings = self.caption_keys, label_key, self.image_keys
        found = catalogue.load_or_make(self.files, ("parquet", VERSION, settings), self._scan)
        self._adopt(found, (catalogue.identity_of(self.files), settings))
        self._wanted: dict[Path, tuple[str, ...]] = {}  # columns, of the files read so far
        self._groups: Array = found["groups"]  # int64 [groups, (file, group, rows before it)]

    def __reduce__(self) -> tuple:
        return ParquetSource, self._args  # a worker loads the index; it may be large

    @property
    def shards(self) -> list[Path]:
        """The files."""
        return self.files

    @property
    def name(self) -> str:
        """Kind, last components of the path, and the split."""
        return "parquet/" + "/".join([*self.root.parts[-2:], *filter(None, [self.split])])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` bytes, ``captions``, ``label`` and ``key``.

        Raises:
          IndexError: there is no such record.
          ConfigError: the row cannot be read, or has no image.
        """
        if index >= len(self):
            raise IndexError(index)
        place = int(np.searchsorted(self._groups[:, 2], index, side="right")) - 1
        number, group, before = self._groups[place].tolist()
        file, row = self.files[number], int(index) - before
        where = f"{file}: row {row} of row group {group}"
        try:
            if file not in self._wanted:
                self._wanted[file] = self._columns(file)
            item = _read_group(file, group, self._wanted[file]).slice(row, 1).to_pylist()[0]
        except (OSError, ValueError) as error:  # Arrow's errors are kinds of these
            raise ConfigError(self.key, where, f"cannot be read: {first_line(error)}") from error
        image = self._image(item, where)
        return self._record(index, image, read_captions(item, self.caption_keys, self.key, where))

    def _image(self, item: dict[str, Any], where: str) -> bytes:
        value = lookup(item, next(name for name in self.image_keys if name in item))
        path = value
        if isinstance(value, dict):
            path, value = value.get("path"), value.get("bytes")
        if isinstance(value, bytes) and value:
            return value
        if not isinstance(path, str) or not path:
            raise ConfigError(self.key, where, "holds no image")
        return files.read_bytes(self.folder / files.inside(path, self.key, where), self.key)

    def _columns(self, file: Path) -> tuple[str, ...]:
        """Columns of a file that its records need: image, captions and label."""
        wanted = {*self.caption_keys, self.label_key}
        heads = {name.partition(".")[0] for name in wanted} | wanted
        names = _open(file, self.key).schema_arrow.names
        return (self._image_column(file), *(name for name in names if name in heads))

    def _image_column(self, file: Path) -> str:
        """Name of the column of images, whose type is one that is known."""
        import pyarrow as pa

        schema = _open(file, self.key).schema_arrow
        name = next((name for name in self.image_keys if name in schema.names), None)
        if name is None:
            rule = f"names a column of {file}, which has {', '.join(schema.names)}"
            raise ConfigError("data.image_keys", self.image_keys, rule)
        kind = schema.field(name).type
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        known = _is_bytes(kind) or _is_text(kind)
        if pa.types.is_struct(kind):
            known = _is_bytes(fields.get("bytes")) or _is_text(fields.get("path"))
        if not known:
            rule = f"column {name!r} is {kind}; bytes, a struct of bytes and path, or a path"
            raise ConfigError(self.key, str(file), rule)
        return name

    def _scan(self) -> Arrays:
        found = Catalogue(self.caption_keys, self.label_key, self.key)
        groups, keys, paths, to_find = [], [], [], []
        for number, file in enumerate(self.files):
            opened, row = _open(file, self.key), 0
            image = self._image_column(file)
            outside = _is_text(opened.schema_arrow.field(image).type)
            _check_filled(opened, image, self.key, file)
            for group in range(opened.num_row_groups):
                groups.append((number, group, len(found.keys)))
                for item in self._rows(file, group, image):
                    where = f"{file}: row {row}"
                    path = item.pop(image, None)
                    if isinstance(path, dict):
                        path = path.get("path")
                    if outside:
                        to_find.append(files.inside(path or "", self.key, where))
                    keys.append(next((item[name] for name in KEY_COLUMNS if name in item), None))
                    paths.append(path)
                    found.add(f"{file.name}:{row}", item, where)
                    row += 1
        if not groups or not found.keys:
            raise ConfigError(self.key, str(self.root), "its .parquet file(s) hold no row")
        files.check_present(self.folder, to_find, self.key, "the column of paths")
        # Two rows of one file would be the same image on both sides of a split.
        candidates = (keys, True), (paths, bool(to_find))
        found.keys = catalogue.choose_keys(candidates, found.keys, self.key, str(self.root))
        columns = _leaf_columns(_open(self.files[0], self.key))
        arrays = {**found.arrays(), "json_keys": np.array(columns, dtype=np.str_)}
        return {**arrays, "groups": np.array(groups, np.int64)}

    def _rows(self, file: Path, group: int, image: str) -> Iterator[dict[str, Any]]:
        """All that a scan needs of the rows; of the images their paths alone."""
        schema = _open(file, self.key).schema_arrow
        columns = [name for name in self._columns(file) if name != image]
        columns += [name for name in KEY_COLUMNS if name in schema.names]
        kind = schema.field(image).type
        if _is_text(kind):
            columns.append(image)
        elif kind.num_fields and kind.get_field_index("path") >= 0:
            columns.append(f"{image}.path")
        names = _class_names(schema, self.label_key)
        try:
            rows = _open(file, self.key).read_row_group(group, columns=columns).to_pylist()
        except (OSError, ValueError) as error:
            where = f"{file}: row group {group}"
            raise ConfigError(self.key, where, f"cannot be read: {first_line(error)}") from error
        for row in rows or []:
            label = row.get(self.label_key)
            if names and isinstance(label, int):
                row[self.label_key] = names[label] if 0 <= label < len(names) else None
            yield row


def _open(path: Path, key: str) -> Any:
    try:
        return _opened(str(path), path.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        rule = f"cannot be read as a Parquet file: {first_line(error)}"
        raise ConfigError(key, str(path), rule) from error


@functools.lru_cache(maxsize=64)
def _opened(path: str, changed: int) -> Any:
    import pyarrow.parquet as pq

    del changed
    return pq.ParquetFile(path)


@functools.lru_cache(maxsize=OPEN_GROUPS)
def _read_group(path: Path, group: int, columns: tuple[str, ...]) -> Any:
    # A file of its own: an open one must not be read by two threads at once.
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read_row_group(group, columns=list(columns), use_threads=False)


def _check_filled(opened: Any, image: str, key: str, file: Path) -> None:
    """Refuses empty images, as far as the statistics of the file tell of them."""
    meta, empty = opened.metadata, 0
    for group in range(meta.num_row_groups):
        for number in range(meta.num_columns):
            column = meta.row_group(group).column(number)
            if column.path_in_schema == image and column.statistics is not None:
                empty += column.statistics.null_count or 0
    if empty:
        raise ConfigError(key, str(file), f"{empty} row(s) hold no image in column {image!r}")


def _leaf_columns(opened: Any) -> list[str]:
    """All columns, as the user would write them: ``sentences.raw`` for a list of structs."""
    paths = [opened.schema.column(i).path for i in range(len(opened.schema.names))]
    return [re.sub(r"\.list\.(element|item)|\.bag\.array_element", "", path) for path in paths]


def _class_names(schema: Any, column: str) -> list[str]:
    """Names behind the numbers of a column, where Hugging Face's metadata tell them."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return list(features[column]["names"])
    except (TypeError, KeyError, ValueError):
        return []


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))
