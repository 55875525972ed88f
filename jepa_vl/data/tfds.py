"""TensorFlow Datasets that were prepared as ArrayRecord: read by name, without TensorFlow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.data import catalogue
from jepa_vl.data.catalogue import Arrays, Catalogue, Catalogued
from jepa_vl.data.records import first_line, lookup, read_captions
from jepa_vl.data.storage import local
from jepa_vl.schema import DataConfig

KEY_FEATURES = ("key", "image/filename", "file_name", "filename")
VERSION = 1  # of the index


class TfdsSource(Catalogued):
    """Random access to a split, in its order.

    The files say all: the code of the dataset is not needed, and nothing is downloaded. The key of
    a record is the first of its features ``key``, ``image/filename``, ``file_name`` and
    ``filename`` that all records have and no two share; else SPLIT:NUMBER.
    """

    def __init__(
        self,
        path: str,
        dataset: str,
        caption_keys: Sequence[str],
        label_key: str,
        image_keys: Sequence[str] = DataConfig.image_keys,
        split: str = "",
        key: str = "data.path",
    ):
        """Opens the dataset, and loads the index of its records or scans them.

        Args:
          path: the data_dir that the dataset was prepared in.
          dataset: name, as in ``coco_captions/2014:1.1.0``.
          caption_keys: features of the captions; the first that is present counts, and a dot leads
            inside, as in ``captions.text``.
          label_key: feature of the class: a ClassLabel, a text or a number.
          image_keys: features of the image; the first that is present counts.
          split: empty: train.
          key: configuration key that gave the path, for errors.

        Raises:
          ConfigError: names the path, dataset, split or feature, and the rule.
        """
        self._args = (path, dataset, tuple(caption_keys), label_key, tuple(image_keys), split, key)
        self.root, self.key, self.split = local(path), key, split or "train"
        self.dataset, self.caption_keys, self.label_key = dataset, tuple(caption_keys), label_key
        builder = self._open_builder()
        self.image = self._image_feature(builder.info.features, image_keys)
        self._names = _class_names(builder.info.features, label_key)
        self._records = self._open_records(builder)
        folder = Path(builder.data_path)
        files = sorted(file for file in folder.iterdir() if file.is_file())
        settings = self.split, self.caption_keys, label_key, self.image
        found = catalogue.load_or_make(files, ("tfds", VERSION, settings), self._scan)
        self._adopt(found, (builder.info.full_name, catalogue.identity_of(files), settings))

    def __reduce__(self) -> tuple:
        return TfdsSource, self._args  # a worker opens its own files

    @property
    def name(self) -> str:
        """Kind, dataset and split."""
        return f"tfds/{self.dataset}/{self.split}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` bytes, ``captions``, ``label`` and ``key``.

        Raises:
          IndexError: there is no such record.
          ConfigError: the record cannot be read.
        """
        if index >= len(self):
            raise IndexError(index)
        item, where = self._item(index)
        captions = read_captions(item, self.caption_keys, self.key, where)
        return self._record(index, item[self.image], captions)

    def _item(self, index: int) -> tuple[dict[str, Any], str]:
        """A record in Python's own types, and where it stands."""
        where = f"{self.dataset}: record {index} of split {self.split}"
        try:
            record = self._records[int(index)]
        except (RuntimeError, ValueError, IndexError) as error:
            raise ConfigError(self.key, where, f"cannot be read: {first_line(error)}") from error
        image = record.pop(self.image)
        if not isinstance(image, bytes) or not image:
            raise ConfigError(self.key, where, f"holds no image in feature {self.image!r}")
        return {**_plain(record), self.image: image}, where

    def _scan(self) -> Arrays:
        found = Catalogue(self.caption_keys, self.label_key, self.key)
        named: dict[str, list[Any]] = {name: [] for name in KEY_FEATURES}
        for index in range(len(self._records)):
            item, where = self._item(index)
            del item[self.image]
            label = lookup(item, self.label_key)
            if self._names and isinstance(label, int):
                item[self.label_key] = self._names[label] if label >= 0 else None
            for name, values in named.items():
                values.append(item.get(name))
            found.add(f"{self.split}:{index}", item, where)
        candidates = [(values, name == "key") for name, values in named.items()]
        found.keys = catalogue.choose_keys(candidates, found.keys, self.key, self.dataset)
        return found.arrays()

    def _open_builder(self) -> Any:
        from tensorflow_datasets.core import read_only_builder, registered

        if not self.root.is_dir():
            raise ConfigError(self.key, str(self.root), "is no folder that can be read")
        try:
            return read_only_builder.builder_from_files(self.dataset, data_dir=self.root)
        except (registered.DatasetNotFoundError, ValueError) as error:
            rule = (
                f"no dataset of this name is prepared in {self.root}; where TensorFlow is "
                f"installed, `tfds build {self.dataset} --data_dir={self.root} "
                "--file_format=array_record` makes one"
            )
            raise ConfigError("data.name", self.dataset, rule) from error

    def _open_records(self, builder: Any) -> Any:
        import tensorflow_datasets as tfds

        splits = list(builder.info.splits)
        if self.split.partition("[")[0] not in splits:
            rule = f"a split of {self.dataset}: {', '.join(splits)}"
            raise ConfigError(self.key.replace("path", "split"), self.split, rule)
        images = _features_of(builder.info.features, tfds.features.Image)
        try:
            decoders: Any = {name: tfds.decode.SkipDecoding() for name in images}
            return builder.as_data_source(self.split, decoders=decoders)
        except NotImplementedError as error:
            rule = f"cannot be read at random: {first_line(error)}; prepare it as array_record"
            raise ConfigError("data.name", self.dataset, rule) from error
        except ValueError as error:
            rule = f"holds no record that can be read: {first_line(error)}"
            raise ConfigError(self.key.replace("path", "split"), self.split, rule) from error

    def _image_feature(self, features: Any, image_keys: Sequence[str]) -> str:
        import tensorflow_datasets as tfds

        images = _features_of(features, tfds.features.Image)
        name = next((name for name in image_keys if name in images), None)
        if name is None:
            have = ", ".join(images) or "none"
            rule = f"names an image of {self.dataset}, whose image features are: {have}"
            raise ConfigError("data.image_keys", tuple(image_keys), rule)
        return name


def _features_of(features: Any, kind: type) -> list[str]:
    return [name for name, feature in features.items() if isinstance(feature, kind)]


def _class_names(features: Any, label_key: str) -> list[str]:
    """Names behind the numbers of a ClassLabel; empty for another feature, or none."""
    for name in label_key.split(".") if label_key not in features else [label_key]:
        inner = getattr(features, "feature", features)  # of a sequence: its elements
        features = inner[name] if hasattr(inner, "keys") and name in inner else None
    return list(getattr(features, "names", None) or [])


def _plain(value: Any) -> Any:
    """Numpy's arrays and numbers, and bytes, as lists, numbers and strings."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
