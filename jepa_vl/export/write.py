"""One export: files, the check against our own features, the card; a folder or nothing."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.export import FORMATS, card, process
from jepa_vl.export.base import Encoder
from jepa_vl.shapes import Array

TOLERANCE = 1e-4  # float32; of the largest feature, where that is above 1
BEFORE = "import numpy\n\nimages = numpy.load(given)\n"
AFTER = """
import importlib.metadata
import json

numpy.save(found, features)
print(json.dumps({name: importlib.metadata.version(name) for name in library.split()}))
"""


class Differs(Exception):
    """An export whose features are not ours; says by how much."""


class Told(NamedTuple):
    """What the check found.

    Attributes:
      largest, mean: absolute differences of features.
      scale: the largest feature.
      versions: of the libraries that were asked.
    """

    largest: float
    mean: float
    scale: float
    versions: dict[str, str]


def export(encoder: Encoder, name: str, out: Path, images: Array) -> Told:
    """Writes a folder in a format, after its own library has given the same features from it.

    Args:
      encoder: what is exported.
      name: of :data:`FORMATS`.
      out: folder that does not exist yet; it appears when all is done.
      images: uint8 [n, H, W, 3], that both encode.

    Raises:
      ConfigError: libraries are absent or refuse the files, or the folder is there already.
      Differs: the features differ by more than :data:`TOLERANCE`; no folder is left.
    """
    process.require(name, FORMATS[name].needs, FORMATS[name].extra)
    with appearing(out) as folder:
        FORMATS[name].write(encoder, folder)
        told = check(encoder, name, folder, images)
        text = card.write(encoder, name, FORMATS[name], told._asdict())
        (folder / "README.md").write_text(text)
    return told


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name when the block ends well and else is removed.

    Raises:
      ConfigError: the name is taken.
    """
    if out.exists():
        raise ConfigError("--out", str(out), "is there already; name a new folder")
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check(encoder: Encoder, name: str, folder: Path, images: Array) -> Told:
    """Compares the features that a fresh process computes from a folder with ours.

    Raises:
      ConfigError: the library refuses the files.
      Differs: see :func:`export`.
    """
    form = FORMATS[name]
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch, "images.npy"), Path(scratch, "features.npy")
        np.save(given, images)
        values = {"folder": str(folder), "given": str(given), "found": str(found)}
        values["library"] = " ".join(form.library)
        said = process.run(name, BEFORE + form.load + AFTER, values)
        theirs = np.load(found)
    versions: dict[str, Any] = json.loads(said.splitlines()[-1])
    return compare({"features": theirs}, {"features": encoder.features(images)}, versions)


def compare(theirs: dict[str, Array], ours: dict[str, Array], versions: dict[str, str]) -> Told:
    """The differences of arrays of the same names; ``scale`` is that of the largest number.

    Raises:
      Differs: names or shapes are not the same, or numbers differ by more than :data:`TOLERANCE`.
    """
    if theirs.keys() != ours.keys():
        raise Differs(f"there are {', '.join(theirs)}, not {', '.join(ours)}")
    gaps, scales = [], []
    for name, wanted in ours.items():
        if theirs[name].shape != wanted.shape:
            raise Differs(f"{name} are {theirs[name].shape}, not {wanted.shape}")
        gap, scale = np.abs(theirs[name].astype(np.float64) - wanted), float(np.abs(wanted).max())
        if not gap.max() <= TOLERANCE * max(1.0, scale):  # NaN is no equality
            rule = f"above {TOLERANCE:g} of the largest one, {scale:.3g}"
            raise Differs(f"{name} differ by up to {gap.max():.3g}, {rule}")
        gaps.append(gap.ravel())
        scales.append(scale)
    every = np.concatenate(gaps)
    return Told(float(every.max()), float(every.mean()), max(scales), versions)
