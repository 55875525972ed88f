"""MVSA-Single and MVSA-Multiple in their original layout: tweets, an image, a text, a sentiment.

``labelResultAll.txt`` holds a line a pair: ID and, for each annotator, "text label,image label".
``data/ID.jpg`` and ``data/ID.txt`` are the pair. Labels are merged by the rule of Xu and Mao 2017
(MultiSentiNet), which the numbers of the field rest on: of MVSA-Multiple's three annotators the
majority counts, for text and for image by itself, and a pair without one is left out; a pair whose
text and image are opposed is left out; of neutral and another label the other counts.
"""

import collections
import hashlib
import re
from pathlib import Path
from typing import Any

from jepa_vl.config import ConfigError
from jepa_vl.data import files
from jepa_vl.data.catalogue import Catalogue, Catalogued, check_distinct
from jepa_vl.data.storage import local

LABELS = "labelResultAll.txt"
CLASSES = ("negative", "neutral", "positive")
ENCODINGS = ("utf-8-sig", "cp1252", "latin-1")  # tried in this order; the last reads anything
RULE = (
    "MultiSentiNet's: majority of the annotators for text and for image, pairs without one left "
    "out; opposed pairs left out; of neutral and another the other"
)


def decode(content: bytes) -> str:
    """Text of unknown encoding: UTF-8, else Windows-1252, else Latin-1."""
    for encoding in ENCODINGS:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise AssertionError("Latin-1 decodes all bytes")


def majority(votes: list[str]) -> str | None:
    """The label that more than half of the annotators gave."""
    label, count = collections.Counter(votes).most_common(1)[0]
    return label if 2 * count > len(votes) else None


def merge(text: str | None, image: str | None) -> str | None:
    """One label of a text's and an image's; None where the pair is left out."""
    if text is None or image is None or {text, image} == {"positive", "negative"}:
        return None
    return image if text == "neutral" else text


class Mvsa(Catalogued):
    """The pairs whose label is clear, of one folder or of all that lie in a folder.

    The text is the one caption of an image. Keys are FOLDER/ID.

    Attributes:
      parts: of each pair ``single`` or ``multiple``, by the number of annotators.
      left_out: pairs without a clear label.
    """

    def __init__(self, path: str, key: str = "data.path"):
        """Reads the labels; images and texts are read when they are asked for.

        Args:
          path: folder with ``labelResultAll.txt``, or of such folders (MVSA_Single, MVSA).
          key: configuration key that gave the path, for errors.

        Raises:
          ConfigError: no such file, a line that is no label, or no pair with a clear one.
        """
        root, self.key = local(path), key
        self.root = root
        roots = [root] if (root / LABELS).is_file() else sorted(p.parent for p in _below(root))
        if not roots:
            rule = f"neither it nor a folder in it holds {LABELS}, as MVSA does"
            raise ConfigError(key, path, rule)
        found, digest = Catalogue((), "label", key), hashlib.sha256()
        self._folders: list[tuple[Path, str]] = []
        self.parts: list[str] = []
        self.left_out = 0
        for folder in roots:
            content = files.read_bytes(folder / LABELS, key)
            digest.update(content)
            for number, labels in _rows(decode(content), str(folder / LABELS), key):
                label = merge(*(majority(list(votes)) for votes in zip(*labels, strict=True)))
                if label is None:
                    self.left_out += 1
                    continue
                found.add(f"{folder.name}/{number}", {"label": label}, LABELS)
                self._folders.append((folder / "data", number))
                self.parts.append("single" if len(labels) == 1 else "multiple")
        if not found.keys:
            raise ConfigError(key, path, "no pair has a clear label")
        check_distinct(found.keys, key, path)
        self._adopt(found.arrays(), digest.hexdigest())
        self.captioned = len(found.keys)

    @property
    def name(self) -> str:
        """Kind and last component of the path."""
        return f"mvsa/{self.root.name}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` bytes, ``captions`` (the text), ``label`` and ``key``.

        Raises:
          ConfigError: one of the two files cannot be read.
        """
        folder, number = self._folders[index]
        text = decode(files.read_bytes(folder / f"{number}.txt", self.key)).strip()
        image = files.read_bytes(folder / f"{number}.jpg", self.key)
        return self._record(index, image, [text] if text else [])


def _below(root: Path) -> list[Path]:
    return list(root.glob(f"*/{LABELS}")) if root.is_dir() else []


def _rows(text: str, where: str, key: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """ID and labels (text, image) of each annotator; the first line may name the columns.

    Raises:
      ConfigError: names the line.
    """
    out = []
    for number, line in enumerate(text.splitlines(), 1):
        cells = re.sub(r"\s*,\s*", ",", line.strip().lower()).split()
        if not cells or cells[0] == "id":
            continue
        labels = [tuple(cell.split(",")) for cell in cells[1:]]
        if not labels or any(len(p) != 2 or not set(p) <= set(CLASSES) for p in labels):
            rule = f"is no line ID, then text,image of {', '.join(CLASSES)} for each annotator"
            raise ConfigError(key, f"{where}:{number}", rule)
        out.append((cells[0], labels))
    return out
