"""Texts that are reviewed by eye: compared with what is committed, rewritten on request.

    JEPA_VL_UPDATE_GOLDENS=1 pytest tests/test_sharding_tables.py tests/test_launch.py

writes what is new; read the diff before it is committed.
"""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "goldens"


def assert_golden(name: str, text: str) -> None:
    path = FOLDER / name
    if os.environ.get("JEPA_VL_UPDATE_GOLDENS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"{path} is missing; see tests/goldens.py"
    assert path.read_text() == text, f"{path.name} differs; see tests/goldens.py"
