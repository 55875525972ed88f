"""One export: files, the check against our own features, the card; a folder or nothing."""

import json
import os
import shutil
import tempfile
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
    if out.exists():
        raise ConfigError("--out", str(out), "is there already; name a new folder")
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        FORMATS[name].write(encoder, temporary)
        told = check(encoder, name, temporary, images)
        (temporary / "README.md").write_text(
            card.write(encoder, name, FORMATS[name], told._asdict())
        )
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return told


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
    ours = encoder.features(images)
    if theirs.shape != ours.shape:
        raise Differs(f"features are {theirs.shape}, not {ours.shape}")
    gap, scale = np.abs(theirs.astype(np.float64) - ours), float(np.abs(ours).max())
    told = Told(float(gap.max()), float(gap.mean()), scale, versions)
    if not told.largest <= TOLERANCE * max(1.0, scale):  # NaN is no equality
        rule = f"above {TOLERANCE:g} of the largest feature, {scale:.3g}"
        raise Differs(f"features differ by up to {told.largest:.3g}, {rule}")
    return told
