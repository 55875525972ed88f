"""What the tests of launch/ share: scripts loaded as modules, stand-ins on PATH."""

import importlib.util
import os
import stat
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"launch_{name}", LAUNCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def environment(bin_folder: Path, **more) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JEPA_VL_", "SLURM_"))}
    path = f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return {**clean, **own, **{key: str(value) for key, value in more.items()}}


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.02)
