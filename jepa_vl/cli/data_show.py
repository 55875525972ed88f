"""``jepa-vl data show``: a contact sheet of a data set."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jepa_vl.cli import configs
from jepa_vl.cli.numbers import whole
from jepa_vl.cli.train import writable
from jepa_vl.config import ConfigError
from jepa_vl.shapes import Array

SHOWN, MOST = 12, 400
SIDE = 320  # pixels of an image on the sheet


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Writes the picture and prints its path.

    Raises:
      ConfigError: a bad configuration, option or data, or a picture that cannot be written.
    """
    config = configs.load(args.config, overrides)
    limit = SHOWN if args.limit is None else whole("--limit", args.limit, 1)
    if limit > MOST:
        raise ConfigError("--limit", args.limit, f"at most {MOST} images are one picture")
    out = Path(args.out or "").expanduser()
    if not args.out or out.is_dir() or out.suffix.lower() != ".png":
        raise ConfigError("--out", args.out or "", "give FILE.png: the picture to write")
    writable("--out", str(out.parent))
    from jepa_vl.data import sources, survey, transforms
    from jepa_vl.report import figures

    train, held_out = sources.open_sources(config)
    images, titles, captions = [], [], []
    groups = survey.groups(train, held_out, limit)
    groups.pop("held-out")
    share = max(1, limit // len(groups))  # of a mixture, as many of each source
    for group in groups.values():
        for index in group.indices[survey.spread(len(group.indices), share)].tolist():
            record = group.source[index]
            images.append(_framed(transforms.decode(record["image"], record["key"])))
            label = record["label"]
            titles.append((record["key"], train.classes[label] if label >= 0 else "no label"))
            captions.append(record["captions"])
    out.parent.mkdir(parents=True, exist_ok=True)
    title = f"{train.name}: {len(images)} of {len(train):,} images"
    sheet = figures.contact_sheet(np.stack(images), titles, captions, title)
    out.write_bytes(figures.to_png(sheet))
    print(out)
    return 0


def _framed(image: Array) -> Array:
    """The whole image, as large as fits into the middle of a white square: uint8 [S, S, 3]."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    frame = Image.new("RGB", (SIDE, SIDE), "white")
    inside = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    frame.paste(inside, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return np.asarray(frame)
