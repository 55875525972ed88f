"""What `jepa-vl doctor` looks at: each check says what it found and what to do about it.

Nothing here imports jax: a broken one must not take the doctor with it, so a process of its own
tries it.
"""

import importlib.metadata
import io
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from jepa_vl.data.files import cache_folder

OK, WARN, FAIL = "ok", "warn", "fail"
PACKAGE = "jepa-vl"
EXTRAS = {  # of setup.py -> what each one brings
    "tpu": "TPUs, and `jepa-vl compile` for them",
    "gpu": "NVIDIA GPUs",
    "gcs": "gs:// paths",
    "turbo": "data.decoder=turbo",
    "export": "jepa-vl export",
    "timm": "jepa-vl export --format timm",
    "wandb": "log.wandb",
}
GIB = 2**30
LEAST_DISK, GOOD_DISK, GOOD_SHARED = 0.5 * GIB, 5 * GIB, 1 * GIB
GOOD_FILES = 4096
SHARED = Path("/dev/shm")
# Files of a machine -> the extra that its devices need.
DEVICES = {"/dev/nvidia0": "gpu", "/dev/accel0": "tpu", "/dev/vfio/0": "tpu"}
DEVICE_SECONDS, TPU_SECONDS = 180, 600

LOOK = """
import jax, jax.numpy as jnp
found = jax.devices()
assert float(jnp.ones((8, 8)).sum()) == 64
import jepa_vl.training.loop, sys
print(found[0].platform, len(found), found[0].device_kind, "tensorflow" in sys.modules, sep="|")
"""
COMPILE = """
from jepa_vl.training import topology
there = topology.parse("v5e-4")
topology.prepare(there)
import jax, jax.numpy as jnp
import numpy as np
mesh = jax.sharding.Mesh(np.array(topology.devices(there)), ("data",))
place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
like = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place)
jax.jit(lambda x: (x @ x.T).sum()).lower(like).compile()
print("compiled")
"""


class Finding(NamedTuple):
    """Of one check.

    Attributes:
      state: ok, warn or fail.
      check: its name. found: what is there. advice: what to do; empty where nothing is.
    """

    state: str
    check: str
    found: str
    advice: str = ""


def python() -> Iterator[Finding]:
    """The interpreter, against what the package asks for."""
    from packaging.specifiers import SpecifierSet

    wanted, found = _metadata("Requires-Python"), platform.python_version()
    if wanted and found not in SpecifierSet(wanted):
        yield Finding(FAIL, "python", found, f"use Python {wanted}")
    else:
        yield Finding(OK, "python", f"{found}, {sys.executable}")


def _metadata(key: str) -> str:
    try:
        return importlib.metadata.metadata(PACKAGE)[key] or ""
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return ""


def libraries() -> Iterator[Finding]:
    """Every library that the package needs, against its pin; then the extras."""
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or []]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(FAIL, "libraries", f"{PACKAGE} is not installed", "pip install -e .")
        return
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = {str(one): _wrong(one) for one in needed}
    for text, found in wrong.items():
        if found:
            yield Finding(FAIL, "libraries", found, f"pip install '{text.partition(';')[0]}'")
    if not any(wrong.values()):
        yield Finding(OK, "libraries", f"{len(needed)} as setup.py pins them")
    for extra, what in EXTRAS.items():
        parts = [
            one
            for one in wanted
            if one not in needed and one.marker and one.marker.evaluate({"extra": extra})
        ]
        lacking = [text for text in map(_wrong, parts) if text]
        install = f"pip install 'jepa-vl[{extra}]'"
        if not parts:
            advice = "install this checkout again: pip install -e ."
            yield Finding(WARN, f"extra {extra}", "unknown to what is installed", advice)
        elif not lacking:
            yield Finding(OK, f"extra {extra}", "installed")
        elif all(text.endswith("not installed") for text in lacking):
            yield Finding(OK, f"extra {extra}", "not installed", f"for {what}: {install}")
        else:
            yield Finding(WARN, f"extra {extra}", "; ".join(lacking), f"for {what}: {install}")


def _wrong(wanted: Requirement) -> str:
    """What is wrong with an installed library; empty: nothing."""
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{wanted.name} not installed"
    if not wanted.specifier.contains(version, prereleases=True):
        return f"{wanted.name} {version}, not {wanted.specifier}"
    for extra in wanted.extras:  # jax[tpu] has libraries of its own
        for text in importlib.metadata.requires(wanted.name) or []:
            part = Requirement(text)
            if part.marker and not part.marker.evaluate({"extra": ""}):
                found = part.marker.evaluate({"extra": extra}) and _wrong(part)
                if found:
                    return found
    return ""


def devices() -> Iterator[Finding]:
    """What jax computes on, tried in a process of its own, and that TensorFlow stays out."""
    done = _try(LOOK, DEVICE_SECONDS)
    if isinstance(done, str):
        advice = "run `python -c 'import jax; print(jax.devices())'` and see what it says"
        yield Finding(FAIL, "devices", done, advice)
        return
    kind, count, name, tensorflow = done.stdout.strip().splitlines()[-1].split("|")
    here = {extra for path, extra in DEVICES.items() if Path(path).exists()}
    if kind == "cpu" and here and os.environ.get("JAX_PLATFORMS") != "cpu":
        extra = min(here)
        what = f"jax sees {count} CPU device(s), though this machine has a {extra.upper()}"
        yield Finding(WARN, "devices", what, f"pip install 'jepa-vl[{extra}]'")
    else:
        yield Finding(OK, "devices", f"{count} x {name} ({kind}); {_cores()} cores")
    if tensorflow == "True":
        advice = "a library imports it; memory and start suffer, and it may take the accelerator"
        yield Finding(WARN, "tensorflow", "imported beside jax", advice)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tpu_compiler() -> Iterator[Finding]:
    """Can this machine compile for a TPU that it does not have?"""
    done = _try(COMPILE, TPU_SECONDS)
    if isinstance(done, str):
        advice = "pip install 'jepa-vl[tpu]'; several processes at once need TPU_LOAD_LIBRARY=0"
        yield Finding(FAIL, "tpu compiler", done, advice)
    else:
        yield Finding(OK, "tpu compiler", "compiles for v5e-4")


def _try(code: str, seconds: float) -> subprocess.CompletedProcess[str] | str:
    """A Python program that must end well; else the last line of what it said."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:.0f} s; does another process hold the device?"
    if done.returncode == 0:
        return done
    said = done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"]
    return said[-1]


def codecs() -> Iterator[Finding]:
    """Decodes a picture as the data do."""
    from PIL import Image, features

    lacking = [name for name in ("jpg", "webp", "zlib") if not features.check(name)]
    try:
        for form in ("JPEG", "PNG", "WEBP"):
            file = io.BytesIO()
            Image.new("RGB", (32, 24), (200, 40, 10)).save(file, form)
            red = Image.open(io.BytesIO(file.getvalue())).convert("RGB").getpixel((5, 5))
            assert isinstance(red, tuple) and red[0] > 150
    except (OSError, KeyError, AssertionError) as error:
        what = f"{form} cannot be decoded ({error}); Pillow lacks {', '.join(lacking) or 'nothing'}"
        yield Finding(FAIL, "images", what, "pip install --force-reinstall pillow")
        return
    yield Finding(OK, "images", "JPEG, PNG and WebP are decoded")


def folders() -> Iterator[Finding]:
    """The cache can be written, and there is room there and here."""
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
        yield Finding(OK, "cache", str(cache))
    except OSError as error:
        advice = "set JEPA_VL_CACHE to a folder that can be written"
        yield Finding(FAIL, "cache", f"{cache}: {error.strerror}", advice)
    for name, folder in {"disk of the cache": cache, "disk here": Path.cwd()}.items():
        there = next(one for one in (folder, *folder.parents) if one.exists())
        free = shutil.disk_usage(there).free
        state = FAIL if free < LEAST_DISK else WARN if free < GOOD_DISK else OK
        advice = "" if state == OK else "make room: checkpoints and indices are written there"
        yield Finding(state, name, f"{free / GIB:.1f} GiB free", advice)


def limits() -> Iterator[Finding]:
    """Shared memory for the batches of data workers, and how many files may be open."""
    if SHARED.is_dir():
        size = shutil.disk_usage(SHARED).free
        state, advice = OK, ""
        if size < GOOD_SHARED:
            state, advice = WARN, "docker run --shm-size=8g, or --config.data.workers=0"
        yield Finding(state, "shared memory", f"{size / GIB:.1f} GiB free", advice)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < GOOD_FILES
    most = "unlimited" if hard == resource.RLIM_INFINITY else hard
    advice = f"ulimit -n {GOOD_FILES} (at most {most}): shards and workers hold files open"
    yield Finding(WARN if few else OK, "open files", str(soft), advice if few else "")


CHECKS = (python, libraries, codecs, folders, limits, devices)
