"""Real data and golden numbers that lie beside the checkout, never inside it."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa_vl.data.transforms import centre_crop


def shared(relative: str) -> Path:
    """A file or folder of the shared material.

    Looks in $JEPA_VL_SHARED, else in ``shared`` beside the checkout. Where it is absent the test is
    skipped; with $CI set it fails, so that a promise cannot go unchecked there unseen.
    """
    root = os.environ.get("JEPA_VL_SHARED") or Path(__file__).parents[2] / "shared"
    path = Path(root) / relative
    if path.exists():
        return path
    reason = f"{path} is absent (set JEPA_VL_SHARED)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def photographs(size, count=4):
    """COCO's, cropped as evaluation crops them: uint8 [n, size, size, 3]."""
    files = sorted(shared("data/coco/images").glob("*.jpg"))[:count]
    crops = [centre_crop(np.asarray(Image.open(file).convert("RGB")), size) for file in files]
    return np.stack(crops)
