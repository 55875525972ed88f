"""``jepa-vl compile``: does a run fit on machines that are not here, and how fast can it be?"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jepa_vl.cli import configs
from jepa_vl.cli.columns import columns
from jepa_vl.cli.train import writable
from jepa_vl.config import Config, ConfigError

GIB = 2**30
DOES_NOT_FIT = 1
SHOWN = 3  # of a search
ASSUMPTIONS = """\
(peaks of bfloat16 products, memory and one ring of links in both directions; all three overlap,
nothing waits for data, and slices are as well connected as chips: a bound, not a forecast)"""
ESTIMATED = """\
(the compiler's static count of cycles, then the network at its peak, nothing overlapping: for
comparing variants; neither bound nor estimate was measured)"""


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Prints the table of a step, or of the best steps of a search.

    Returns:
      0, or 1 if it does not fit (of a search: if nothing does).

    Raises:
      ConfigError: a bad configuration or topology, or no TPU compiler.
    """
    from jepa_vl.training import aot, topology

    where = topology.parse(args.topology)
    config = configs.load(args.config, overrides, reads_data=False)
    if args.json:
        writable("--json", str(Path(args.json).absolute().parent))
    topology.prepare(where)
    devices = topology.devices(where)
    if args.search:
        return _search(config, where, devices, args)
    found = aot.compile_step(config, where, devices)
    print("\n".join(_table(found)))
    if args.json:
        Path(args.json).write_text(json.dumps(found.to_json(), indent=2) + "\n")
    return DOES_NOT_FIT if found.fits is False else 0


Tried = tuple[Config, Any, str]  # configuration, what was found, why nothing was


def _search(config: Config, where: Any, devices: list[Any], args: argparse.Namespace) -> int:
    """One setting after another, each from the best so far; see :func:`run`."""
    tried: list[Tried] = []
    best = config
    for vary in (_keeping, _sharding, _doubled):
        for one in vary(best, where):
            if all(one != other for other, _, _ in tried):
                tried.append(_tried(one, where, devices))
                if args.json:  # what is known so far
                    parts = [_json(*t) for t in tried]
                    Path(args.json).write_text(json.dumps(parts, indent=2) + "\n")
        compiled = [t for t in tried if t[1] is not None]
        if compiled:
            best = min(compiled, key=_badness)[0]
    if not compiled:
        rule = f"nothing could be compiled: {tried[0][2]}"
        raise ConfigError("--topology", args.topology, rule)
    fitting = sorted((t for t in compiled if t[1].fits is not False), key=_badness)
    print()
    print("\n".join(_ranking(fitting[:SHOWN])))
    return 0 if fitting else DOES_NOT_FIT


def _keeping(config: Config, where: Any) -> Iterator[Config]:
    """What the backward pass keeps; parameters sharded as suits the chip."""
    fsdp = config.mesh.fsdp or math.gcd(_room(config, where), max(1, where.chip.fsdp))
    mesh = replace(config.mesh, data=-1, fsdp=fsdp)
    for remat in ("dots", "none", "full"):
        yield replace(config, mesh=mesh, train=replace(config.train, remat=remat))


def _sharding(config: Config, where: Any) -> Iterator[Config]:
    """How many devices hold parameters together."""
    widest, room = max(1, where.chip.fsdp), _room(config, where)
    for fsdp in sorted({1, max(1, widest // 4), widest, room}):
        if room % fsdp == 0:
            yield replace(config, mesh=replace(config.mesh, data=-1, fsdp=fsdp))


def _doubled(config: Config, where: Any) -> Iterator[Config]:
    """Twice the batch."""
    yield replace(config, train=replace(config.train, batch_size=2 * config.train.batch_size))


def _room(config: Config, where: Any) -> int:
    """Devices of a slice that axis fsdp may have."""
    return max(1, where.devices // where.slices // config.mesh.tensor)


def _tried(config: Config, where: Any, devices: list[Any]) -> Tried:
    """Compiles one of a search, and says in a line what came of it."""
    from jepa_vl.training import aot

    name = f"batch {config.train.batch_size}, fsdp {config.mesh.fsdp}, remat {config.train.remat}"
    try:
        found = aot.compile_step(config, where, devices)
    except ConfigError as error:
        print(f"{name}: {error}", flush=True)
        return config, None, str(error)
    fits = {True: "fits", False: "does not fit", None: "memory not known"}[found.fits]
    print(f"{name}: {fits}, {found.total / GIB:.2f} GiB{_rate(found)}", flush=True)
    return config, found, ""


def _rate(found: Any) -> str:
    bound, estimate = found.bound, found.estimate
    most = f", at most {bound['images_per_second']:,.0f} images/s" if bound else ""
    return most + (f", estimate {estimate['images_per_second']:,.0f}" if estimate else "")


def _badness(tried: Tried) -> tuple[bool, float, int]:
    """Seconds an image by the estimate, else by the bound; what does not fit is last, by memory."""
    found = tried[1]
    if found.fits is False:
        return True, 0.0, found.total
    told = found.estimate or found.bound
    return False, told["step_seconds"] / found.images if told else 0.0, found.total


def _json(config: Config, found: Any, why: str) -> dict[str, Any]:
    tried = {
        "batch_size": config.train.batch_size,
        "remat": config.train.remat,
        "fsdp": config.mesh.fsdp,
    }
    return tried | (found.to_json() if found is not None else {"refused": why})


def _ranking(best: Sequence[Tried]) -> list[str]:
    if not best:
        return ["nothing of this fits"]
    rows = [
        (
            str(config.train.batch_size),
            config.train.remat,
            " x ".join(map(str, found.mesh.values())),
            f"{found.total / GIB:.2f}",
            *_cells(found.bound),
            *_cells(found.estimate),
        )
        for config, found, _ in best
    ]
    head = ("batch", "remat", "data x fsdp x tensor", "GiB/device", "images/s, bound", "MFU, bound",
            "images/s, estimate", "MFU, estimate")  # fmt: skip
    first = best[0][0]
    flags = (
        f"--config.train.batch_size={first.train.batch_size} "
        f"--config.train.remat={first.train.remat} --config.mesh.fsdp={first.mesh.fsdp}"
    )
    told = [f"the first: {flags}", ASSUMPTIONS, *([ESTIMATED] if best[0][1].estimate else [])]
    return [*columns([head, *rows], right=(0, *range(3, 8))), "", *told]


def _cells(told: Any) -> tuple[str, str]:
    return (f"{told['images_per_second']:,.0f}", f"{told['mfu']:.2f}") if told else ("-", "-")


def _table(found: Any) -> list[str]:
    mesh = " x ".join(f"{name} {size}" for name, size in found.mesh.items())
    lines = [
        f"{found.topology}: {found.devices} devices, mesh {mesh}; "
        f"compiled in {found.seconds:.0f} s",
        "",
    ]
    rows = [(name.replace("_", " "), f"{size / GIB:.3f}") for name, size in found.memory.items()]
    rows += [("total", f"{found.total / GIB:.3f}")]
    lines += columns([("on each device", "GiB"), *rows], right=(1,))
    lines += [_verdict(found), ""]
    lines += _flops(found)
    lines += _collectives(found)
    return lines + _bounds(found)


def _verdict(found: Any) -> str:
    if found.fits is None:
        return "the memory of such a device is not known"
    room = (found.hbm - found.total) / GIB
    if found.fits:
        return f"fits: {room:.2f} of {found.hbm / GIB:.2f} GiB are left"
    return f"does not fit: {-room:.2f} GiB more than the {found.hbm / GIB:.2f} GiB of a device"


def _flops(found: Any) -> list[str]:
    total = sum(found.analytic.values())
    rows = [
        (name.replace("_", " "), f"{count / 1e12:,.3f}", f"{count / total:.1%}")
        for name, count in found.analytic.items()
    ]
    rows += [("total", f"{total / 1e12:,.3f}", "100.0%")]
    lines = columns([("model, a step", "TFLOPs", "share"), *rows], right=(1, 2))
    if found.compiler:
        ratio = found.compiler / total
        lines += [f"the compiled step does {found.compiler / 1e12:,.3f}, {ratio:.3f} of it"]
    return [*lines, ""]


def _collectives(found: Any) -> list[str]:
    if not found.compiler:
        return []
    rows = [
        (kind, f"{part['count']:,}", f"{part['bytes'] / 1e9:,.3f}")
        for kind, part in found.collectives.items()
    ]
    lines = columns([("collective, a step", "runs", "GB of results"), *rows], right=(1, 2))
    return [*lines, f"to and from memory: {found.moved / 1e9:,.2f} GB on each device", ""]


def _bounds(found: Any) -> list[str]:
    if found.bound is None:
        return []
    parts = ", ".join(f"{name} {1e3 * value:,.1f} ms" for name, value in found.bounds.items())
    bound = found.bound
    return [
        f"at peak: {parts}",
        f"bound: step {1e3 * bound['step_seconds']:,.1f} ms, MFU {bound['mfu']:.2f}, "
        f"{bound['images_per_second']:,.0f} images/s; {found.steps:,} steps of {found.images:,} "
        f"images: {bound['hours']:,.1f} h, {bound['chip_hours']:,.0f} chip-hours",
        ASSUMPTIONS,
        *_estimated(found),
    ]


def _estimated(found: Any) -> list[str]:
    told = found.estimate
    if told is None:
        return []
    return [
        f"estimate: step {1e3 * told['step_seconds']:,.1f} ms, MFU {told['mfu']:.2f} "
        f"({told['mfu_of_cycles']:.2f} if communication cost nothing), "
        f"{told['images_per_second']:,.0f} images/s",
        ESTIMATED,
    ]
