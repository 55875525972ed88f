"""Accelerators by name: what the mesh, the compiler, MFU and the launchers must know of a chip.

Peaks and sizes are the vendors' published ones, dense bfloat16. ``python -m jepa_vl.hardware v5e``
prints the environment of a chip as shell assignments, ``python -m jepa_vl.hardware v5p-8 --field
accelerator`` one value of a chip or slice (``runtime``, ``chips``, ``topology`` and so on).
"""

import difflib
import math
import os
import re
import shlex
import sys
from dataclasses import dataclass, field

from jepa_vl.errors import ConfigError

# Communication runs beside computation: gathers of the next layer's weights above all.
_ASYNC = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
}
_GPU = {"xla_gpu_enable_latency_hiding_scheduler": "true"}


@dataclass(frozen=True)
class Chip:
    """One kind of accelerator; a device of JAX is one chip.

    Attributes:
      name: as users write it: v5e, h100.
      kind: regular expression of ``device.device_kind``.
      flops: peak of bfloat16 matrix products, FLOP/s; 0: not known (CPU), so no MFU.
      hbm: bytes of device memory that programs may use; of TPUs what the compiler says.
      bandwidth: of that memory, bytes/s.
      link: of one interconnect link in one direction, bytes/s.
      links: links that one axis of a mesh uses at once (both directions of a ring).
      fsdp: devices that parameters are sharded over unless the configuration says otherwise;
        more would leave slivers below a tile of the compiler (docs/guides/pods.md).
      per_host: chips of one host.
      cores: TensorCores that an accelerator name counts for each chip; 1: the name counts chips.
      dimensions: of the pod's torus; 0: no TPU.
      accelerator: prefix of the accelerator type in Google Cloud, as in v5litepod-16.
      runtime: software version of its TPU VMs.
      flags: of XLA, used by launchers and ``jepa-vl compile`` alike.
      clock: cycles/s of a TPU at its peak: the peak over the products of a cycle, a power of two,
        just above what the compiler counts of a large one. 0: not known.
    """

    name: str
    kind: str
    flops: float = 0.0
    hbm: int = 0
    bandwidth: float = 0.0
    link: float = 0.0
    links: int = 2
    fsdp: int = 1
    per_host: int = 1
    cores: int = 1
    dimensions: int = 0
    accelerator: str = ""
    runtime: str = ""
    flags: dict[str, str] = field(default_factory=dict)
    clock: float = 0.0


GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", r"TPU v4$", 275e12, int(30.5 * GIB), 1.23e12, 4.5e10, 2, 16, 4, 2, 3,
             "v4", "tpu-ubuntu2204-base", _ASYNC, 1.05e9),
        Chip("v5e", r"TPU v5 lite", 197e12, int(15.75 * GIB), 8.2e11, 4.5e10, 2, 16, 8, 1, 2,
             "v5litepod", "v2-alpha-tpuv5-lite", _ASYNC, 1.5e9),
        Chip("v5p", r"TPU v5p?$", 459e12, int(95.74 * GIB), 2.77e12, 9e10, 2, 16, 4, 2, 3,
             "v5p", "v2-alpha-tpuv5", _ASYNC, 1.75e9),
        Chip("v6e", r"TPU v6 lite", 918e12, int(31.25 * GIB), 1.64e12, 9e10, 2, 16, 8, 1, 2,
             "v6e", "v2-alpha-tpuv6e", _ASYNC | {"xla_tpu_scoped_vmem_limit_kib": "98304"}, 1.75e9),
        Chip("a100", r"A100", 312e12, 80 * GIB, 2.04e12, 3e11, 1, 8, 8, flags=_GPU),
        Chip("h100", r"H100", 989e12, 80 * GIB, 3.35e12, 4.5e11, 1, 8, 8, flags=_GPU),
        Chip("h200", r"H200", 989e12, 141 * GIB, 4.8e12, 4.5e11, 1, 8, 8, flags=_GPU),
        Chip("b200", r"B200", 2250e12, 180 * GIB, 8e12, 9e11, 1, 8, 8, flags=_GPU),
        Chip("cpu", r"cpu"),
    )
}  # fmt: skip


# Fewest and most chips of a slice, by the dimensions of its network.
SLICES = {0: (1, 2**16), 2: (1, 256), 3: (4, 4096)}


def of_device(device_kind: str) -> Chip | None:
    """The chip behind ``device.device_kind``; None for one that the table does not know."""
    found = (c for c in CHIPS.values() if re.search(c.kind, device_kind, re.IGNORECASE))
    return next(found, None)


def named(name: str) -> Chip:
    """The chip of a name.

    Raises:
      ConfigError: no such chip; lists them.
    """
    if name not in CHIPS:
        near = difflib.get_close_matches(name.partition("-")[0], CHIPS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError("chip", name, f"one of {', '.join(CHIPS)}{hint}")
    return CHIPS[name]


def flags_variable(chip: Chip) -> str:
    """The environment variable that takes the chip's flags."""
    return "LIBTPU_INIT_ARGS" if chip.dimensions else "XLA_FLAGS"


def environment(chip: Chip) -> dict[str, str]:
    """Environment variables of a process that trains on this chip; flags that are set stay."""
    if not chip.flags:
        return {}
    variable = flags_variable(chip)
    own = [f"--{name}={value}" for name, value in chip.flags.items()]
    return {variable: " ".join([*own, os.environ.get(variable, "")]).strip()}


def slice_named(name: str) -> tuple[Chip, int]:
    """Chip and number of chips of a slice as users or Google Cloud write it.

    v5e-16 and v5litepod-16 have 16 chips. v4 and v5p count TensorCores: v5p-8 has 4 chips.

    Raises:
      ConfigError: no such chip, or a number of chips that no slice has.
    """
    kind, _, number = name.rpartition("-")
    by_cloud = {chip.accelerator: chip.name for chip in CHIPS.values() if chip.accelerator}
    chip = named(by_cloud.get(kind, kind))
    chips, rest = divmod(int(number) if number.isdecimal() else 0, chip.cores)
    least, most = SLICES[chip.dimensions]
    if rest or not least <= chips <= most or chips & (chips - 1):
        sizes = f"{least * chip.cores} to {most * chip.cores}"
        rule = f"CHIP-N with N a power of two, {sizes}; as in v5e-16, v5p-8"
        raise ConfigError("slice", name, rule)
    return chip, chips


def topology(chip: Chip, chips: int) -> str:
    """The shape of a slice of this many chips, as in 4x8; each side a power of two."""
    if chip.dimensions == 3 and chips == 4:
        return "2x2x1"
    power, sides = int(math.log2(chips)), max(chip.dimensions, 1)
    return "x".join(str(2 ** ((power + side) // sides)) for side in range(sides))


def main(argv: list[str]) -> int:
    """Prints ``export NAME=VALUE`` for each variable of a chip, or one field of it."""
    if len(argv) != 1 and (len(argv) != 3 or argv[1] != "--field"):
        print("usage: python -m jepa_vl.hardware CHIP|SLICE [--field FIELD]", file=sys.stderr)
        return 5
    try:
        if "-" not in argv[0]:
            chip, values = named(argv[0]), vars(named(argv[0]))
        else:
            chip, chips = slice_named(argv[0])
            values = vars(chip) | {"chips": chips, "topology": topology(chip, chips)}
            if chip.accelerator:
                values["accelerator"] += f"-{chips * chip.cores}"
        if argv[1:]:
            if argv[2] not in values:
                raise ConfigError("--field", argv[2], f"one of {', '.join(values)}")
            print(values[argv[2]])
            return 0
        variables = environment(chip)
    except ConfigError as error:
        print(f"jepa-vl: error: {error}", file=sys.stderr)
        return 5
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
