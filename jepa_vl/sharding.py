"""The mesh, and where every array lives on it.

Two tables: parameter name -> logical axes, logical axis -> mesh axes. Parameters, the EMA target
and both moments of Adam end in the same names, so one table serves them all. One device is a mesh
of one.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jepa_vl import hardware, tree
from jepa_vl.config import ConfigError
from jepa_vl.schema import MeshConfig, TrainConfig
from jepa_vl.shapes import Array, PyTree

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# Each parameter name matches exactly one row.
PARAMETER_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"/patch_kernel$", (None, None, None, "embed")),
    (r"/(q|k|v|fc1|gate)/kernel$", ("embed", "hidden")),
    (r"/(out|fc2)/kernel$", ("hidden", "embed")),
    (r"/(embed|project|modulation)/kernel$", (None, "embed")),
    (r"/word_embedding$", ("vocabulary", None)),
    (r"/(word_position|word_type|relative_bias|position)$", (None, None)),
    (r"/(mask_token|cls|query)$", (None,)),
    (r"/(bias|scale|patch_bias)$", (None,)),
    (r"^/recent$", (None,)),
)
LOGICAL_TO_MESH: dict[str, str | tuple[str, ...]] = {
    "batch": BATCH,
    "embed": "fsdp",
    "vocabulary": "fsdp",
    "hidden": "tensor",
    "heads": "tensor",
}
# Activations keep their width whole: "embed" shards parameters only.
ACTIVATION_TO_MESH = {**LOGICAL_TO_MESH, "embed": None}


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Builds the (data, fsdp, tensor) mesh; axis data spans the slices of a multi-slice job.

    Neighbours along fsdp and tensor are neighbours in the slice's network.

    Args:
      config: sizes; ``data = -1`` takes all devices that remain, ``fsdp = 0`` what
        :data:`hardware.CHIPS` says of the chip.
      devices: defaults to all devices of all processes.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or an axis other than data
        would cross slices.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    shape = mesh_shape(config, len(devices), slices, devices[0].device_kind)
    types = (AxisType.Auto,) * len(AXES)
    if slices > 1:
        within = (shape[0] // slices, *shape[1:])
        array = mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu":
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:  # in the order of processes, so that fsdp and tensor stay within a host
        array = np.array(devices).reshape(shape)
    return Mesh(array, AXES, axis_types=types)


def mesh_shape(
    config: MeshConfig, devices: int, slices: int = 1, device_kind: str = "cpu"
) -> tuple[int, int, int]:
    """Sizes of data, fsdp and tensor on so many devices.

    Args:
      config: see :func:`make_mesh`.
      devices: of all slices together.
      slices: parts of the job with a network of their own.
      device_kind: as JAX calls it.

    Raises:
      ConfigError: see :func:`make_mesh`.
    """
    data, fsdp, tensor = config.data, config.fsdp, config.tensor
    if not fsdp and data != -1:
        fsdp = 1 if devices % (data * tensor) else devices // (data * tensor)
    elif not fsdp:
        chip = hardware.of_device(device_kind)
        room = devices // slices // tensor
        fsdp = math.gcd(room, chip.fsdp if chip else 1)  # the table holds powers of two
    inner = max(1, fsdp * tensor)
    data = devices // inner if data == -1 else data
    if data * inner != devices or data < 1:
        hint = (
            f"fsdp x tensor = {inner} does not divide them"
            if devices % inner
            else f"with this fsdp and tensor data must be {devices // inner}, or -1 for all that "
            "remain"
        )
        rule = f"data x fsdp x tensor must be {devices}, the number of devices; {hint}"
        raise ConfigError("mesh", (config.data, fsdp, tensor), rule)
    if data % slices:
        rule = f"must be a multiple of {slices}, the number of slices: no other axis crosses them"
        raise ConfigError("mesh.data", data, rule)
    return data, fsdp, tensor


def shares(mesh: Mesh | AbstractMesh) -> int:
    """Parts that a batch lies in."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def round_up(count: int, mesh: Mesh | AbstractMesh) -> int:
    """The least number of rows, ``count`` or more, that the mesh shares evenly."""
    return -(-count // shares(mesh)) * shares(mesh)


def check_batch(config: TrainConfig, mesh: Mesh | AbstractMesh) -> None:
    """Refuses a batch whose parts do not divide among the devices.

    Args:
      config: resolved.
      mesh: the devices.

    Raises:
      ConfigError: names the number that must divide it.
    """
    if config.batch_size // config.micro_batches % shares(mesh):
        rule = f"batch_size / micro_batches must divide by {shares(mesh)} (mesh data x fsdp)"
        raise ConfigError("train.batch_size", config.batch_size, rule)


def parameter_spec(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """The partition of one leaf of the train state.

    A dimension that its mesh axis does not divide stays whole; :func:`assert_sharded` bounds them.

    Raises:
      ValueError: not exactly one row of the table fits the name.
    """
    if not shape:
        return P()
    rows = [axes for pattern, axes in PARAMETER_AXES if re.search(pattern, "/" + name)]
    if len(rows) != 1:
        raise ValueError(f"{name}: {len(rows)} rows of PARAMETER_AXES fit, exactly one must")
    if len(rows[0]) != len(shape):
        raise ValueError(f"{name}: shape {shape} has another rank than its axes {rows[0]}")
    return _spec(rows[0], shape, mesh, LOGICAL_TO_MESH)


def _spec(axes: tuple, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, table: dict) -> P:
    entries = []
    for axis, size in zip(axes, shape, strict=True):
        target = table[axis] if axis else None
        wanted = (target,) if isinstance(target, str) else (target or ())
        names = [name for name in wanted if mesh.shape[name] > 1]
        if not names or size % math.prod(mesh.shape[name] for name in names):
            entries.append(None)
        else:
            entries.append(tuple(names) if len(names) > 1 else names[0])
    return P(*entries)


def state_shardings(state: PyTree, mesh: Mesh) -> PyTree:
    """A NamedSharding for each leaf of an (abstract) train state."""
    return tree.map_named(
        lambda name, leaf: NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh)), state
    )


def placed_spec(shapes: PyTree, mesh: Mesh) -> PyTree:
    """Shapes and dtypes with the shardings of the table."""
    shardings = state_shardings(shapes, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def place(weights: PyTree, mesh: Mesh) -> PyTree:
    """Puts host arrays, the same in all processes, where the table wants them."""

    def put(name: str, leaf: Array) -> Array:
        spec = NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh))
        return jax.make_array_from_callback(leaf.shape, spec, lambda part: leaf[part])

    return tree.map_named(put, weights)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over data and fsdp."""
    return NamedSharding(mesh, P(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, P())


def constrain(x: Array, *axes: str | None) -> Array:
    """Names the axes of an activation; without a mesh in context it returns x."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(axes, x.shape, mesh, ACTIVATION_TO_MESH))


def whole(kernel: Array, name: str) -> Array:
    """A kernel as its product reads it: all of axis fsdp on each device; tensor stays.

    Its gradient goes back to where the parameter lives. Without this the partitioner rotates the
    shards of every kernel through each product, in a loop of its own.

    Args:
      kernel: of any dtype; that of the product saves bytes.
      name: of the parameter, see :data:`PARAMETER_AXES`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return kernel
    return _whole(kernel, name)


def all_whole(params: PyTree, dtype: Any) -> PyTree:
    """Parameters with all kernels as products read them (:func:`whole`), put together at once.

    The gradient of each comes summed by the product that read it, and stays where it lies.

    Args:
      params: a part of the train state.
      dtype: of products.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return params

    def one(name: str, leaf: Array) -> Array:
        return _whole(leaf.astype(dtype), name, True) if name.endswith("kernel") else leaf

    return tree.map_named(one, params)


def _specs(name: str, shape: tuple[int, ...]) -> tuple[P, P]:
    """Where a parameter lives, and where its products read it."""
    spec = parameter_spec(name, shape, jax.sharding.get_abstract_mesh())
    return spec, P(*(None if entry == "fsdp" else entry for entry in spec))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _whole(kernel: Array, name: str, summed: bool = False) -> Array:
    return jax.lax.with_sharding_constraint(kernel, _specs(name, kernel.shape)[1])


def _scatters() -> bool:
    """Does the compiler sum shards and keep the own one in one go? That of TPUs does."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and device.platform == "tpu"


def _whole_backward(name: str, summed: bool, residual: None, grad: Array) -> tuple[Array]:
    home, gathered = _specs(name, grad.shape)
    if not summed and not _scatters():
        # Sum first, then keep the own part; without this it becomes a loop of its own.
        grad = jax.lax.with_sharding_constraint(grad, gathered)
    return (jax.lax.with_sharding_constraint(grad, home),)


_whole.defvjp(lambda kernel, *how: (_whole(kernel, *how), None), _whole_backward)


def constrain_stacked(layers: PyTree) -> PyTree:
    """Parameters of equal layers, stacked on axis 0: each lies where one layer's would."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return layers

    def place(name: str, leaf: Array) -> Array:
        spec = P(None, *parameter_spec(name, leaf.shape[1:], mesh))
        return jax.lax.with_sharding_constraint(leaf, spec)

    return tree.map_named(place, layers)


def sum_over_rows(function: Callable[..., PyTree], rows: PyTree, shared: PyTree) -> PyTree:
    """Sums over the images of the global batch that need all of them: each device does its own.

    Args:
      function: ``(own, every, first, shared) -> sums``, a pytree of scalars over the own rows.
        ``own`` and ``every`` are shaped as ``rows``, the rows of this device and those of all;
        row 0 of ``own`` is row ``first`` of ``every``.
      rows: arrays with the batch as leading axis, divisible by the devices along it.
      shared: arrays that all devices hold whole.

    Returns:
      The sums over all rows. Without a mesh in context, or with one device along the batch, the
      whole batch is one device's own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else tuple(name for name in BATCH if mesh.shape[name] > 1)
    if not axes:
        return function(rows, rows, 0, shared)

    def local(own: PyTree, shared: PyTree) -> PyTree:
        every = jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), own)
        first = jax.lax.axis_index(axes) * jax.tree.leaves(own)[0].shape[0]
        return jax.lax.psum(function(own, every, first, shared), axes)

    return jax.shard_map(local, in_specs=(P(axes), P()), out_specs=P())(rows, shared)


def replicated_excess(state: PyTree, mesh: Mesh, tolerance: float = 0.02) -> str:
    """Says by how much a sharded mesh misses its purpose; empty where it does not.

    Args:
      state: arrays or ShapeDtypeStructs, with shardings.
      mesh: one without fsdp and tensor replicates on purpose.
      tolerance: share of the bytes that may be whole on every device.
    """
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return ""
    leaves = tree.flatten(state)
    sizes = {name: leaf.size * leaf.dtype.itemsize for name, leaf in leaves.items()}
    whole = [name for name, leaf in leaves.items() if leaf.sharding.is_fully_replicated]
    share = sum(sizes[name] for name in whole) / max(1, sum(sizes.values()))
    if share <= tolerance:
        return ""
    worst = ", ".join(sorted(whole, key=lambda name: -sizes[name])[:5])
    return f"{share:.1%} of the state's bytes are replicated (> {tolerance:.0%}): {worst}"


def assert_sharded(state: PyTree, mesh: Mesh, tolerance: float = 0.02) -> None:
    """Fails when too many bytes of the state are whole on every device of a sharded mesh.

    Raises:
      AssertionError: see :func:`replicated_excess`; lists the largest replicated leaves.
    """
    excess = replicated_excess(state, mesh, tolerance)
    if excess:
        raise AssertionError(excess)


def table(state: PyTree, mesh: Mesh) -> list[str]:
    """One line a leaf: name, shape, partition; the text that goldens and ``preview`` show."""
    rows = [
        (name, str(tuple(leaf.shape)), str(parameter_spec(name, leaf.shape, mesh)))
        for name, leaf in tree.flatten(state).items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"{n:<{widths[0]}}  {s:<{widths[1]}}  {p}" for n, s, p in rows]
