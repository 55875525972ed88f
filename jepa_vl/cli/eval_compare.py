"""``jepa-vl eval compare``: two results of ``jepa-vl eval`` side by side, on the same images."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jepa_vl.cli import configs
from jepa_vl.cli.columns import columns
from jepa_vl.config import ConfigError
from jepa_vl.evaluators.results import Result, interval, of_encoder, unpack

# What two results may differ in: which features these are.
FREE = ("branch", "layers", "pooling", "interval")
PAGE = ("results", "checkpoint_hash", "workdir", "step", "branch", "layers")


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Prints both results of each task, and the difference with a paired interval.

    Raises:
      ConfigError: a file is no result, or they cannot be compared; says why.
    """
    del overrides
    pages = {"--first": _read("--first", args.first), "--second": _read("--second", args.second)}
    first, second = (_shares(page) for page in pages.values())
    pairs = [(a, b) for a in first for b in second if a["task"] == b["task"]]
    if not pairs:
        has, wanted = (", ".join(r["task"] for r in x) or "no accuracy" for x in (second, first))
        rule = f"cannot be compared, it has {has} and not {wanted}"
        raise ConfigError("--second", args.second, rule)
    same = [(a, b) for a, b in pairs if a["data_hash"] == b["data_hash"]]
    if not same:
        images = " and ".join(_images(result["protocol"]) for result in pairs[0])
        rule = f"cannot be compared, other images were measured: {images}"
        raise ConfigError("--second", args.second, f"{rule}; give `eval` the same data and --seed")
    measured_alike = [pair for pair in same if not _differences(*pair)]
    if not measured_alike:
        _refuse(args.second, *same[0])
    rows = [("task", "number", "first", "", "second", "", "second - first", "")]
    for one, two in measured_alike:
        rows += _rows(args.second, one, two)
    lines = [f"{key[2:]}: {_name(page)}" for key, page in pages.items()]
    print(*lines, "", *columns(rows, range(2, 8)), sep="\n")
    words = {one["protocol"].get("interval") for one, _ in measured_alike} - {None}
    print(*(f"({text}, the same ones of both)" for text in words), sep="\n")
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


def _shares(page: dict[str, Any]) -> list[Result]:
    """Results of the encoder that are shares of right images."""
    return [result for result in of_encoder(page) if result["ci"] and result["protocol"]]


def _name(page: dict[str, Any]) -> str:
    layers = f", last {n} layers" if (n := page["layers"]) > 1 else ""
    where = f"{page['workdir']}, step {page['step']}, {page['branch']} encoder{layers}"
    return f"{where} (checkpoint {page['checkpoint_hash']})"


def _images(protocol: dict[str, Any]) -> str:
    held_out = protocol["held_out"]
    return f"{held_out['images']} of {held_out['name']} (seed {protocol['seed']})"


def _differences(one: Result, two: Result) -> list[str]:
    """What two protocols do not agree in, in words."""
    a, b = one["protocol"], two["protocol"]
    keys = [key for key in {**a, **b} if key not in FREE and a.get(key) != b.get(key)]
    return [f"{key} {a.get(key)!r} and {b.get(key)!r}" for key in keys]


def _refuse(path: str, one: Result, two: Result) -> NoReturn:
    changed = "; ".join(_differences(one, two))
    rule = f"cannot be compared, other protocol of {one['task']}: {changed}"
    raise ConfigError("--second", path, rule)


def _rows(path: str, one: Result, two: Result) -> list[tuple[str, ...]]:
    """A row for each number with an interval; the difference has one if it is of the same images.

    Raises:
      ConfigError: a file holds no hits.
    """
    rows = []
    for name in (name for name in one["ci"] if name in two["ci"]):
        values = [result["metrics"][name] for result in (one, two)]
        ci = [interval(*result["ci"][name]) for result in (one, two)]
        gap = f"{values[1] - values[0]:+.4g}", _paired(path, one, two, name)
        rows.append((one["task"], name, f"{values[0]:.4g}", ci[0], f"{values[1]:.4g}", ci[1], *gap))
    return rows


def _paired(path: str, one: Result, two: Result, name: str) -> str:
    from jepa_vl.evaluators.intervals import intervals

    try:
        if name not in one["hits"] or name not in two["hits"]:
            return ""  # no share of images
        right = [unpack(result["hits"][name]).mean(axis=0) for result in (one, two)]
        return interval(*intervals((right[1] - right[0])[None])[0])
    except (KeyError, ValueError) as error:
        rule = f"cannot be compared image by image: {error}"
        raise ConfigError("--second", path, rule) from error
