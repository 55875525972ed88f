"""Features of labelled images for trained probes: crops to learn from, centres to judge."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from jepa_vl.config import Config
from jepa_vl.data import faults, transforms
from jepa_vl.data.sources import Record, Source
from jepa_vl.evaluators.base import Features
from jepa_vl.evaluators.network import Network
from jepa_vl.shapes import Array

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # torchvision's RandomResizedCrop
WORDS = f"area {SCALE[0]} to {SCALE[1]}, aspect 3/4 to 4/3, every second one mirrored by chance"


@dataclasses.dataclass(frozen=True)
class Cropped:
    """Features to train heads on, and to judge them.

    Attributes:
      views: float32 [n, V, ...] of V crops of each training image (or of its centre, V = 1).
      centres: of the centres of both parts, in the same order of images, and the labels.
    """

    views: Array
    centres: Features


def crop(view: int, config: Config, source: Source, index: int) -> tuple[Record, Array]:
    """A record and a random crop of it: uint8 [S, S, 3], a function of (seed, index, view) alone.

    Raises:
      BadSample: it cannot be read or decoded.
    """
    with faults.reading():
        record = source[index]
    rng = np.random.default_rng([config.seed, index, view])
    size, most = config.encoder.image_size, config.data.max_pixels
    key, image = record["key"], record["image"]
    made = transforms.random_crop(image, size, SCALE, RATIO, rng, key, most=most)
    return record, made[:, ::-1] if rng.random() < 0.5 else made


def read(network: Network, embed: Callable[[Array], Array]) -> Cropped:
    """Reads ``eval.crops`` crops of each training image, and the centres of both parts.

    Args:
      network: whose labelled images are read.
      embed: uint8 [b, H, W, 3] -> float [b, ...].

    Raises:
      ConfigError: a part has no labelled image, or none that can be read.
    """
    reader, count = network.labelled, network.config.eval.crops
    centres = reader.read(embed)
    looks = [functools.partial(crop, view) for view in range(count)]
    views = [reader.read_part(0, embed, look)[0] for look in looks] or [centres.train]
    return Cropped(np.stack(views, axis=1), centres)


def describe(config: Config) -> dict[str, str]:
    """What a protocol says of them."""
    count = config.eval.crops
    return {"training_images": f"{count} crops an image: {WORDS}" if count else "centres"}
