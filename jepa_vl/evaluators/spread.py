"""Steps of many heads over a mesh: each device computes its share of every batch."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from jepa_vl import sharding
from jepa_vl.evaluators.features import from_all_hosts
from jepa_vl.schema import MeshConfig
from jepa_vl.shapes import Array, PyTree


def rows(data: Array, *index: Array) -> Array:
    """The rows of a batch, ``data[index]``, spread over the mesh where it divides them."""
    found = data[index]
    return sharding.constrain(found, "batch", *[None] * (found.ndim - 1))


def over(mesh: Mesh | None) -> Mesh:
    """The mesh itself; None: one device of this process."""
    return mesh or sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])


def scan(
    step: Callable[[PyTree, PyTree, PyTree], PyTree],
    state: PyTree,
    data: PyTree,
    parts: Iterable[PyTree],
    mesh: Mesh | None,
) -> PyTree:
    """Runs steps one after the other, in one compiled loop for each part of them.

    Args:
      step: (state, data, batch) -> state; takes its rows by :func:`rows`.
      state, data: arrays, the same in all processes; every device holds them whole.
      parts: batches, with the steps as leading axis of each array.
      mesh: devices that share each batch; None: one.

    Returns:
      The state after the last step, numpy arrays.
    """
    devices = over(mesh)
    place = sharding.replicated(devices)

    def put(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: from_all_hosts(np.asarray(x), place), tree)

    def run(state: PyTree, data: PyTree, part: PyTree) -> PyTree:
        return jax.lax.scan(lambda now, batch: (step(now, data, batch), None), state, part)[0]

    compiled = jax.jit(run, out_shardings=place)
    with jax.set_mesh(devices):
        state, data = put(state), put(data)
        for part in parts:
            state = compiled(state, data, put(part))
    return jax.device_get(state)
