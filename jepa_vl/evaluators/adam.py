"""AdamW (Loshchilov & Hutter 2019) with learning rate and decay as arguments, to map over heads."""

from typing import Any

import jax
import optax

from jepa_vl.shapes import PyTree

_MOMENTS = optax.scale_by_adam(0.9, 0.999, 1e-8)  # torch's defaults


def start(params: PyTree) -> Any:
    """Moments of zero."""
    return _MOMENTS.init(params)


def update(
    params: PyTree, grads: PyTree, moments: Any, rate: Any, decay: PyTree | float
) -> tuple[Any, Any]:
    """One step.

    Args:
      params, grads: equal trees.
      moments: of :func:`start`.
      rate: learning rate of all, or a tree of one for each leaf.
      decay: weight decay of all, or a tree of one for each leaf.

    Returns:
      Parameters and moments.
    """
    change, moments = _MOMENTS.update(grads, moments)
    rates, decays = (
        x if isinstance(x, type(params)) else jax.tree.map(lambda _, x=x: x, params)
        for x in (rate, decay)
    )
    moved = jax.tree.map(lambda p, c, r, d: p - r * (c + d * p), params, change, rates, decays)
    return moved, moments
