"""COCO's captions json and VQA's questions and annotations, beside their folders of images."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.data import files
from jepa_vl.data.catalogue import Catalogue, Catalogued
from jepa_vl.data.storage import local
from jepa_vl.data.tar_scan import IMAGES


class _Listed(Catalogued):
    """What both share: records that json files list, images in a folder beside them."""

    def __init__(self, path: str, split: str, key: str):
        self.root, self.key, self.split = local(path), key, split
        if not self.root.is_dir():
            raise ConfigError(key, path, "is no folder that can be read")
        self._digest = hashlib.sha256()

    def _load(self, part: str, *lists: str) -> dict[str, Any]:
        """The one json file whose name holds a word and the split, with the lists it must have.

        Raises:
          ConfigError: none or several, or it holds something else.
        """
        places = (self.root, self.root / "annotations")
        found = sorted(f for place in places for f in place.glob("*.json") if part in f.name)
        found = [file for file in found if self.split in file.name]
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            split = f" and {self.split!r}" if self.split else ""
            rule = f"holds one *.json, also in annotations/, with {part!r}{split} in its name"
            hint = "; data.split (eval.split) chooses" if len(found) > 1 else ""
            raise ConfigError(self.key, str(self.root), f"{rule}: {names}{hint}")
        content = files.read_bytes(found[0], self.key)
        self._digest.update(content)
        try:
            value = json.loads(content)
        except ValueError as error:
            raise ConfigError(self.key, str(found[0]), f"is no JSON: {error}") from error
        for name in lists:
            if not isinstance(value, dict) or not isinstance(value.get(name), list):
                raise ConfigError(self.key, str(found[0]), f"holds a list {name!r}")
        return value

    def _images(self) -> dict[int, Path]:
        """Image files by the number that their names end in."""
        folders = (self.root / (self.split or "images"), self.root / "images", self.root)
        ending = tuple(f".{kind}" for kind in IMAGES)
        for folder in folders:
            if folder.is_dir():
                named = ((f, re.search(r"(\d+)$", f.stem)) for f in sorted(folder.iterdir()))
                found = {int(n[1]): f for f, n in named if n and f.name.lower().endswith(ending)}
                if found:
                    return found
        rule = f"holds no image whose name ends in its id, in {folders[0].name}/ or images/"
        raise ConfigError(self.key, str(self.root), rule)

    def _enter(self, rows: list[tuple[str, int]], where: str) -> None:
        """Records (key, image id), in their order; an image counts on one side of a split."""
        images = self._images()
        found = Catalogue((), "label", self.key)
        for name, image in rows:
            if image not in images:
                raise ConfigError(self.key, where, f"image {image} is in none of its folders")
            found.add(name, {}, where)
        if not rows:
            raise ConfigError(self.key, str(self.root), f"{where} lists nothing")
        self.files = [images[image] for _, image in rows]
        self._adopt(found.arrays(), self._digest.hexdigest())
        self.captioned = len(rows)
        ids = np.array([image for _, image in rows], ">i8")
        digests = b"".join(hashlib.blake2b(i.tobytes(), digest_size=8).digest() for i in ids)
        self.key_hashes = np.frombuffer(digests, ">u8")

    def _read(self, index: int, captions: list[str]) -> dict[str, Any]:
        return self._record(index, files.read_bytes(self.files[index], self.key), captions)


class CocoCaptions(_Listed):
    """Images with all captions of ``captions_SPLIT.json``; those without a caption are left out."""

    def __init__(self, path: str, split: str = "", key: str = "data.path"):
        """Reads the json.

        Args:
          path: folder that holds it, or ``annotations/`` with it; images lie in SPLIT/, images/ or
            the folder itself.
          split: as in the file's name, such as val2017; empty where there is one file.
          key: configuration key that gave the path, for errors.

        Raises:
          ConfigError: no such file, another content, or an image that is absent.
        """
        super().__init__(path, split, key)
        page = self._load("captions", "images", "annotations")
        said: dict[int, list[str]] = {}
        try:
            for row in page["annotations"]:
                said.setdefault(int(row["image_id"]), []).append(str(row["caption"]).strip())
            ids = [int(row["id"]) for row in page["images"]]
        except (KeyError, TypeError, ValueError) as error:
            rule = f"each of images has 'id', of annotations 'image_id' and 'caption': {error!r}"
            raise ConfigError(key, path, rule) from error
        ids = [image for image in ids if image in said]
        self.said = [said[image] for image in ids]
        self._enter([(str(image), image) for image in ids], "captions")

    @property
    def name(self) -> str:
        """Kind, folder and split."""
        return f"coco_captions/{self.root.name}" + (f"/{self.split}" if self.split else "")

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` bytes, ``captions``, ``label`` -1 and ``key``, the image's id."""
        return self._read(index, self.said[index])


class Vqa(_Listed):
    """Questions with the answers of people: a record a question, which is its one caption."""

    def __init__(self, path: str, split: str = "", key: str = "data.path"):
        """Reads ``*questions*SPLIT*.json`` and ``*annotations*SPLIT*.json`` (VQA v2's layout).

        Args:
          path, split, key: as of :class:`CocoCaptions`.

        Raises:
          ConfigError: no such files, another content, or an image that is absent.
        """
        super().__init__(path, split, key)
        asked = self._load("questions", "questions")["questions"]
        told = self._load("annotations", "annotations")["annotations"]
        try:
            answers = {
                row["question_id"]: [str(answer["answer"]) for answer in row["answers"]]
                for row in told
            }
            rows = [row for row in asked if answers.get(row["question_id"])]
            self.asked = [str(row["question"]) for row in rows]
            images = [int(row["image_id"]) for row in rows]
            keys = [f"{row['image_id']}/{row['question_id']}" for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            rule = f"questions and annotations are laid out as VQA v2's: {error!r}"
            raise ConfigError(key, path, rule) from error
        self.answers = [answers[row["question_id"]] for row in rows]
        self._enter(list(zip(keys, images, strict=True)), "questions")

    @property
    def name(self) -> str:
        """Kind, folder and split."""
        return f"vqa/{self.root.name}" + (f"/{self.split}" if self.split else "")

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` bytes, ``captions`` (the question), ``answers``, ``label`` -1 and ``key``."""
        return self._read(index, [self.asked[index]]) | {"answers": self.answers[index]}
