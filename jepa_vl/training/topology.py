"""Machines that are not here: devices of a TPU topology, made by the compiler alone."""

import math
import os
import re
from typing import Any, NamedTuple

from jepa_vl import hardware
from jepa_vl.config import ConfigError

COMPILED = ("v5e", "v5p", "v6e")  # of the TPUs; the compiler sees a v4 chip as two devices
# What libtpu reads where there is no TPU; JAX itself stays on the CPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any known one: the topology is named to the compiler
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Topology(NamedTuple):
    """Chips of one kind and how they are wired.

    Attributes:
      name: as the user wrote it.
      chip: see :class:`hardware.Chip`.
      slices: parts with a network of their own.
      grid: chips along each dimension of a slice; (n,) for CPU devices.
    """

    name: str
    chip: hardware.Chip
    slices: int
    grid: tuple[int, ...]

    @property
    def devices(self) -> int:
        """Chips of all slices."""
        return self.slices * math.prod(self.grid)


def parse(name: str) -> Topology:
    """``v5e-256``, ``v5p-512`` (which counts TensorCores, two a chip), ``2xv6e-64``, ``cpu-8``.

    Raises:
      ConfigError: no such machine, or one that there is no compiler for here.
    """
    found = re.fullmatch(r"(?:([1-9]\d*)x)?(.+)", name)
    slices, part = (int(found[1] or 1), found[2]) if found else (1, name)
    try:
        chip, chips = hardware.slice_named(part)
    except ConfigError as error:
        raise ConfigError("--topology", name, error.rule) from None
    if chip.name not in (*COMPILED, "cpu"):
        rule = f"there is a compiler for {', '.join(COMPILED)} and cpu alone"
        raise ConfigError("--topology", name, rule)
    if not chip.dimensions:
        if slices > 1:
            raise ConfigError("--topology", name, "CPU devices are one slice")
        return Topology(name, chip, 1, (chips,))
    grid = tuple(int(side) for side in hardware.topology(chip, chips).split("x"))
    return Topology(name, chip, slices, grid)


def prepare(topology: Topology) -> None:
    """Sets what must stand in the environment before JAX is used for the first time."""
    if topology.chip.dimensions:
        os.environ.update(ENVIRONMENT)
        return
    flag = "--xla_force_host_platform_device_count"
    os.environ["JAX_PLATFORMS"] = "cpu"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        flags = os.environ.get("XLA_FLAGS", ""), f"{flag}={topology.devices}"
        os.environ["XLA_FLAGS"] = " ".join(filter(None, flags))


def devices(topology: Topology) -> list[Any]:
    """The devices, to be compiled for; nothing can run on those of a TPU.

    Raises:
      ConfigError: libtpu is not installed, or this process has too few CPU devices.
    """
    import jax
    from jax.experimental import topologies

    if not topology.chip.dimensions:
        here = jax.devices("cpu")
        if len(here) < topology.devices:
            rule = f"this process has {len(here)} CPU devices"
            raise ConfigError("--topology", topology.name, rule)
        return here[: topology.devices]
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        rule = 'needs the TPU compiler: pip install -e ".[tpu]" (no TPU is needed)'
        raise ConfigError("--topology", topology.name, rule) from None
    grid, extra = topology.grid, {}
    if math.prod(grid) == 1:
        extra["chips_per_host_bounds"] = (1, 1, 1)
    if topology.slices > 1:
        extra["num_slices"] = topology.slices
    wired = f"{topology.chip.name}:{'x'.join(map(str, grid))}"
    return list(topologies.get_topology_desc(platform="tpu", topology_name=wired, **extra).devices)
