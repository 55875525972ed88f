"""Is everything there that a run needs? Asks before the machines are paid for.

Command:    python launch/preflight.py --config configs/tcjepa_in1k.py --topology v5e-256 \
                --workdir /mnt/bucket/runs/one --config.data.path=DIR [--json FILE]
            On each host for the checks of host, storage and clock; --dry-run names the checks.
Exit code:  0 nothing failed, 1 something did, 5 bad input.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from etils import epath

from jepa_vl import hardware
from jepa_vl.cli import configs
from jepa_vl.cli.columns import columns
from jepa_vl.cli.main import one_line
from jepa_vl.config import Config, ConfigError

OK, WARNING, FAIL = "ok", "warning", "FAIL"
GIB = 2**30
LEAST_DISK = 5 * GIB  # of temporary files and caches
BASE_MEMORY, WORKER_MEMORY = GIB, GIB // 2  # of the process, and of each data worker
SKEW = 2.0  # seconds between clocks that logs and leases still bear
RECENT = 3600.0  # seconds; older files of other hosts say nothing about their clocks now


@dataclasses.dataclass
class Check:
    """What one check found; ``details`` is for the JSON."""

    name: str
    status: str
    text: str
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Plan:
    """The machines of the run: all slices together."""

    devices: int
    slices: int
    hosts: int
    kind: str  # as JAX calls the device


def plan(args: argparse.Namespace) -> Plan:
    """The machines that the options name; without any, those of this process.

    Raises:
      ConfigError: no such slice, or numbers that do not fit.
    """
    if args.topology:
        chip, chips = hardware.slice_named(args.topology)
        kind = chip.kind.rstrip("$").replace("?", "")
        per_host = 4 if chip.dimensions == 3 or (chip.dimensions and chips > 8) else chip.per_host
        hosts = args.slices * max(1, chips // per_host)
        return Plan(chips * args.slices, args.slices, args.hosts or hosts, kind)
    if args.devices:
        return Plan(args.devices, args.slices, args.hosts or args.slices, "cpu")
    import jax

    return Plan(jax.device_count(), 1, args.hosts or 1, jax.devices()[0].device_kind)


def check_mesh(config: Config, machines: Plan) -> Check:
    """Mesh, batch and hosts divide each other."""
    from jax.sharding import AbstractMesh

    from jepa_vl import sharding

    shape = sharding.mesh_shape(config.mesh, machines.devices, machines.slices, machines.kind)
    mesh = AbstractMesh(shape, sharding.AXES)
    batch, micro = config.train.batch_size, config.train.micro_batches
    sharding.check_batch(config.train, mesh)
    if batch % machines.hosts:
        raise ConfigError("train.batch_size", batch, f"a multiple of {machines.hosts} hosts")
    text = (
        f"data x fsdp x tensor = {' x '.join(map(str, shape))} on {machines.devices} devices, "
        f"{machines.hosts} hosts; {batch // micro // sharding.shares(mesh)} images a device and "
        "micro-batch"
    )
    return Check("mesh", OK, text, {"mesh": shape, **dataclasses.asdict(machines)})


def compile_command(args: argparse.Namespace, out: str) -> list[str]:
    """``jepa-vl compile`` of the same configuration."""
    chip, chips = hardware.slice_named(args.topology)
    name = f"{chip.name}-{chips * chip.cores}"
    name = name if args.slices == 1 else f"{args.slices}x{name}"
    command = ["jepa-vl", "compile", "--config", args.config, "--topology", name]
    return [*command, *args.words, "--json", out]


def check_fits(args: argparse.Namespace) -> Check:
    """The step, compiled for the topology, fits its memory."""
    if hardware.slice_named(args.topology)[0].name == "v4":
        return Check("fits", WARNING, "not compiled: the compiler takes a v4 chip for two devices")
    if importlib.util.find_spec("libtpu") is None:
        return Check("fits", WARNING, "not compiled: libtpu is not here (pip install jepa-vl[tpu])")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "compile.json"
        command = [sys.executable, "-m", "jepa_vl", *compile_command(args, str(out))[1:]]
        done = subprocess.run(command, capture_output=True, text=True)
        found = json.loads(out.read_text()) if out.exists() else {}
    if not found:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Check("fits", FAIL, f"jepa-vl compile: {said[-1]}")
    total, room = found["bytes_per_device"]["total"] / GIB, found["hbm_per_device"] / GIB
    text = f"{total:.2f} of {room:.2f} GiB a device"
    if found["bound"]:
        text += f"; at the very least {found['bound']['chip_hours']:,.0f} chip-hours"
    return Check("fits", FAIL if done.returncode else OK, text, found)


def check_data(config: Config, machines: Plan) -> Check:
    """The data can be opened, and has a shard for each host."""
    from jepa_vl.data import sources, survey

    train, _ = sources.open_sources(config)
    shards = survey.shards(train)
    text = f"{train.name}: {len(train):,} images"
    text += "" if shards is None else f" in {shards:,} shards"
    details = {"images": len(train), "shards": shards, "fingerprint": train.fingerprint}
    if len(train) < config.train.batch_size:
        return Check("data", WARNING, f"{text}, fewer than a batch", details)
    if shards is not None and shards < machines.hosts:
        text += f" for {machines.hosts} hosts: several read each file at once"
        return Check("data", WARNING, text, details)
    return Check("data", OK, text, details)


def check_storage(name: str, path: str) -> tuple[Check, epath.Path | None]:
    """A file can be written and read back; it stays, for :func:`check_clock`."""
    folder = epath.Path(path).expanduser() / ".preflight"
    note = json.dumps({"host": socket.gethostname(), "time": time.time()})
    file = folder / f"{socket.gethostname()}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(note)
        if file.read_text() != note:
            return Check(name, FAIL, f"{path}: what was written does not come back"), None
    except Exception as error:  # backends of epath raise almost anything
        first = (str(error).splitlines() or [""])[0]
        return Check(name, FAIL, f"{path}: {type(error).__name__}: {first}"), None
    return Check(name, OK, f"{path}: written and read back"), file


def check_workdir(path: str) -> tuple[Check, epath.Path | None]:
    """:func:`check_storage`, of a folder: the trainer takes no URL."""
    if "://" in path:
        text = f"{path}: training writes to a folder; mount it (launch/stage_data.sh mount)"
        return Check("workdir", FAIL, text), None
    return check_storage("workdir", path)


def check_clock(mine: epath.Path, now: Callable[[], float] = time.time) -> Check:
    """Clocks of the hosts that ran this lately, each held against the file server's times."""
    offsets = {}
    for file in mine.parent.glob("*.json"):
        note, stamp = json.loads(file.read_text()), file.stat().mtime
        if abs(now() - stamp) < RECENT or file == mine:
            offsets[note["host"]] = note["time"] - stamp
    skew = max(offsets.values()) - min(offsets.values())
    ahead = max(offsets, key=lambda host: offsets[host])
    text = f"{len(offsets)} hosts within {skew:.1f} s"
    details = {"offsets": offsets, "skew": skew}
    if skew > SKEW:
        return Check(
            "clock", WARNING, f"{text}; {ahead} is ahead: look at its time server", details
        )
    own = offsets[json.loads(mine.read_text())["host"]]
    if abs(own) > SKEW:
        return Check("clock", WARNING, f"{own:+.1f} s off the file server's", details)
    return Check(
        "clock", OK, text if len(offsets) > 1 else "agrees with the file server's", details
    )


def state_bytes(config: Config) -> int:
    """Bytes of the train state, which a checkpoint holds."""
    import jax

    from jepa_vl import objectives, sharding, tree
    from jepa_vl.schema import MeshConfig
    from jepa_vl.training import state

    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    objective = objectives.build(config)
    return tree.nbytes(state.abstract(config, objective, state.batch_spec(config), mesh))


def check_disk(config: Config, workdir: str, state: int) -> Check:
    """Room for the checkpoints, and for temporary files and caches."""
    there = next(
        p for p in (Path(workdir).absolute(), *Path(workdir).absolute().parents) if p.exists()
    )
    need, free = state * (config.checkpoint.keep_last + 1), shutil.disk_usage(there).free
    spare = shutil.disk_usage(tempfile.gettempdir()).free
    text = f"{free / GIB:,.1f} GiB free, checkpoints take {need / GIB:.1f}"
    text += f"; temporary files: {spare / GIB:,.1f}"
    status = FAIL if free < need else WARNING if spare < LEAST_DISK else OK
    return Check("disk", status, text, {"free": free, "need": need, "temporary": spare})


def check_memory(config: Config, machines: Plan, state: int) -> Check:
    """Memory of this host: its part of the state, on the way to a checkpoint, and data workers."""
    need = state // machines.hosts + BASE_MEMORY + WORKER_MEMORY * config.data.workers
    free, told = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), Path("/proc/meminfo")
    if told.exists():  # Linux; elsewhere all memory counts as free
        lines = told.read_text().splitlines()
        free = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    text = f"{free / GIB:,.1f} GiB available, about {need / GIB:.1f} wanted"
    return Check("memory", OK if free >= need else WARNING, text, {"free": free, "need": need})


def run(args: argparse.Namespace) -> list[Check]:
    """All checks, in their order; one that cannot be made fails with the reason.

    Raises:
      ConfigError: a bad configuration or option.
    """
    if args.topology or args.devices:
        os.environ["JAX_PLATFORMS"] = "cpu"  # nothing here needs the accelerators
    config = configs.load(args.config, args.overrides)
    machines = plan(args)
    found = [_guard("mesh", lambda: check_mesh(config, machines))]
    if args.topology and hardware.slice_named(args.topology)[0].dimensions:
        found.append(check_fits(args))
    found.append(_guard("data", lambda: check_data(config, machines)))
    storage, mine = check_workdir(args.workdir)
    found.append(storage)
    found += [check_storage("bucket", path)[0] for path in args.bucket]
    if mine is not None:
        found.append(check_clock(mine))
    state = state_bytes(config)
    if mine is not None:
        found.append(check_disk(config, args.workdir, state))
    return [*found, check_memory(config, machines, state)]


def _guard(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except ConfigError as error:
        return Check(name, FAIL, str(error).splitlines()[0])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError("command line", " ".join(sys.argv[1:]), f"{message}; see --help")


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number, at least 1")
    return int(text)


def _parse(argv: list[str]) -> argparse.Namespace:
    how = argparse.RawDescriptionHelpFormatter
    parser = _Parser("preflight.py", None, __doc__, formatter_class=how, allow_abbrev=False)
    add = parser.add_argument
    add("--config", required=True, help="file of the run; --config.KEY=VALUE changes a value")
    add("--workdir", required=True, help="folder of the run")
    add("--topology", default="", help="slice to train on, as in v5e-256, or GPUs, as in h100-8")
    add("--devices", type=_whole, default=0, help="number of devices, where there is no topology")
    add("--slices", type=_whole, default=1, help="of that topology (default: 1)")
    add("--hosts", type=_whole, default=0, help="processes (default: by the topology)")
    add("--bucket", action="append", default=[], help="another path or URL to write to and read")
    add("--json", default="", help="file to write the same to")
    add("--dry-run", action="store_true", help="name the checks and commands, do nothing")
    rest, overrides = configs.take_overrides(argv)
    args = parser.parse_args(rest)
    args.overrides = overrides
    args.words = [
        f"--config.{key}={'true' if value is None else value}" for key, value in overrides
    ]
    return args


def main(argv: list[str]) -> int:
    """Prints the table; returns the exit code."""
    try:
        args = _parse(argv)
        if args.dry_run:
            print("mesh, data, memory: of the configuration, on this host")
            print(f"workdir, clock, disk: writes {args.workdir}/.preflight/HOST.json")
            for path in args.bucket:
                print(f"bucket: writes {path}/.preflight/HOST.json")
            if args.topology and hardware.slice_named(args.topology)[0].dimensions:
                print(f"fits: {shlex.join(compile_command(args, 'FILE'))}")
            return 0
        found = run(args)
    except ConfigError as error:
        print(one_line(error).replace("jepa-vl", "preflight.py", 1), file=sys.stderr)
        return 5
    failed = any(check.status == FAIL for check in found)
    if args.json:
        page = {"host": socket.gethostname(), "ok": not failed}
        page["checks"] = [dataclasses.asdict(check) for check in found]
        Path(args.json).write_text(json.dumps(page, indent=2) + "\n")
    print("\n".join(columns([(check.name, check.status, check.text) for check in found])))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
