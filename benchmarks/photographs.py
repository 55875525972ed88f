"""JPEGs that cost a decoder what photographs do: noise of all sizes, weaker the finer it is."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

OCTAVES = (4, 8, 16, 32, 64, 128, 256, 512)  # cells along the longer side
QUALITY = 90


def make_photograph(width: int, height: int, seed: int) -> Image.Image:
    """RGB noise with about the spectrum of natural images.

    Args:
      width: pixels.
      height: pixels.
      seed: of the noise.
    """
    rng, longer = np.random.default_rng(seed), max(width, height)
    total = np.zeros((height, width, 3), np.float32)
    for cells in OCTAVES:
        shape = (max(1, height * cells // longer), max(1, width * cells // longer), 3)
        layer = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        smooth = layer.resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(smooth, np.float32) - 128) * (OCTAVES[0] / cells) ** 0.6
    return Image.fromarray(np.clip(128 + total, 0, 255).astype(np.uint8))


def make_folder(folder: Path, images: int, width: int, height: int) -> None:
    """Writes images, every fourth one upright, with five captions each, and ``captions.jsonl``."""
    rows = []
    for number in range(images):
        sides = (height, width) if number % 4 == 3 else (width, height)
        name = f"{number:05d}.jpg"
        make_photograph(*sides, seed=number).save(folder / name, quality=QUALITY)
        texts = [
            f"picture number {number} shows clouds of {colour} noise, seen from nearby"
            for colour in ("red", "green", "blue", "grey", "mixed")
        ]
        rows.append(json.dumps({"image": name, "captions": texts, "label": number % 10}))
    (folder / "captions.jsonl").write_text("\n".join(rows))
