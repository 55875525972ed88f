"""``jepa-vl eval compare``: two results of ``jepa-vl eval`` side by side, on the same images."""

import argparse
import base64
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl.cli import configs
from jepa_vl.cli.columns import columns
from jepa_vl.config import ConfigError
from jepa_vl.shapes import Array

# What two results may differ in: which features these are.
FREE = ("branch", "layers", "pooling", "interval")
PAGE = ("results", "data_hash", "checkpoint_hash", "workdir", "step", "branch")


def pack(hits: Array) -> dict[str, Any]:
    """Hits as JSON: bool [draws, m] as bits, compressed, base64."""
    bits = zlib.compress(np.packbits(hits).tobytes())
    return {"shape": list(hits.shape), "bits": base64.b64encode(bits).decode()}


def unpack(packed: dict[str, Any]) -> Array:
    """Inverse of :func:`pack`.

    Raises:
      ValueError: these are none.
    """
    try:
        bits = np.frombuffer(zlib.decompress(base64.b64decode(packed["bits"])), np.uint8)
        shape = tuple(packed["shape"])
        return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
    except (KeyError, TypeError, zlib.error) as error:
        raise ValueError(f"no hits: {error}") from error


def interval(low: float, high: float) -> str:
    """An interval as tables show it."""
    return f"[{low:.4g}, {high:.4g}]"


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Prints both results of each task, and the difference with a paired interval.

    Raises:
      ConfigError: a file is no result, or they cannot be compared; says why.
    """
    del overrides
    pages = {"--first": _read("--first", args.first), "--second": _read("--second", args.second)}
    first, second = pages.values()
    if first["data_hash"] != second["data_hash"]:
        images = " and ".join(_images(page) for page in pages.values())
        rule = f"cannot be compared, other images were measured: {images}"
        raise ConfigError("--second", args.second, f"{rule}; give `eval` the same data and --seed")
    tasks = [task for task in _tasks(first) if task in _tasks(second)]
    if not tasks:
        has, wanted = (", ".join(_tasks(page)) or "no accuracy" for page in (second, first))
        rule = f"cannot be compared, it has {has} and not {wanted}"
        raise ConfigError("--second", args.second, rule)
    rows = [("task", "number", "first", "", "second", "", "second - first", "")]
    for task in tasks:
        one, two = _tasks(first)[task], _tasks(second)[task]
        _check_protocol(args.second, task, one["protocol"], two["protocol"])
        rows += _rows(args.second, task, one, two)
    lines = [f"{key[2:]}: {_name(page)}" for key, page in pages.items()]
    print(*lines, "", *columns(rows, range(2, 8)), sep="\n")
    print(f"({_tasks(first)[tasks[0]]['protocol']['interval']}, the same ones of both)")
    return 0


def _read(key: str, path: str) -> dict[str, Any]:
    try:
        page = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(key, path, f"cannot be read: {reason}") from error
    if not isinstance(page, dict) or not all(name in page for name in PAGE):
        raise ConfigError(key, path, "is no result of `jepa-vl eval`, or of an older one")
    return page


def _tasks(page: dict[str, Any]) -> dict[str, Any]:
    """Results of the encoder by task, of those that are shares of right images."""
    found = (r for r in page["results"] if r["features"] == "encoder")
    return {r["task"]: r for r in found if r["ci"]}


def _name(page: dict[str, Any]) -> str:
    protocol = page["results"][0]["protocol"]
    layers = f", last {n} layers" if (n := protocol.get("layers", 1)) > 1 else ""
    where = f"{page['workdir']}, step {page['step']}, {page['branch']} encoder{layers}"
    return f"{where} (checkpoint {page['checkpoint_hash']})"


def _images(page: dict[str, Any]) -> str:
    protocol = page["results"][0]["protocol"]
    held_out = protocol["held_out"]
    return f"{held_out['images']} of {held_out['name']} (seed {protocol['seed']})"


def _check_protocol(path: str, task: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    keys = [key for key in {**one, **two} if key not in FREE and one.get(key) != two.get(key)]
    if keys:
        changed = "; ".join(f"{key} {one.get(key)!r} and {two.get(key)!r}" for key in keys)
        rule = f"cannot be compared, other protocol of {task}: {changed}"
        raise ConfigError("--second", path, rule)


def _rows(path: str, task: str, one: dict[str, Any], two: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each accuracy."""
    from jepa_vl.evaluators.intervals import intervals

    names = [name for name in one["ci"] if name in two["ci"]]
    try:
        right = [[unpack(r["hits"][name]).mean(axis=0) for name in names] for r in (one, two)]
        paired = intervals(np.array(right[1]) - np.array(right[0]))
    except (KeyError, ValueError) as error:
        rule = f"cannot be compared image by image: {error}"
        raise ConfigError("--second", path, rule) from error
    rows = []
    for name, ends in zip(names, paired, strict=True):
        values = [r["metrics"][name] for r in (one, two)]
        ci = [interval(*r["ci"][name]) for r in (one, two)]
        gap = f"{values[1] - values[0]:+.4g}", interval(*ends)
        rows.append((task, name, f"{values[0]:.4g}", ci[0], f"{values[1]:.4g}", ci[1], *gap))
    return rows
