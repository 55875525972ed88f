"""Captions and labels out of the JSON objects and table rows that users bring."""

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


def lookup(item: dict[str, Any], name: str) -> Any:
    """What stands under a name; None if nothing does.

    A dot leads into an object, or into each object of a list: ``captions.text`` finds the strings
    of ``{"captions": {"text": [...]}}`` and of ``{"captions": [{"text": ...}, ...]}``.
    """
    if name in item:
        return item[name]
    head, _, rest = name.partition(".")
    inner = item.get(head) if rest else None
    if isinstance(inner, list) and all(isinstance(element, dict) for element in inner):
        found = [lookup(element, rest) for element in inner]
        return [value for value in found if value is not None] or None
    return lookup(inner, rest) if isinstance(inner, dict) else None


def leaf_names(item: dict[str, Any]) -> list[str]:
    """All names that :func:`lookup` finds a value under, as the user would write them."""
    names: list[str] = []
    for name, value in item.items():
        inner = value[0] if isinstance(value, list) and value else value
        below = leaf_names(inner) if isinstance(inner, dict) else []
        names += [f"{name}.{leaf}" for leaf in below] or [name]
    return names


def read_captions(
    item: dict[str, Any], caption_keys: Sequence[str], key: str, where: str
) -> list[str]:
    """Captions under the first key (see :func:`lookup`) that is present: one string or a list.

    Raises:
      ConfigError: something else stands there.
    """
    found = ((name, lookup(item, name)) for name in caption_keys)
    name, value = next(((n, v) for n, v in found if v is not None), ("", []))
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ConfigError(key, where, f"{name!r} is neither a string nor a list of strings")
    return value


def read_label(item: dict[str, Any], label_key: str, key: str, where: str) -> str | None:
    """The class name; numbers count as names, null and absence as none.

    Raises:
      ConfigError: something else stands there.
    """
    value = lookup(item, label_key)
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


def first_line(error: Exception) -> str:
    """What a library's error says, without what it adds below; its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
