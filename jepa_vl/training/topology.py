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
      ConfigError: no such machine, or a size that it is not sold in.
    """
    found = re.fullmatch(r"(?:(\d+)x)?([a-z]+\d*[a-z]*)-(\d+)", name)
    kinds = (*COMPILED, "cpu")
    if not found or found[2] not in kinds:
        rule = f"KIND-SIZE or SLICESxKIND-SIZE, as in v5e-256, with a kind of {', '.join(kinds)}"
        raise ConfigError("--topology", name, rule)
    slices, chip, size = int(found[1] or 1), hardware.named(found[2]), int(found[3])
    if not chip.dimensions:
        if size < 1 or slices != 1:
            raise ConfigError("--topology", name, "CPU devices are one slice of at least 1")
        return Topology(name, chip, 1, (size,))
    sizes = SIZES[chip.dimensions]
    if size % chip.cores or size // chip.cores not in sizes or not slices:
        sold = ", ".join(f"{chip.name}-{chips * chip.cores}" for chips in sizes)
        raise ConfigError("--topology", name, f"one of {sold}")
    return Topology(name, chip, slices, sizes[size // chip.cores])


# Chips of a slice -> its grid, by the dimensions of the network.
SIZES: dict[int, dict[int, tuple[int, ...]]] = {
    2: {
        1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16),
        256: (16, 16),
    },
    3: {
        4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8),
        256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16),
    },
}  # fmt: skip


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
