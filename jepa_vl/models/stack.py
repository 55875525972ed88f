"""Stacks of equal layers: how they are compiled, and what their backward pass keeps.

Each layer keeps parameters of its own, ``block_0``, ``block_1``, ..., whichever way it runs:
checkpoints, exports and the sharding table know nothing of this file.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.core import Tracer

from jepa_vl import tree
from jepa_vl.schema import TrainConfig
from jepa_vl.shapes import Array, PyTree
from jepa_vl.sharding import constrain_stacked

# What the backward pass finds; the rest of a layer is computed again.
POLICIES: dict[str, Any] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Plan(NamedTuple):
    """How a stack runs; the numbers that come out are the same up to rounding.

    Attributes:
      scan: compile one layer and loop over them.
      remat: none, dots or full; see ``train.remat``.
      whole: parameters are whole on each device already; see ``train.gather``.
    """

    scan: bool = False
    remat: str = "none"
    whole: bool = False

    @property
    def plain(self) -> bool:
        """Neither looped over nor computed again."""
        return not self.scan and self.remat == "none"


PLAIN = Plan()
_in_place = ContextVar("in_place", default=False)


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """Inside, layers that are neither looped over nor computed again run each as what it is.

    For those who watch modules: a part of the whole, by its name, and traced by itself.
    """
    token = _in_place.set(True)
    try:
        yield
    finally:
        _in_place.reset(token)


def is_in_place(module: nn.Module, how: Plan) -> bool:
    """Must each layer be called as a part of the module, or may all share one function?

    It must where flax makes parameters, and where somebody watches (``in_place``, or flax's own
    ``capture_intermediates``).
    """
    watched = _in_place.get() or module.is_mutable_collection("intermediates")
    return module.is_initializing() or (watched and how.plain)


def plan(config: TrainConfig) -> Plan:
    """The plan of a resolved configuration."""
    return Plan(config.scan_layers, config.remat, config.gather == "step")


Layer = Callable[[PyTree, Array], tuple[Array, Any]]


def fold(
    layer: Layer, params: Sequence[PyTree], x: Array, how: Plan, dtype: Any
) -> tuple[Array, Any]:
    """Sends x through one layer after the other.

    Args:
      layer: ``(parameters, x) -> (x, out)``.
      params: of each layer, all shaped alike.
      x: what enters the first.
      how: to run them.
      dtype: of matrix products.

    Returns:
      What leaves the last, and each layer's ``out``, stacked on a new axis 0.
    """
    scan = how.scan and len(params) > 1
    if how.remat != "none":
        # A loop already keeps the compiler from merging the two computations.
        layer = jax.checkpoint(layer, policy=POLICIES[how.remat], prevent_cse=not scan)
    if scan:
        return jax.lax.scan(lambda x, own: layer(own, x), x, _stacked(params, how, dtype))
    if isinstance(x, Tracer):  # else jit would compile it, and again in the next call
        layer = jax.jit(layer)  # traced once for all; the compiler puts each in its place
    outs = []
    for own in params:
        x, out = layer(own, x)
        outs.append(out)
    return x, jax.tree.map(lambda *parts: jnp.stack(parts), *outs) if outs else None


def _stacked(params: Sequence[PyTree], how: Plan, dtype: Any) -> PyTree:
    """Layers as one, each leaf [L, ...]; kernels as they enter their products: half the bytes."""

    def stack(name: str, *leaves: Array) -> Array:
        kernels = name.endswith("kernel")
        return jnp.stack([leaf.astype(dtype) if kernels else leaf for leaf in leaves])

    stacked = tree.map_named(stack, *params)
    return stacked if how.whole else constrain_stacked(stacked)


def run_blocks(
    parent: nn.Module, make: Callable[..., nn.Module], depth: int, x: Array, *args: Any, how: Plan
) -> Array:
    """x after ``block_0`` to ``block_{depth - 1}`` of a module; to be called as a part of it.

    Args:
      parent: the module; has a ``dtype``.
      make: builds a block, a module of ``(x, *args) -> x``, from flax's ``name`` and ``parent``.
      depth: number of blocks.
      x: what enters the first.
      *args: what all of them see.
      how: to run them.
    """
    if is_in_place(parent, how):
        for i in range(depth):
            x = make(name=f"block_{i}")(x, *args)  # pyright: ignore[reportCallIssue]
        return x
    block, own = make(parent=None), parent.variables["params"]

    def layer(params: PyTree, x: Array) -> tuple[Array, None]:
        return block.apply({"params": params}, x, *args), None  # pyright: ignore[reportReturnType]

    params = [own[f"block_{i}"] for i in range(depth)]
    return fold(layer, params, x, how, parent.dtype)[0]  # pyright: ignore[reportAttributeAccessIssue]
