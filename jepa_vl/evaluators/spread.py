"""Training of heads over a mesh: each device computes its share of every batch."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jepa_vl import sharding
from jepa_vl.evaluators import progress
from jepa_vl.evaluators.features import from_all_hosts
from jepa_vl.schema import MeshConfig
from jepa_vl.shapes import Array, PyTree


def rows(data: Array, *index: Array) -> Array:
    """The rows of a batch, ``data[index]``, spread over the mesh where it divides them."""
    found = data[index]
    return sharding.constrain(found, "batch", *[None] * (found.ndim - 1))


def over(mesh: Mesh | None) -> Mesh:
    """The mesh's devices, for data alone: heads are whole on each; None: one of this process."""
    if mesh is None:
        return sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    return Mesh(mesh.devices.reshape(-1, 1, 1), mesh.axis_names, axis_types=mesh.axis_types)


def put(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays that are the same in all processes, whole on every device."""
    place = sharding.replicated(mesh)
    return jax.tree.map(lambda x: from_all_hosts(np.asarray(x), place), tree)


def whole(tree: PyTree) -> PyTree:
    """Arrays of all processes, wherever their parts lie, as numpy arrays; all must call it."""

    def of(x: Array) -> Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(of, tree)


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

    def run(state: PyTree, data: PyTree, part: PyTree) -> PyTree:
        return jax.lax.scan(lambda now, batch: (step(now, data, batch), None), state, part)[0]

    compiled = jax.jit(run, out_shardings=sharding.replicated(devices))
    with jax.set_mesh(devices):
        state, data = put(state, devices), put(data, devices)
        for part in parts:
            state = jax.block_until_ready(compiled(state, data, put(part, devices)))
            progress.beat()
    return jax.device_get(state)
