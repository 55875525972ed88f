"""Captions and labels out of the JSON that users write."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jepa_vl.config import ConfigError


def parse_object(text: str | bytes, key: str, where: str) -> dict[str, Any]:
    """A JSON object, or a ConfigError that says where it is broken."""
    try:
        item = json.loads(text)
    except ValueError as error:
        raise ConfigError(key, where, f"is no JSON: {error}") from error
    if not isinstance(item, dict):
        raise ConfigError(key, where, f"holds a JSON {type(item).__name__}, not an object")
    return item


def read_captions(
    item: dict[str, Any], caption_keys: Sequence[str], key: str, where: str
) -> list[str]:
    """Captions under the first key that is present: a list of strings or one string.

    Raises:
      ConfigError: something else stands there.
    """
    name = next((name for name in caption_keys if item.get(name) is not None), None)
    if name is None:
        return []
    value = item[name]
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ConfigError(key, where, f"{name!r} is neither a string nor a list of strings")
    return value


def read_label(item: dict[str, Any], label_key: str, key: str, where: str) -> str | None:
    """The class name; numbers count as names, null and absence as none.

    Raises:
      ConfigError: something else stands there.
    """
    value = item.get(label_key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ConfigError(key, where, f"{label_key!r} is neither a string, a whole number nor null")
    return str(value)


def class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Distinct names, sorted; as numbers if all are numbers."""
    distinct = set(names)
    return tuple(sorted(distinct, key=int if all(map(str.isdecimal, distinct)) else None))


def number_labels(names: Sequence[str | None]) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and, for each record, the index of its own: int32 [records], -1 for none."""
    classes = class_names([name for name in names if name is not None])
    index = {name: i for i, name in enumerate(classes)}
    return classes, np.array([-1 if n is None else index[n] for n in names], np.int32)
