"""CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726), the variant that captions are scored by."""

import collections
import math
from collections.abc import Sequence

import numpy as np

from jepa_vl.data.captions import words
from jepa_vl.shapes import Array

ORDERS = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # of the penalty for another length, in words
SCALE = 10.0

Gram = tuple[str, ...]


def grams(text: str) -> collections.Counter[Gram]:
    """Counts of all n-grams of a caption, in lower case, without punctuation."""
    said = words(text)
    return collections.Counter(
        tuple(said[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(said) - n + 1)
    )


def cider(found: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """The score of each image's caption: float64 [m], whose mean is CIDEr-D.

    Equal weights of the four orders; term frequencies are counts, document frequencies the images
    whose references hold the n-gram, log(m) the number of images; those of a candidate are cut to
    the reference's; a Gaussian punishes another length; times 10, mean over references.

    Args:
      found: a caption for each image.
      references: captions of people for each image, at least one.
    """
    counted = [[grams(text) for text in texts] for texts in references]
    frequency = collections.Counter(gram for texts in counted for gram in set().union(*texts))
    log_images = math.log(max(len(references), 1))
    out = []
    for text, texts in zip(found, counted, strict=True):
        mine, length = _vector(grams(text), frequency, log_images), len(words(text))
        scores = [
            _similarity(mine, _vector(own, frequency, log_images), length - _length(own))
            for own in texts
        ]
        out.append(SCALE * float(np.mean(scores)))
    return np.array(out)


def _length(counts: collections.Counter[Gram]) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 1)


def _vector(
    counts: collections.Counter[Gram], frequency: collections.Counter[Gram], log_images: float
) -> dict[Gram, float]:
    """Counts times inverse document frequency."""
    return {
        gram: count * (log_images - math.log(max(frequency[gram], 1)))
        for gram, count in counts.items()
    }


def _similarity(mine: dict[Gram, float], theirs: dict[Gram, float], longer: int) -> float:
    """Mean over the orders of the clipped cosine, times the penalty."""
    total = 0.0
    for order in range(1, ORDERS + 1):
        a = {gram: value for gram, value in mine.items() if len(gram) == order}
        b = {gram: value for gram, value in theirs.items() if len(gram) == order}
        product = sum(min(value, b[gram]) * b[gram] for gram, value in a.items() if gram in b)
        norms = [math.sqrt(sum(v * v for v in vector.values())) for vector in (a, b)]
        total += product / (norms[0] * norms[1]) if all(norms) else 0.0
    return total / ORDERS * math.exp(-(longer**2) / (2 * SIGMA**2))
