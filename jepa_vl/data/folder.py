"""A folder of images and a list: ``captions.jsonl``, ``captions.csv``, or one of your choice."""

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jepa_vl.config import ConfigError
from jepa_vl.data import files
from jepa_vl.data.catalogue import Catalogue, check_distinct
from jepa_vl.data.records import lookup, parse_object
from jepa_vl.data.storage import local
from jepa_vl.schema import DataConfig

LISTS = ("captions.jsonl", "captions.csv", "captions.tsv")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
Row = tuple[dict[str, Any], str]  # a JSON object or a row of a table, and where it stands


class FolderSource:
    """Random access to the images that a list names, in its order.

    JSON lines hold an image each, with all its captions. The rows of a table (the first one names
    the columns) hold a caption each: those of the same image belong together, in the place of the
    first.

    Attributes:
      keys: relative path of each image.
      labels: int32 [images], -1 for none.
      classes: names of the labels, sorted.
      captioned: number of images with a caption.
      json_keys: keys or columns seen in the list.
    """

    def __init__(
        self,
        path: str,
        caption_keys: Sequence[str],
        label_key: str,
        image_keys: Sequence[str] = DataConfig.image_keys,
        key: str = "data.path",
        split: str = "",
    ):
        """Reads the list and checks that its images are there.

        Args:
          path: the folder, or a list in it (.jsonl, .csv or .tsv).
          caption_keys: keys or columns of the captions; the first that is present counts.
          label_key: key or column of the class name.
          image_keys: keys or columns of the image's path; the first that is present counts.
          key: configuration key that gave the path, for errors.
          split: value of the key or column ``split`` of the images that are wanted; empty: all.

        Raises:
          ConfigError: names the path, or the file and its line, and the rule.
        """
        self.split, self._splits = split, set[str]()
        self.key, self.image_keys = key, tuple(image_keys)
        self.list = _find_list(local(path), key)
        self.root = self.list.parent
        try:
            raw = self.list.read_bytes()
        except OSError as error:
            raise ConfigError(key, str(self.list), f"cannot be read: {error.strerror}") from error
        text = raw.decode("utf-8-sig", "replace")
        table = self.list.suffix in DELIMITERS
        rows = self._table(text, label_key) if table else self._json_lines(text)
        found = Catalogue(caption_keys, label_key, key)
        self._captions: list[list[str]] = []
        for item, where in rows:
            image = self._image_path(item, where)
            self._captions.append(found.add(image, item, where))
        self.keys = found.keys
        if not self.keys and split:
            there = ", ".join(sorted(self._splits)) or "none"
            rule = f"the key or column 'split' of {self.list} has: {there}"
            raise ConfigError(key.replace("path", "split"), split, rule)
        if not self.keys:
            raise ConfigError(key, path, f"{self.list.name} lists no image")
        if table:
            self._captions = [[text for text in texts if text] for texts in self._captions]
        check_distinct(self.keys, key, str(self.list))
        arrays = found.arrays()
        self.json_keys = tuple(arrays["json_keys"].tolist())
        self.captioned = found.captioned
        self.classes, self.labels = tuple(arrays["classes"].tolist()), arrays["labels"]
        told = (tuple(caption_keys), label_key, *([split] if split else []))
        digest = hashlib.sha256(raw + repr(told).encode())
        self.fingerprint = digest.hexdigest()[:16]
        files.check_present(self.root, self.keys, key, self.list.name)

    @property
    def name(self) -> str:
        """Kind and last component of the path."""
        chosen = "" if self.list.name in LISTS else f"/{self.list.name}"
        return f"folder/{self.root.name}{chosen}{f':{self.split}' if self.split else ''}"

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` bytes, ``captions``, ``label`` and ``key``.

        Raises:
          ConfigError: the image cannot be read.
        """
        return {
            "image": files.read_bytes(self.root / self.keys[index], self.key),
            "captions": self._captions[index],
            "label": int(self.labels[index]),
            "key": self.keys[index],
        }

    def _json_lines(self, text: str) -> Iterator[Row]:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                where = f"{self.list}:{number}"
                item = parse_object(line, self.key, where)
                if self._wanted(item):
                    yield item, where

    def _wanted(self, item: dict[str, Any]) -> bool:
        """Is it of the split?"""
        if self.split:
            self._splits.add(str(item.get("split") or "none"))
        return not self.split or item.get("split") == self.split

    def _table(self, text: str, label_key: str) -> Iterator[Row]:
        """One item an image: each column holds the list of its rows' cells, the label one."""
        reader = csv.DictReader(
            io.StringIO(text, newline=""), delimiter=DELIMITERS[self.list.suffix], strict=True
        )
        images: dict[str, Row] = {}
        for row, where in self._rows(reader):
            image = self._image_path(row, where)
            name = next(name for name in self.image_keys if row.get(name))
            label = {label_key: row[label_key] or None} if label_key in row else {}
            item, first = images.setdefault(image, ({name: image, **label}, where))
            if any(item[column] != value for column, value in label.items()):
                rule = f"label {row[label_key]!r} of {image} is {item[label_key]!r} at {first}"
                raise ConfigError(self.key, where, rule)
            for column, cell in row.items():
                if column not in (name, label_key):
                    item.setdefault(column, []).append(cell)
        yield from images.values()

    def _rows(self, reader: csv.DictReader) -> Iterator[tuple[dict[str, str], str]]:
        try:
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            if len(set(columns)) < len(columns):
                rule = f"its first line names columns, each once; it has {', '.join(columns)}"
                raise ConfigError(self.key, str(self.list), rule)
            if columns and not set(columns) & set(self.image_keys):
                rule = f"names a column of {self.list}, which has {', '.join(columns)}"
                raise ConfigError("data.image_keys", self.image_keys, rule)
            for row in reader:
                where = f"{self.list}:{reader.line_num}"
                if None in row or None in row.values():
                    rule = f"each row has {len(columns)} cells, as the first line has names"
                    raise ConfigError(self.key, where, rule)
                cells = {name: cell.strip() for name, cell in row.items()}
                if self._wanted(cells):
                    yield cells, where
        except csv.Error as error:
            where = f"{self.list}:{reader.line_num}"
            raise ConfigError(self.key, where, f"is no row of a table: {error}") from error

    def _image_path(self, item: dict[str, Any], where: str) -> str:
        image = next(filter(None, (lookup(item, name) for name in self.image_keys)), None)
        if not isinstance(image, str):
            rule = f"each line has {self.image_keys[0]!r}, a path inside the folder"
            raise ConfigError(self.key, where, rule)
        return files.inside(image, self.key, where)


def _find_list(path: Path, key: str) -> Path:
    if path.is_file():
        if path.suffix not in (".jsonl", *DELIMITERS):
            raise ConfigError(key, str(path), "a list ends in .jsonl, .csv or .tsv")
        return path
    if not path.is_dir():
        raise ConfigError(key, str(path), "is no folder that can be read")
    there = [name for name in LISTS if (path / name).is_file()]
    if len(there) > 1:
        rule = f"holds {' and '.join(there)}; give one of them as the path"
        raise ConfigError(key, str(path), rule)
    if not there:
        raise ConfigError(key, str(path), f"holds none of {', '.join(LISTS)}; or give a list")
    return path / there[0]
