"""Pooled features on disk: the encoder, the images and the transform name them.

The same features then serve every protocol, today's and tomorrow's. A damaged file is computed
again; nothing is ever removed.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl import __version__
from jepa_vl.data.files import cache_folder, write_whole
from jepa_vl.evaluators.base import Features
from jepa_vl.evaluators.features import Reader

FOLDER = "features"  # of the cache
ARRAYS = ("train", "train_labels", "held_out", "held_out_labels")
UNREADABLE = ("bad_train", "bad_held_out")  # indices of images that could not be read


class Cache:
    """Files of a folder, one for each encoder and set of images."""

    def __init__(self, folder: Path | None = None):
        """``folder``: by default ``features`` in $JEPA_VL_CACHE or the user's cache."""
        self.folder = folder or cache_folder() / FOLDER
        self.found = 0  # times that nothing had to be computed

    def labelled(
        self, reader: Reader, key: dict[str, Any], compute: Callable[[], Features]
    ) -> Features:
        """Features of a reader's images, computed where they are not known yet.

        Args:
          reader: told which images cannot be read, where that is known.
          key: all that the features depend on beside the images; fit for JSON.
          compute: reads the images.
        """
        words = {**key, "data": reader.data_hash(), "size": reader.config.encoder.image_size}
        told = json.dumps({**words, "version": __version__}, sort_keys=True)
        path = self.folder / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.npz"
        known = _read(path)
        if known is not None:
            self.found += 1
            reader.leave_out([known[name].tolist() for name in UNREADABLE])
            return Features(*(known[name] for name in ARRAYS))
        found = compute()
        arrays = {name: getattr(found, name) for name in ARRAYS}
        arrays |= dict(zip(UNREADABLE, map(np.array, reader.left_out()), strict=True))
        write_whole(path, lambda file: np.savez(file, **arrays))
        return found


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None: there is none, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in (*ARRAYS, *UNREADABLE)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
