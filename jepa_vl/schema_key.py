"""How the schema declares a key."""

import dataclasses
from typing import Any


def key(default: Any, doc: str) -> Any:
    """A configuration key: its default and one line of documentation."""
    return dataclasses.field(default=default, metadata={"doc": doc})
