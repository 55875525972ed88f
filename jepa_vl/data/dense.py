"""Images with their masks at the sizes that segmentation is trained and tested on."""

import numpy as np
from PIL import Image

from jepa_vl.data.segments import IGNORED
from jepa_vl.shapes import Array

SCALES = (0.5, 2.0)  # of the short side over the crop's, in training


def scaled(image: Array, mask: Array, short: int) -> tuple[Array, Array]:
    """Both with a short side of so many pixels: bilinear, and the nearest of a mask.

    Args:
      image: uint8 [H, W, 3]; mask: uint8 or uint16 [H, W].
      short: pixels.
    """
    height, width = mask.shape
    factor = short / min(height, width)
    size = max(short, round(width * factor)), max(short, round(height * factor))
    return resized(image, size), resized_mask(mask, size)


def resized(image: Array, size: tuple[int, int]) -> Array:
    """uint8 [H, W, 3] at another width and height, antialiased and bilinear."""
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def resized_mask(mask: Array, size: tuple[int, int]) -> Array:
    """A mask at another width and height: the number at the centre of each pixel."""
    width, height = size
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    return mask[rows[:, None], columns[None]]


def random_crop(
    image: Array, mask: Array, size: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """A square of a randomly scaled image, mirrored by chance.

    Where the image is smaller than the square, it is filled up with black that has no class.

    Args:
      image: uint8 [H, W, 3]; mask: [H, W].
      size: S.
      rng: of the crop.

    Returns:
      uint8 [S, S, 3], and the mask [S, S].
    """
    low, high = SCALES
    image, mask = scaled(image, mask, max(1, round(size * rng.uniform(low, high))))
    missing = [max(0, size - side) for side in mask.shape]
    fill = ((0, missing[0]), (0, missing[1]))
    image = np.pad(image, (*fill, (0, 0)))
    mask = np.pad(mask, fill, constant_values=IGNORED)
    top, left = (int(rng.integers(side - size + 1)) for side in mask.shape)
    image, mask = (x[top : top + size, left : left + size] for x in (image, mask))
    return (image[:, ::-1], mask[:, ::-1]) if rng.random() < 0.5 else (image, mask)


def centre_crop(image: Array, mask: Array, size: int) -> tuple[Array, Array]:
    """The centre square, its side S."""
    image, mask = scaled(image, mask, size)
    top, left = ((side - size) // 2 for side in mask.shape)
    return tuple(x[top : top + size, left : left + size] for x in (image, mask))  # pyright: ignore[reportReturnType]


def windows(height: int, width: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Top left corners of the squares that cover an image, the last ones flush with its edges."""

    def along(side: int) -> list[int]:
        return [*range(0, side - size, stride), side - size]

    return [(top, left) for top in along(height) for left in along(width)]
