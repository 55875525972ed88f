"""Intersection over union of classes, out of counts of pixels."""

import numpy as np

from jepa_vl.data.segments import IGNORED
from jepa_vl.evaluators.intervals import ends, resampled
from jepa_vl.shapes import Array


def reduced(mask: Array, reduce_zero: bool) -> Array:
    """Class numbers as the head has them: int32 [H, W], 255 for none.

    With ``reduce_zero`` 0 is none and the others are one less, as ADE20K is scored.
    """
    mask = mask.astype(np.int32)
    if reduce_zero:
        mask = np.where((mask == 0) | (mask == IGNORED), IGNORED + 1, mask) - 1
    return mask


def confusion(found: Array, truth: Array, classes: int) -> Array:
    """Pixels of true class i that were found to be j: int64 [C, C]; those without a class aside."""
    known = truth != IGNORED
    pairs = truth[known].astype(np.int64) * classes + found[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def scores(counts: Array) -> dict[str, float]:
    """Of a sum of confusions: mIoU, mean class accuracy, and accuracy of pixels.

    The means are over classes that occur, in the truth or among what was found (for accuracy: in
    the truth); ``classes_scored`` says how many of the former.
    """
    right, true, said = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    union = true + said - right
    occur, have = union > 0, true > 0
    return {
        "miou": float((right[occur] / union[occur]).mean()) if occur.any() else 0.0,
        "class_accuracy": float((right[have] / true[have]).mean()) if have.any() else 0.0,
        "pixel_accuracy": float(right.sum() / max(1, true.sum())),
        "classes_scored": float(occur.sum()),
    }


def interval(each: Array) -> tuple[float, float]:
    """Of the mIoU, by resampling images: confusions of each image, [m, C, C]."""
    right = np.einsum("mcc->cm", each)
    union = each.sum(axis=2).T + each.sum(axis=1).T - right
    classes = len(right)
    drawn = resampled(np.concatenate([right, union]))
    right, union = drawn[:, :classes], drawn[:, classes:]
    share = np.where(union > 0, right / np.where(union > 0, union, 1.0), np.nan)
    return ends(np.nanmean(share, axis=1))
