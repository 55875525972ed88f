"""What all benchmarks share: interleaved repeats, their summary, the machine they ran on."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

Sample = dict[str, float | None]


def interleave(
    arms: Mapping[str, Callable[[], Sample]], repeats: int
) -> dict[str, dict[str, list[Any]]]:
    """Runs each arm once a round: what else the machine does then meets all of them alike.

    Args:
      arms: by name; each call measures once and returns numbers by name.
      repeats: rounds.

    Returns:
      For each arm and number the values of all rounds; ``load`` is added, the one-minute load
      average at the end of each measurement.
    """
    found: dict[str, dict[str, list[Any]]] = {name: {} for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            for key, value in {**arm(), "load": os.getloadavg()[0]}.items():
                found[name].setdefault(key, []).append(value)
    return found


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that a call takes: wall clock, and CPU time of this process."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def summaries(found: dict[str, dict[str, list[Any]]]) -> dict[str, dict[str, Any]]:
    """The :func:`summary` of each number of each arm, as :func:`interleave` returns them."""
    return {
        arm: {name: summary(values) for name, values in numbers.items()}
        for arm, numbers in found.items()
    }


def summary(values: list[float | None]) -> dict[str, Any]:
    """Median, least, most and all of them; null where the platform cannot tell."""
    known = sorted(value for value in values if value is not None)
    if len(known) < len(values):
        return {"median": None, "min": None, "max": None, "all": values}
    middle = (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2
    return {"median": middle, "min": known[0], "max": known[-1], "all": values}


def ratio(slow: dict[str, Any], fast: dict[str, Any]) -> dict[str, float | None]:
    """How many times as long the first takes: by the shortest times, and by the medians.

    Args:
      slow: :func:`summary` of times or costs.
      fast: another one.
    """
    if slow["min"] is None or fast["min"] is None:
        return {"of_minima": None, "of_medians": None}
    return {
        "of_minima": slow["min"] / fast["min"],
        "of_medians": slow["median"] / fast["median"],
    }


def processes() -> list[int]:
    """This process and all below it. Linux; elsewhere none."""
    if not Path("/proc/self/stat").exists():
        return []
    parents: dict[int, int] = {}
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        if (fields := _stat(int(entry))) is not None:
            parents[int(entry)] = int(fields[1])
    family = [os.getpid()]
    for parent in family:  # grows while it is read
        family += [child for child, above in parents.items() if above == parent]
    return family


def cpu_seconds() -> float | None:
    """CPU time so far of this process and all that live below it; None where it is not told."""
    times = [_stat(process) for process in processes()]
    ticks = sum(int(fields[11]) + int(fields[12]) for fields in times if fields is not None)
    return ticks / os.sysconf("SC_CLK_TCK") if times else None


def resident_mib() -> float | None:
    """Memory of this process and all below it, pages they share counted for each of them."""
    pages = [_pages(process) for process in processes()]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20 if pages else None


def busy_seconds() -> float | None:
    """CPU time so far of everything on this machine, all cores; None where it is not told."""
    if not Path("/proc/stat").exists():
        return None
    user, nice, system, _, _, irq, softirq, *_ = (
        int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def peak_resident_mib() -> float | None:
    """The most memory that this process ever held; None where it is not told."""
    if not Path("/proc/self/status").exists():
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))


def machine(*packages: str) -> dict[str, Any]:
    """Processor, cores, and the versions of packages."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), model)
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"processor": model, "cores": cores, "versions": versions, "started": started}


def write(result: dict[str, Any], path: str) -> None:
    """As JSON: to a file, or printed where none is named."""
    text = json.dumps(result, indent=2)
    if path:
        Path(path).write_text(text + "\n")
    else:
        print(text)


def _stat(process: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; None if it has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _pages(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0
