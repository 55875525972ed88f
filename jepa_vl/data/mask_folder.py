"""Images with a class number at each pixel: folders as VOC's and ADE20K's, or a list with masks."""

import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import Any

from jepa_vl.config import ConfigError
from jepa_vl.data import files, segments
from jepa_vl.data.catalogue import Catalogue, Catalogued
from jepa_vl.data.folder import LISTS, FolderSource
from jepa_vl.data.storage import local
from jepa_vl.data.tar_scan import IMAGES
from jepa_vl.shapes import Array

IMAGE_FOLDERS, MASK_FOLDERS = (
    ("images", "JPEGImages"),
    ("masks", "annotations", "SegmentationClass"),
)
CLASS_FILES = ("mask_classes.json", "mask_classes.txt")
VOC_LISTS = "ImageSets/Segmentation"


class _Masked:
    """What both kinds of folders share; ``masks`` names a file of the root for each image.

    Attributes:
      segment_classes: names of the numbers in masks, from 0 on.
      segmented: bool [images]: which have a mask.
    """

    root: Path
    key: str
    keys: Any
    masks: list[str]

    def _adopt_masks(self, fingerprint: str) -> str:
        """Reads the names of the classes; returns the fingerprint of all.

        Raises:
          ConfigError: no mask, none of that name, or no names of classes.
        """
        if not any(self.masks):
            rule = (
                f"no image has a mask: NAME.png in {' or '.join(MASK_FOLDERS)}, or 'mask' of a line"
            )
            raise ConfigError(self.key, str(self.root), rule)
        there = [mask for mask in self.masks if mask]
        files.check_present(self.root, there, self.key, "the masks", "mask")
        self.segment_classes = segments.class_names(self.root, CLASS_FILES, self.key)
        self.segmented = segments.present(self.masks)
        text = repr((fingerprint, self.masks, self.segment_classes))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def segments(self, index: int) -> Array:
        """The class at each pixel of the upright image: uint8 or uint16 [H, W], 255 for none.

        Raises:
          ConfigError: no mask, or one that is damaged, of another size or with unknown classes.
        """
        if not self.masks[index]:
            raise ConfigError(self.key, str(self.keys[index]), "this image has no mask")
        image = files.read_bytes(self.root / str(self.keys[index]), self.key)
        mask = self.root / self.masks[index]
        found = segments.read(files.read_bytes(mask, self.key), self.key, str(mask))
        segments.check(found, image, len(self.segment_classes), self.key, str(mask))
        return found


class MaskList(_Masked, FolderSource):
    """A folder with a list: each line may name a ``mask``; else ``masks/NAME.png`` is that of NAME.

    Images without a mask are there too, for what needs none.
    """

    def __init__(self, path: str, *names: Any, key: str = "data.path", split: str = ""):
        """As :class:`FolderSource`.

        Raises:
          ConfigError: of the list, of its masks or of their classes.
        """
        self._named: list[str] = []
        super().__init__(path, *names, key=key, split=split)
        by_stem = _by_stem(self.root, "", (".png",), MASK_FOLDERS)
        pairs = zip(self.keys, self._named or [""] * len(self.keys), strict=True)
        self.masks = [mask or by_stem.get(PurePosixPath(image).stem, "") for image, mask in pairs]
        self.fingerprint = self._adopt_masks(self.fingerprint)

    @property
    def name(self) -> str:
        """Kind and last component of the path."""
        return "mask_" + super().name

    def _json_lines(self, text: str) -> Any:
        for item, where in super()._json_lines(text):
            mask = item.get("mask")
            if mask is not None and not isinstance(mask, str):
                raise ConfigError(self.key, where, "'mask' is neither a path nor null")
            self._named.append(files.inside(mask, self.key, where) if mask else "")
            yield item, where


class MaskFolder(_Masked, Catalogued):
    """``images/NAME.jpg`` and ``masks/NAME.png`` (or VOC's and ADE20K's names of folders).

    No captions and no labels. An image without a mask is left out.
    """

    def __init__(self, path: str, split: str = "", key: str = "data.path"):
        """Lists the files.

        Args:
          path: folder of both folders.
          split: a subfolder of both (``images/train``), or a list of VOC's
            ``ImageSets/Segmentation`` without its .txt; empty: all.
          key: configuration key that gave the path, for errors.

        Raises:
          ConfigError: no such folder or split, no image with a mask, no names of classes.
        """
        self.root, self.key = local(path), key
        if not self.root.is_dir():
            raise ConfigError(key, path, "is no folder that can be read")
        key_of_split = key.replace("path", "split")
        listed = self.root / VOC_LISTS / f"{files.inside(split, key_of_split, split)}.txt"
        wanted = set(listed.read_text().split()) if split and listed.is_file() else None
        below = split if wanted is None else ""
        images = _by_stem(self.root, below, tuple(f".{kind}" for kind in IMAGES), IMAGE_FOLDERS)
        masks = _by_stem(self.root, below, (".png",), MASK_FOLDERS)
        if split and not images:
            rule = f"neither a subfolder of images and masks nor a list in {VOC_LISTS}"
            raise ConfigError(key_of_split, split, rule)
        stems = [s for s in sorted(images) if s in masks and (wanted is None or s in wanted)]
        found = Catalogue((), "label", key)
        for stem in stems:
            found.add(images[stem], {}, stem)
        self.masks = [masks[stem] for stem in stems]
        self._adopt(found.arrays(), "mask_folder")
        self.fingerprint = self._adopt_masks(self.fingerprint)

    @property
    def name(self) -> str:
        """Kind and last components of the path."""
        return "mask_folder/" + "/".join(self.root.parts[-2:])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` bytes, no ``captions``, ``label`` -1 and ``key``.

        Raises:
          ConfigError: the image cannot be read.
        """
        image = files.read_bytes(self.root / str(self.keys[index]), self.key)
        return self._record(index, image, [])


def open_folder(path: str, split: str, names: tuple[Any, ...], key: str) -> Any:
    """A :class:`MaskList` where the path is a list or holds one, else a :class:`MaskFolder`.

    Raises:
      ConfigError: see both.
    """
    root = local(path)
    if not root.is_file() and not any((root / name).is_file() for name in LISTS):
        return MaskFolder(path, split, key)
    return MaskList(path, *names, key=key, split=split)


def _by_stem(
    root: Path, below: str, ends: tuple[str, ...], folders: tuple[str, ...]
) -> dict[str, str]:
    """Relative paths of the files in the first folder that is there, by their stems."""
    folder = next((name for name in folders if (root / name).is_dir()), "")
    place = root / folder / below
    if not folder or not place.is_dir():
        return {}
    names = [n for n in sorted(os.listdir(place)) if n.lower().endswith(ends) and n[0] != "."]
    return {PurePosixPath(n).stem: (PurePosixPath(folder) / below / n).as_posix() for n in names}
