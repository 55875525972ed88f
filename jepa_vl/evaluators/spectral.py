"""Spectra of features: has the representation collapsed?"""

import numpy as np

from jepa_vl.shapes import Array


def rankme(features: Array, eps: float = 1e-7) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885): exp of the entropy of the singular values.

    Args:
      features: float [n, D], not centred. The value is at most min(n, D); compare equal n alone.
      eps: added to each share, as in the paper.
    """
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    share = values / max(values.sum(), 1e-30) + eps
    return float(np.exp(-np.sum(share * np.log(share))))
