"""How each kind of source is opened; :mod:`jepa_vl.kinds` says which keys they read."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jepa_vl.config import Config
from jepa_vl.data.array_record import ArrayRecordSource
from jepa_vl.data.class_folder import ClassFolderSource
from jepa_vl.data.coco_json import CocoCaptions, Vqa
from jepa_vl.data.folder import FolderSource
from jepa_vl.data.mask_folder import open_folder
from jepa_vl.data.mvsa import Mvsa
from jepa_vl.data.parquet import ParquetSource
from jepa_vl.data.shapes_world import ShapesWorld
from jepa_vl.data.tar import TarSource
from jepa_vl.data.tfds import TfdsSource

WORLD_SEED = 0  # the built-in world is a data set: runs of any seed see the same scenes


class Place(NamedTuple):
    """Where one of the two parts of the data lies."""

    path: str
    key: str  # configuration key that gave the path, for errors
    split: str
    part: str  # train or val


def _world(config: Config, place: Place) -> Any:
    train = place.part == "train"
    length = config.data.train_size if train else config.eval.val_images
    return ShapesWorld(WORLD_SEED, length, config.encoder.image_size, place.part)


def _tar(config: Config, place: Place) -> Any:
    return TarSource(place.path, config.data.caption_keys, config.data.label_key, place.key)


def _array_record(config: Config, place: Place) -> Any:
    data = config.data
    return ArrayRecordSource(place.path, data.caption_keys, data.label_key, place.key)


def _folder(config: Config, place: Place) -> Any:
    data = config.data
    names = data.caption_keys, data.label_key, data.image_keys
    return FolderSource(place.path, *names, place.key, place.split)


def _class_folder(config: Config, place: Place) -> Any:
    del config
    return ClassFolderSource(place.path, place.split, place.key)


def _mask_folder(config: Config, place: Place) -> Any:
    data = config.data
    names = data.caption_keys, data.label_key, data.image_keys
    return open_folder(place.path, place.split, names, place.key)


def _parquet(config: Config, place: Place) -> Any:
    data = config.data
    names = data.caption_keys, data.label_key, data.image_keys
    return ParquetSource(place.path, *names, place.split, place.key)


def _tfds(config: Config, place: Place) -> Any:
    data = config.data
    names = data.caption_keys, data.label_key, data.image_keys
    return TfdsSource(place.path, data.name, *names, place.split, place.key)


def _mvsa(config: Config, place: Place) -> Any:
    del config
    return Mvsa(place.path, place.key)


def _coco_captions(config: Config, place: Place) -> Any:
    del config
    return CocoCaptions(place.path, place.split, place.key)


def _vqa(config: Config, place: Place) -> Any:
    del config
    return Vqa(place.path, place.split, place.key)


# Each opens a sources.Source.
SOURCES: dict[str, Callable[[Config, Place], Any]] = {
    "shapes_world": _world,
    "tar": _tar,
    "folder": _folder,
    "class_folder": _class_folder,
    "mask_folder": _mask_folder,
    "parquet": _parquet,
    "tfds": _tfds,
    "array_record": _array_record,
    "mvsa": _mvsa,
    "coco_captions": _coco_captions,
    "vqa": _vqa,
}
