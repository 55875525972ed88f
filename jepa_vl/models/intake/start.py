"""Where a run starts: parameters out of files in place of chance (``init_from``)."""

import fnmatch
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jepa_vl import tree
from jepa_vl.config import Config, ConfigError
from jepa_vl.models import weights
from jepa_vl.models.frozen_vit import resize_positions
from jepa_vl.models.intake import open_source
from jepa_vl.models.intake.plain import for_our_pixels
from jepa_vl.models.intake.source import Part, Source
from jepa_vl.models.layers import sincos_table
from jepa_vl.models.weights import Problem
from jepa_vl.pretrained import fingerprint
from jepa_vl.shapes import Array, PyTree

KEY, PARTS = "init_from", "init_parts"
ENCODER, IMAGE = "encoder", "image"  # the second is its name beside a trained text tower
POSITION = "position"
NEAR = 1e-5  # how far a table may be from the fixed one to be the same


class Start(NamedTuple):
    """What a run starts from.

    Attributes:
      params: float32 arrays by their names among the parameters; all others start by chance.
      told: path, kind, branch, fingerprint of the files, parts, number of arrays, and what did not
        fit but was allowed; for the checkpoints of the run.
    """

    params: dict[str, Array]
    told: dict[str, Any]


def read(config: Config, like: PyTree) -> Start | None:
    """Parameters that ``init_from`` names; None where it is empty.

    Args:
      config: resolved.
      like: shapes of the run's parameters.

    Raises:
      ConfigError: nothing there, or it does not fit and ``init_allow`` does not name it.
    """
    if not config.init_from:
        return None
    source = open_source(config.init_from, KEY, config.init_branch, config.encoder.heads)
    found: dict[str, Array] = {}
    problems: list[Problem] = []
    for part in config.init_parts:
        name = IMAGE if part == ENCODER and ENCODER not in like else part
        if name not in like:
            rule = f"objective {config.objective!r} trains {', '.join(like)}, no {part}"
            raise ConfigError(PARTS, part, rule)
        expected = {n: tuple(leaf.shape) for n, leaf in tree.flatten(like[name]).items()}
        if part == ENCODER:
            arrays, wrong = _encoder(source, config, expected)
        else:
            tensors = _part(source, part)
            arrays, wrong = weights.match(tensors.tensors(), tensors.rules, expected)
        found |= {f"{name}/{n}": x for n, x in arrays.items()}
        problems += [_in_part(name, problem) for problem in wrong]
    allowed = [p for p in problems if _is_allowed(p, config.init_allow)]
    refused = [p for p in problems if p not in allowed]
    weights.refuse(refused, source.where, " (init_allow=NAME leaves a part as it is)")
    told = {
        "path": config.init_from,
        "kind": source.kind,
        "branch": source.branch,
        "fingerprint": fingerprint(config.init_from, KEY),
        "parts": list(config.init_parts),
        "arrays": len(found),
        "allowed": [problem.text for problem in allowed],
    }
    return Start(found, told)


def _part(source: Source, name: str) -> Part:
    if name not in source.parts:
        there = ", ".join((ENCODER, *source.parts))
        raise ConfigError(PARTS, name, f"{source.where[1]} is {source.kind} and holds {there}")
    return source.parts[name]


def _in_part(part: str, problem: Problem) -> Problem:
    """Names with and without the part, so that either may be allowed."""
    return Problem((*problem.names, f"{part}/{problem.names[0]}"), f"{part}: {problem.text}")


def _is_allowed(problem: Problem, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for name in problem.names for p in patterns)


def _encoder(
    source: Source, config: Config, expected: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Array], list[Problem]]:
    """The encoder's arrays for ``vit.ViT``: its pixels, its positions."""
    c, shape = config.encoder, source.shape
    if shape.heads != c.heads:  # the weights would fit, and compute something else
        raise ConfigError("encoder.heads", c.heads, f"{shape.heads}, that of {config.init_from}")
    wanted = {**expected, POSITION: None}
    found, problems = weights.match(source.encoder.tensors(), source.encoder.rules, wanted)
    if POSITION in found:
        table = found.pop(POSITION)[shape.cls :]
        fixed = sincos_table(table.shape[-1], c.grid)
        if POSITION in expected:
            found[POSITION] = resize_positions(table, 0, c.grid)
        elif table.shape != fixed.shape or np.abs(table - fixed).max() > NEAR:
            other = f"{len(table)} are not the fixed table of {c.grid} x {c.grid} patches"
            text = f"misshapen {POSITION}: {other}; encoder.positions=learned takes them, resized"
            problems.append(Problem((POSITION,), text))
    if {"patch_kernel", "patch_bias"} <= found.keys():
        found |= for_our_pixels(found, shape.mean, shape.std)
    return found, problems
