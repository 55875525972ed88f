"""What a run trains on, before any network sees it: do images differ, are captions of theirs?

A decoder that returns grey, a folder of one picture over and over, captions joined to images by
the wrong key: a network learns from all of them without a complaint, and it takes hours until the
features tell. Crops and captions tell at once.
"""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jepa_vl.config import Config, reads_text
from jepa_vl.data.pipeline import Batch, TrainElement
from jepa_vl.data.sources import Source
from jepa_vl.shapes import Array

FEWEST = 400  # images, of which a pairing can be told
PERMUTATIONS = 200
GRID, WAVES, ANGLES = 4, (0.02, 0.05, 0.1, 0.18, 0.28, 0.5), 4
BUCKETS = 512  # of words
TAG = 0x696E7461  # keeps this choice of images apart from other draws of the seed


def measure(config: Config, source: Source) -> dict[str, float]:
    """Of ``health.data_images`` training images, as a step would get them.

    Returns:
      ``data/images``, how many. ``data/spread``: standard deviation of pixels (1.0: from black to
      white) over the images at one place or over the places of one image, the smaller of the two
      means. ``data/pairing``: how far colours, contrasts and textures of the images go together
      with words of their captions, in standard deviations from what they do with captions of other
      images: a permutation test of the Hilbert-Schmidt independence criterion (Gretton et al.,
      2005) with linear kernels; about 0 where captions do not belong to the images. It is absent
      without captions, and of fewer than 400 images. {}: none are asked for.
    """
    rng = np.random.default_rng([config.seed, TAG])
    chosen = rng.permutation(len(source))[: config.health.data_images].tolist()
    if not chosen:
        return {}
    element = TrainElement(config, source)

    def look(index: int) -> tuple[Array, float, Array, Array | None]:
        own = np.random.default_rng([config.seed, TAG, index])
        batch = element({"index": index, "position": index}, own)
        image = np.asarray(batch["image"], np.float32) / 255
        place = _moments(image.reshape(-1, 3))[1].mean()
        return image, float(place), of_image(image), of_captions(batch)

    total = square = np.zeros(())
    within, images, captions = [], [], []
    with ThreadPoolExecutor(config.data.threads) as pool:
        for image, place, seen, read in pool.map(look, chosen):
            total, square = total + image, square + np.square(image, dtype=np.float64)
            within.append(place)
            images.append(seen)
            captions.append(read)
    count = len(chosen)
    variance = np.maximum(square / count - np.square(total / count, dtype=np.float64), 0)
    spread = min(float(np.sqrt(variance).mean()), float(np.mean(within)))
    out = {"data/images": float(count), "data/spread": spread}
    if count >= FEWEST and captions[0] is not None:
        y = words_apart(np.stack(captions))
        pairing = dependence(alike(np.stack(images)), y, rng)
        out |= {"data/pairing": pairing} if np.isfinite(pairing) else {}
    return out


def of_image(image: Array) -> Array:
    """Colour and contrast of the cells of a grid, and the power of waves by length and direction.

    Args:
      image: float32 [H, W, 3].

    Returns:
      float64 [F].
    """
    rows, columns = (np.array_split(np.arange(size), GRID) for size in image.shape[:2])
    cells = [image[np.ix_(r, c)].reshape(-1, 3) for r in rows for c in columns]
    means, stds = np.concatenate([_moments(cell) for cell in cells], axis=1)
    grey = image @ np.full(3, 1 / 3, np.float32)
    power = np.square(np.abs(np.fft.fft2(grey - grey.mean())))
    bands = [power[band] for band in _bands(*grey.shape)]
    logs = [np.log(band.mean() + 1e-3) if band.size else 0.0 for band in bands]
    return np.concatenate([means, stds, logs]).astype(np.float64)


def _moments(pixels: Array) -> Array:
    """Mean and standard deviation of each colour, [2, 3]; pixels: float32 [n, 3].

    By products, which are several times as fast as reductions over rows of three.
    """
    share = np.full(len(pixels), 1 / len(pixels), np.float32)
    apart = pixels - pixels[0]  # 0 where all are one, and so is what comes out
    mean = share @ apart
    return np.stack([mean + pixels[0], np.sqrt(np.maximum(share @ apart**2 - mean**2, 0))])


@functools.cache  # all crops are of one size
def _bands(height: int, width: int) -> list[Array]:
    """Which waves of a spectrum have about one length and direction, bool [H, W] each."""
    y, x = np.meshgrid(*(np.fft.fftfreq(size) for size in (height, width)), indexing="ij")
    wave, angle = np.hypot(y, x), np.floor(np.arctan2(y, x) % np.pi / np.pi * ANGLES)
    return [
        (wave >= low) & (wave < high) & (angle == k)
        for low, high in itertools.pairwise(WAVES)
        for k in range(ANGLES)
    ]


def of_captions(batch: Batch) -> Array | None:
    """Which words are there, or the mean of their embeddings: float64 [V]; None: no captions."""
    if "word_mask" not in batch:
        return None
    valid = batch["word_mask"].astype(bool)
    if "word_states" in batch:
        states = batch["word_states"][valid].astype(np.float64)
        return states.mean(axis=0) if len(states) else np.zeros(batch["word_states"].shape[-1])
    there = np.zeros(BUCKETS)
    there[batch["word_ids"][valid] % BUCKETS] = 1.0
    return there


def alike(x: Array) -> Array:
    """Each feature with unit variance over the images, [n, F]; those that never differ are 0."""
    std = x.std(axis=0)
    return np.where(std > 1e-6, (x - x.mean(axis=0)) / np.maximum(std, 1e-6), 0.0)


def words_apart(x: Array) -> Array:
    """What is in every caption says nothing: centred rows of unit length, [n, V]."""
    x = x - x.mean(axis=0)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)


def dependence(x: Array, y: Array, rng: np.random.Generator) -> float:
    """How many standard deviations the HSIC of x [n, F] and y [n, V] lies above that by chance.

    Returns:
      NaN, where one of them is the same for all.
    """
    a, b = ((z - z.mean(axis=0)) @ (z - z.mean(axis=0)).T for z in (x, y))
    by_chance = []
    for _ in range(PERMUTATIONS):
        order = rng.permutation(len(x))
        by_chance.append(float(np.vdot(a, b[np.ix_(order, order)])))
    spread = float(np.std(by_chance))
    if spread <= 1e-12 * max(float(np.vdot(a, a) * np.vdot(b, b)) ** 0.5, 1e-300):
        return float("nan")
    return (float(np.vdot(a, b)) - float(np.mean(by_chance))) / spread


def told(found: dict[str, float], config: Config) -> str:
    """One line for people of what :func:`measure` has found."""
    if not found:
        return "no training image was looked at (health.data_images=0)"
    line = f"{found['data/images']:.0f} training images: spread {found['data/spread']:.3f}"
    line += " of their pixels (0: all one)"
    pairing = found.get("data/pairing")
    if pairing is not None:
        return f"{line}, captions belong to them with z = {pairing:.1f} (about 0: they do not)"
    own = config.data.captions == "own" and reads_text(config)
    if own and found["data/images"] < FEWEST:
        return f"{line}; whether captions are theirs is tested from {FEWEST} images on"
    return line
