"""Several processes as one run: how they meet, what they must agree on, how they part.

Each process reads its part of a batch, all take part in every computation on the global mesh and
in every checkpoint, and process 0 alone writes the other files. A laptop is a run of one process:
nothing here costs or waits there.
"""

import collections
import importlib.util
import json
import os
import re
import secrets
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jepa_vl import sharding
from jepa_vl.config import ConfigError
from jepa_vl.data import faults
from jepa_vl.training.metrics import MetricsWriter

OPTIONS = {  # of `jepa-vl train`, and the variables that stand for them
    "--coordinator": "JEPA_VL_COORDINATOR",
    "--processes": "JEPA_VL_PROCESSES",
    "--process": "JEPA_VL_PROCESS",
}
TOGETHER = (
    "give --coordinator HOST:PORT (of process 0), --processes N and --process K together, or "
    f"{', '.join(OPTIONS.values())}, or none of them"
)
HEARTBEAT = "JEPA_VL_HEARTBEAT_SECONDS"
SHARED_SECONDS = 15.0  # for a new file to be seen by other hosts


def initialize(
    coordinator: str | None = None, processes: str | None = None, process: str | None = None
) -> None:
    """Meets the other processes of the run, if there are any; before any computation.

    What is told comes first, then TPU pods, SLURM, Open MPI and Kubernetes as JAX knows them.

    Args:
      coordinator: HOST:PORT where process 0 is reached; None, as the others: the variable's.
      processes: how many; process: which of them this is, from 0.

    Raises:
      ConfigError: only some of the three are told, or what they say cannot be; or a cluster that
        does not say where process 0 is.
    """
    arguments = _told((coordinator, processes, process)) or _cluster()
    if not arguments or arguments.get("num_processes") == 1:
        return
    beat = _whole(HEARTBEAT, os.environ.get(HEARTBEAT, "100"), 1)
    jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=beat)


def _told(given: tuple[str | None, ...]) -> dict[str, Any]:
    """Arguments of jax.distributed.initialize from options and variables; empty: none is told."""
    words = [
        os.environ.get(variable, "") if value is None else value
        for value, variable in zip(given, OPTIONS.values(), strict=True)
    ]
    if all(words[:2]) and not words[2]:  # an indexed Job of Kubernetes says this one by itself
        words[2] = os.environ.get("JOB_COMPLETION_INDEX", "")
    if not any(words):
        return {}
    coordinator, processes, process = words
    for option, word in zip(OPTIONS, words, strict=True):
        if not word:
            raise ConfigError(option, word, TOGETHER)
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise ConfigError("--coordinator", coordinator, "HOST:PORT, where process 0 is reached")
    count = _whole("--processes", processes, 1)
    number = _whole("--process", process, 0)
    if number >= count:
        raise ConfigError("--process", number, f"below {count}, the number of processes")
    return {
        "coordinator_address": coordinator,
        "num_processes": count,
        "process_id": number,
        "cluster_detection_method": "deactivate",
    }


def _whole(name: str, word: str, least: int) -> int:
    if not word.isdecimal() or int(word) < least:
        raise ConfigError(name, word, f"a whole number, {least} or more")
    return int(word)


def _cluster() -> dict[str, Any]:
    """Arguments where JAX finds out the rest by itself; empty: this process is alone.

    Decided from variables and the machine, so that nothing waits for a network that is not there.
    """
    env = os.environ
    if _on_tpu():
        return {"initialization_timeout": 300}
    # srun alone sets these: a shell or script of the same job, srun aside, is one process.
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1 and "SLURM_STEP_NODELIST" in env:
        here = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", "1"))
        return {
            "cluster_detection_method": "slurm",
            "num_processes": tasks,
            **_devices(max(int(word) for word in re.findall(r"(?:^|,)(\d+)", here))),
        }
    ranks = int(env.get("OMPI_COMM_WORLD_SIZE", "1"))
    if ranks > 1 and "OMPI_MCA_orte_hnp_uri" in env:
        here = int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))
        return {"cluster_detection_method": "ompi", **_devices(here)}
    if ranks > 1:  # version 5 and later
        rule = "this Open MPI does not tell where rank 0 runs: give --coordinator HOST:PORT "
        rule += "--processes $OMPI_COMM_WORLD_SIZE --process $OMPI_COMM_WORLD_RANK"
        raise ConfigError("OMPI_COMM_WORLD_SIZE", ranks, rule)
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        if importlib.util.find_spec("kubernetes") is not None:
            return {"initialization_timeout": 300}
        index = int(env["JOB_COMPLETION_INDEX"])
        if index:
            rule = "an indexed Job: set JEPA_VL_COORDINATOR=HOST:PORT and JEPA_VL_PROCESSES=N"
            raise ConfigError("JOB_COMPLETION_INDEX", index, rule)
    return {}


def _on_tpu() -> bool:
    """Does this machine hold TPU chips that JAX is to use, and say which of a pod's hosts it is?"""
    from jax._src import cloud_tpu_init  # no public name

    platforms = os.environ.get("JAX_PLATFORMS", "tpu")
    if "tpu" not in platforms.split(",") or not cloud_tpu_init.running_in_cloud_tpu_vm:
        return False
    told = {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"} & os.environ.keys()
    return bool(told) or "TPU_SKIP_MDS_QUERY" not in os.environ


def _devices(here: int) -> dict[str, Any]:
    """JAX gives each of several tasks of a host one GPU; one task, or one with few GPUs, all."""
    visible = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    return {"local_device_ids": []} if here == 1 or 0 < len(visible) < here else {}


def alone() -> bool:
    """Is this process the whole run? Where nobody was met, no device is touched to tell."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def leads() -> bool:
    """Does this process write the files of the run?"""
    return jax.process_index() == 0


def describe() -> str:
    """Who this process is, for people; empty where it is the whole run."""
    if alone():
        return ""
    here, devices = jax.local_device_count(), jax.device_count()
    return (
        f"process {jax.process_index()} of {jax.process_count()}, {here} of {devices} devices here"
    )


def leave(code: int) -> NoReturn:
    """Ends a process that others still count on: they notice, and the exit code stays.

    An ordinary exit would wait for them in the shutdown of jax.distributed, then abort.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def data_part(mesh: Mesh) -> tuple[int, int]:
    """Which part of each batch this process reads: (number, parts).

    Processes that hold the same images, as those that axis tensor joins, read the same part.

    Raises:
      ConfigError: two processes would share some of their images.
    """
    rows = mesh.devices.reshape(sharding.shares(mesh), -1)
    held: dict[int, set[int]] = collections.defaultdict(set)
    for row, devices in enumerate(rows):
        for device in devices:
            held[device.process_index].add(row)
    parts = sorted({tuple(sorted(own)) for own in held.values()})
    if sum(map(len, parts)) != len(rows) or len({len(part) for part in parts}) > 1:
        rule = "each host must hold as many images as the others, and share all of them or none"
        raise ConfigError("mesh", dict(mesh.shape), rule)
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def gather(values: Any) -> np.ndarray:
    """What each process brings, int32 [n] -> int32 [processes, n]; all must call it."""
    own = np.asarray(values, np.int32)
    return own[None] if alone() else np.asarray(multihost_utils.process_allgather(own))


def as_first(numbers: dict[str, float]) -> dict[str, float]:
    """Numbers of the same names, as process 0 has them, in float32 where there are several."""
    if alone():
        return numbers
    own = np.array(list(numbers.values()), np.float32)
    return dict(zip(numbers, gather(own.view(np.int32))[0].view(np.float32).tolist(), strict=True))


def first_says(flag: bool) -> bool:
    """What process 0 says."""
    return bool(gather([flag])[0, 0])


def any_says(flag: bool) -> bool:
    """Does any process say so?"""
    return bool(gather([flag]).any())


def require_same(name: str, value: Any) -> None:
    """What must be the same everywhere, or the processes would wait for each other for ever.

    Args:
      name: of it.
      value: fit for JSON.

    Raises:
      ConfigError: in all processes; says in which it differs from that of process 0.
    """
    if alone():
        return
    found = gather([zlib.crc32(json.dumps(value, default=str).encode()) >> 1])[:, 0]
    other = np.flatnonzero(found != found[0]).tolist()
    if other:
        rule = f"differs between process 0 and {_processes(other)}; all must be given the same"
        raise ConfigError(name, value, rule)


def require_shared(workdir: Path) -> None:
    """Checks that all processes see one folder.

    Raises:
      ConfigError: in all processes; names those that see another one.
    """
    if alone():
        return
    nonce = secrets.randbits(30)
    if leads():
        (workdir / f"shared.{nonce}.tmp").touch()
    nonce = int(gather([nonce])[0, 0])
    path, until = workdir / f"shared.{nonce}.tmp", time.monotonic() + SHARED_SECONDS
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.2)
    sees = gather([path.exists()])[:, 0]
    if leads():
        path.unlink(missing_ok=True)
    blind = np.flatnonzero(sees == 0).tolist()
    if blind:
        rule = f"{_processes(blind)} cannot see what process 0 writes here; all need one shared "
        raise ConfigError("--workdir", str(workdir), rule + "folder")


def _processes(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")
    return f"process {shown}" if len(numbers) == 1 else f"processes {shown}"


def wait(name: str) -> None:
    """Returns when all processes are here."""
    if not alone():
        multihost_utils.sync_global_devices(name)


def list_of_bad_samples(workdir: Path) -> Path:
    """The file of this process."""
    own = "" if leads() else f".{jax.process_index()}"
    return workdir / f"bad_samples{own}.jsonl"


def share_counts(log: faults.Log) -> None:
    """Tells each process how many bad samples the others have met; all must call it."""
    if alone():
        return
    counts = gather([log.counts[cause] for cause in faults.CAUSES])
    others = counts.sum(axis=0) - counts[jax.process_index()]
    named = zip(faults.CAUSES, others.tolist(), strict=True)
    log.elsewhere = collections.Counter({cause: count for cause, count in named if count})


class NoWriter(MetricsWriter):
    """Of the processes that write nothing."""

    def __init__(self):
        self.rows = []

    def write(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Nothing."""
