"""The real training step, compiled for machines that are not here: does it fit, how fast can it be?

Nothing of it ran: memory, FLOPs and collectives are the compiler's, times are bounds from peaks.
"""

import re
import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jepa_vl import sharding, tree
from jepa_vl.config import Config
from jepa_vl.shapes import PyTree
from jepa_vl.training import hlo, plan, topology
from jepa_vl.training.step import make_step

# How often each byte of the result crosses a device's links in a ring of n, by kind.
TRAFFIC = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1.0,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


@dataclass(frozen=True)
class Compiled:
    """What is known of a step on a topology.

    Attributes:
      topology: its name.
      devices: of it.
      mesh: sizes of data, fsdp and tensor.
      fits: is there memory for the step? None where the memory of a device is not known (CPU).
      hbm: bytes of a device that programs may use; None: not known.
      memory: bytes on each device by what holds them; outputs that take the place of inputs count
        once. Of a step that does not fit, ``temporaries`` is what the compiler's refusal says.
      analytic: model FLOPs of a step by component and direction, on the global batch.
      compiler: FLOPs of a step that the compiled program does, recomputation included; 0: it does
        not fit.
      moved: bytes to and from memory in a step, each device.
      collectives: by kind.
      seconds: of the compilation.
      cycles: of the operations of a step on a device by the compiler's static cost model, loops
        as often as they run, communication left out; 0: it gives none.
      bounds: seconds that compute, memory and network each need at their peak; empty: not known.
      images: global batch; steps: of the whole run; peak: FLOP/s of a device; clock: its cycles/s.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    fits: bool | None
    hbm: int | None
    memory: dict[str, int]
    analytic: dict[str, int]
    compiler: int
    moved: int
    collectives: dict[str, dict[str, int]]
    seconds: float
    bounds: dict[str, float]
    images: int
    steps: int
    peak: float
    cycles: int = 0
    clock: float = 0.0

    @property
    def total(self) -> int:
        """Bytes on each device."""
        return sum(self.memory.values())

    @property
    def bound(self) -> dict[str, float] | None:
        """The shortest step that the slowest of compute, memory and network allows; None: unknown.

        All of it overlaps in this bound; nothing waits for data.
        """
        if not self.bounds:
            return None
        step = max(self.bounds.values())
        hours = step * self.steps / 3600
        return self._rates(step) | {"hours": hours, "chip_hours": hours * self.devices}

    @property
    def estimate(self) -> dict[str, float] | None:
        """The compiler's cycles, and after them the network at its peak; None: not known.

        Nothing overlaps here, and the cost model is pessimistic: good for comparing variants.
        ``mfu_of_cycles`` is that of a step whose communication costs nothing.
        """
        if not self.cycles or not self.clock or not self.bounds:
            return None
        seconds = self.cycles / self.clock
        found = {"cycles": self.cycles} | self._rates(seconds + self.bounds["network"])
        return found | {"mfu_of_cycles": self._rates(seconds)["mfu"]}

    def _rates(self, step: float) -> dict[str, float]:
        """What a step of so many seconds comes to."""
        return {
            "step_seconds": step,
            "mfu": sum(self.analytic.values()) / (self.devices * self.peak * step),
            "images_per_second": self.images / step,
        }

    def to_json(self) -> dict[str, Any]:
        """The keys that ``jepa-vl compile --json`` writes."""
        return {
            "topology": self.topology,
            "devices": self.devices,
            "mesh": self.mesh,
            "fits": self.fits,
            "hbm_per_device": self.hbm,
            "bytes_per_device": {**self.memory, "total": self.total},
            "bytes_moved_per_device": self.moved,
            "flops": {
                "compiler": self.compiler,
                "analytic": sum(self.analytic.values()),
                "by_component": self.analytic,
            },
            "collectives": self.collectives,
            "compile_seconds": self.seconds,
            "seconds_at_peak": self.bounds,
            "bound": self.bound,
            "estimate": self.estimate,
        }


def compile_step(config: Config, where: topology.Topology, devices: list[Any]) -> Compiled:
    """Compiles the step of a configuration for a topology.

    Args:
      config: resolved.
      where: the topology; devices: its devices, see ``topology.devices``.

    Raises:
      ConfigError: the mesh or the batch does not divide, or a tower that is named is absent.
    """
    mesh = sharding.make_mesh(config.mesh, devices)
    planned = plan.make(config, mesh)
    like, spec = planned.state, planned.batch
    step = make_step(config, planned.objective, mesh, like)
    rows = sharding.batch_sharding(mesh)
    batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for k, x in spec.items()}
    memory = {
        "params": _bytes(like.params),
        "target": _bytes(like.target),
        "optimizer": _bytes(like.opt_state),
        "frozen": _bytes(planned.frozen),
        "batch": _bytes(batch),
    }
    found = Compiled(
        topology=where.name,
        devices=len(devices),
        mesh=dict(mesh.shape),
        fits=None,
        hbm=where.chip.hbm or None,
        memory=memory,
        analytic=planned.flops().by_component(),
        compiler=0,
        moved=0,
        collectives={},
        seconds=0.0,
        bounds={},
        images=config.train.batch_size,
        steps=config.train.steps,
        peak=where.chip.flops,
        clock=where.chip.clock,
    )
    began = time.monotonic()
    with jax.set_mesh(mesh):
        lowered = step.lower(like, planned.frozen, spec)
    options: Any = where.chip.flags if where.chip.dimensions else None
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        needed = _refused(str(error))
        if needed is None:
            raise
        memory = memory | {"temporaries": needed}
        return replace(found, fits=False, memory=memory, seconds=time.monotonic() - began)
    seconds = time.monotonic() - began
    return _measure(replace(found, seconds=seconds), compiled, where)


def _bytes(shapes: PyTree) -> int:
    """Bytes of the part that lies on each device."""
    leaves = tree.flatten(shapes).values()
    parts = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in leaves)
    return sum(int(np.prod(shape)) * size for shape, size in parts)


def _measure(found: Compiled, compiled: Any, where: topology.Topology) -> Compiled:
    sizes, program = compiled.memory_analysis(), hlo.Program(compiled.as_text())
    arguments = sum(found.memory.values())
    # What the compiler adds to the arguments: padding, and scalars such as the step.
    padding = max(0, sizes.argument_size_in_bytes - arguments)
    own_outputs = max(0, sizes.output_size_in_bytes - sizes.alias_size_in_bytes)
    memory = found.memory | {
        "temporaries": sizes.temp_size_in_bytes,
        "code": sizes.generated_code_size_in_bytes,
        "padding": padding,
        "outputs": own_outputs,
    }
    traffic, by_kind = 0.0, {}
    for part in program.collectives():
        traffic += part.bytes * TRAFFIC[part.kind](max(part.group, 1))
        so_far = by_kind.setdefault(part.kind, {"count": 0, "bytes": 0})
        so_far["count"] += part.count
        so_far["bytes"] += part.bytes
    chip, local, moved = where.chip, program.flops(), program.bytes_moved()
    bounds = {}
    if chip.flops:
        bounds = {
            "compute": local / chip.flops,
            "memory": moved / chip.bandwidth,
            "network": traffic / (chip.link * chip.links),
        }
    total = sum(memory.values())
    return replace(
        found,
        memory=memory,
        fits=None if found.hbm is None else total <= found.hbm,
        compiler=local * found.devices,
        moved=moved,
        collectives=by_kind,
        bounds=bounds,
        cycles=program.cycles(),
    )


def _refused(message: str) -> int | None:
    """Bytes of temporaries that were asked for, where the compiler says that memory ran out."""
    if "RESOURCE_EXHAUSTED" not in message and "memory space hbm" not in message:
        return None
    found = re.search(r"temporaries \(([\d.]+)([KMGT])\)", message)
    found = found or re.search(r"Used ([\d.]+)([KMGT]) of", message)
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return int(float(found[1]) * scale[found[2]]) if found else 0
