"""Which code runs: the commit of the checkout, and the libraries beside it."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from jepa_vl import __version__

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
CHECKOUT = Path(__file__).resolve().parents[1]


def git_commit() -> str:
    """The commit of the checkout that runs, a plus for local changes; empty if installed."""
    if not (CHECKOUT / ".git").exists():  # else a checkout of something else, around it, would tell
        return ""
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def installed() -> dict[str, str]:
    """Versions of :data:`LIBRARIES` by their metadata; none of them is imported.

    Raises:
      PackageNotFoundError: one of them is not installed.
    """
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def told() -> str:
    """What ``jepa-vl --version`` prints."""
    commit = git_commit() or "none: not run from a checkout"
    lines = {"commit": commit, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            lines[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lines[name] = "not installed"
    width = max(map(len, lines))
    return "\n".join(
        [f"jepa-vl {__version__}", *(f"  {name:<{width}}  {text}" for name, text in lines.items())]
    )
