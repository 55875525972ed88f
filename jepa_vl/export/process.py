"""Fresh Python processes, in which other libraries meet the files without us."""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from jepa_vl.config import ConfigError

# Nothing is downloaded, and no library takes a GPU for a check that is of the CPU.
QUIET = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
}  # fmt: skip


def require(name: str, packages: Sequence[str], extra: str) -> None:
    """Are the libraries of a format here? They are not imported.

    Args:
      name: of the format.
      packages: that it needs.
      extra: of our package, that brings them.

    Raises:
      ConfigError: names those that are absent.
    """
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        raise ConfigError(
            "--format", name, f"needs {', '.join(absent)}: pip install 'jepa-vl[{extra}]'"
        )


def run(name: str, source: str, values: dict[str, str]) -> str:
    """Runs Python source; returns what it prints.

    Args:
      name: of the format, for errors.
      source: sees ``values`` as variables.
      values: text by name.

    Raises:
      ConfigError: it fails; the last line of what it says.
    """
    head = "".join(f"{key} = {value!r}\n" for key, value in values.items())
    done = subprocess.run(
        [sys.executable, "-P", "-c", head + source],  # not from the folder we are in
        capture_output=True,
        text=True,
        env={**os.environ, **QUIET},
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        rule = f"its own library refuses: {said[-1].strip() if said else done.returncode}"
        raise ConfigError("--format", name, rule)
    return done.stdout
