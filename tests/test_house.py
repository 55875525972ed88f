"""The walls of the house: who may import whom, and how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jepa_vl"
FILES = sorted(PACKAGE.rglob("*.py"))

# room -> rooms it may import (its own is always allowed).
LAW = {
    "__init__": set(),
    "__main__": {"cli"},
    "shapes": set(),
    "schema": {"schema_run", "schema_health", "schema_key"},
    "schema_run": {"schema_key"},
    "schema_health": {"schema_key"},
    "schema_key": set(),
    "errors": set(),
    "methods": {"schema", "errors"},
    "limits": {"schema", "errors"},
    "kinds": {"schema", "errors"},
    "hardware": {"errors"},
    "versions": {""},
    "tree": {"shapes"},
    "config": {"shapes", "schema", "schema_health", "errors", "methods", "kinds", "limits"},
    "pretrained": {"config"},
    "sharding": {"shapes", "tree", "schema", "config", "hardware"},
    "models": {"shapes", "tree", "schema", "config", "pretrained", "sharding"},
    "data": {"shapes", "schema", "methods", "kinds", "config", "pretrained"},
    "objectives": {"shapes", "tree", "schema", "methods", "config", "sharding", "models"},
    "evaluators": {"", "shapes", "tree", "schema", "config", "sharding", "models", "data"},
    "training": {"shapes", "tree", "schema", "schema_health", "config", "sharding", "models",
                 "data", "objectives", "evaluators", "hardware", "versions"},
    "report": {"shapes", "tree", "schema", "config", "sharding", "models", "data", "objectives",
               "evaluators", "training", "scaling"},
    "export": {"shapes", "tree", "schema", "config", "models"},
    "scaling": {"shapes", "schema", "config"},
    "cli": {"", "shapes", "tree", "schema", "config", "sharding", "models", "data", "objectives",
            "evaluators", "training", "report", "export", "scaling", "hardware", "kinds",
            "methods", "pretrained", "versions"},
}  # fmt: skip


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = {name.split(".")[1] for name in imports(path) if name.startswith("jepa_vl.")}
    return {"" if name == "__version__" else name for name in rooms} - {room(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_file_imports_only_the_rooms_below_its_own(path):
    assert imported_rooms(path) <= LAW[room(path)]


def test_the_law_notices_an_import_from_above(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    outlaw = tmp_path / "data" / "outlaw.py"
    outlaw.write_text("from jepa_vl.training import loop\n")
    assert not imported_rooms(outlaw) <= LAW["data"]


def test_flax_is_imported_in_models_alone():
    users = {room(p) for p in FILES if any(n.split(".")[0] == "flax" for n in imports(p))}
    assert users == {"models"}


def test_data_never_names_jax():
    names = {n.split(".")[0] for p in FILES if room(p) == "data" for n in imports(p)}
    assert not names & {"jax", "jaxlib", "flax", "optax", "orbax"}


@pytest.mark.parametrize(
    "folder", ["jepa_vl", "tests", "configs", "launch", "benchmarks", "studies", "examples"]
)
def test_no_file_is_longer_than_400_lines(folder):
    long = [p for p in (ROOT / folder).rglob("*.py") if len(p.read_text().splitlines()) > 400]
    assert long == []


def test_no_tensorflow_at_run_time():
    code = (
        "import sys, jepa_vl.training.loop, jepa_vl.report.collect, jepa_vl.cli.main\n"
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
