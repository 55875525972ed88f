"""Spectra and spreads of features: has the representation collapsed?

All functions read float [n, D], one row an image. They depend on n: compare equal n alone.
"""

import numpy as np

from jepa_vl.evaluators.features import unit
from jepa_vl.shapes import Array

ROUNDING = 1e-6  # of float32 features; what is smaller beside their norm is no signal


def rankme(features: Array, eps: float = 1e-7) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885): exp of the entropy of the singular values.

    Args:
      features: float [n, D], not centred. The value is at most min(n, D); compare equal n alone.
      eps: added to each share, as in the paper.
    """
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    share = values / max(values.sum(), 1e-30) + eps
    return float(np.exp(-np.sum(share * np.log(share))))


def effective_rank(features: Array) -> float:
    """Effective rank (Roy & Vetterli 2007) of centred features; 0 where all rows are the same.

    RankMe without eps, and without the mean, which all images share and which outweighs what sets
    them apart.
    """
    x = features.astype(np.float64)
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    values = values[values > ROUNDING * np.linalg.norm(x)]
    if not len(values):
        return 0.0
    share = values / values.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def spread(features: Array) -> float:
    """Standard deviation over images, mean over dimensions; 0 is collapse."""
    return float(features.astype(np.float64).std(axis=0).mean())


def mean_cosine(features: Array) -> float:
    """Mean cosine of two different images, over all pairs, not centred; 1 is collapse."""
    rows = unit(features.astype(np.float64))
    n = len(rows)
    own = np.square(rows).sum()  # of rows with themselves
    return float((np.square(rows.sum(axis=0)).sum() - own) / max(n * (n - 1), 1))


def lidar(views: Array, delta: float = 1e-4, eps: float = 1e-7) -> float:
    """LiDAR (Thilak et al. 2023, arXiv 2312.04000): RankMe's count on the eigenvalues of LDA.

    Directions in which views of one image differ as much as images do count little, however large
    they are: RankMe takes them for content.

    Args:
      views: float [n, q, D], features of q augmented views of n images, each image a class.
      delta: added to the diagonal of the covariance within classes; it knows the features' scale.
      eps: added to each share.
    """
    x = views.astype(np.float64)
    centres = x.mean(axis=1)
    inner = (x - centres[:, None]).reshape(-1, x.shape[-1])
    outer = centres - centres.mean(axis=0)
    within = inner.T @ inner / len(inner) + delta * np.eye(x.shape[-1])
    values, vectors = np.linalg.eigh(within)
    whitened = outer @ (vectors / np.sqrt(values))
    values = np.square(np.linalg.svd(whitened, compute_uv=False))
    share = values / max(values.sum(), 1e-30) + eps
    return float(np.exp(-np.sum(share * np.log(share))))
