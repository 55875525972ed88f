"""What checkpoints hold, in numbers: their modules, and how two of them differ.

All sums are float64; arrays pass through memory a module at a time. The formulas are plain numpy.
"""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from jepa_vl.config import flat
from jepa_vl.shapes import Array
from jepa_vl.training.stored import Stored

PART = 2**22  # elements that are float64 at a time
PARAMS, TARGET = "params/", "target/"
MOMENTS = ("opt_state/mu/", "opt_state/nu/")
PROVENANCE = ("config_hash", "git", "versions")


def module_of(name: str) -> str:
    """``encoder/block_0/attn/q/kernel`` -> ``encoder/block_0``: two levels, not the leaf's own."""
    return "/".join(name.split("/")[:-1][:2])


def natural(name: str) -> list[Any]:
    """Sorts ``block_2`` before ``block_10``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


@dataclasses.dataclass
class Sums:
    """Inner products of pairs of arrays a, b, over all that were added."""

    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0  # of a - b with itself

    def add(self, a: Array, b: Array) -> None:
        """Adds two arrays of one shape."""
        a, b = a.reshape(-1), b.reshape(-1)
        for start in range(0, a.size, PART):
            x = a[start : start + PART].astype(np.float64)
            y = b[start : start + PART].astype(np.float64)
            with np.errstate(invalid="ignore"):  # what is not finite gives NaN, and is counted
                d = x - y
                products = x @ x, y @ y, x @ y, d @ d
            self._add(*map(float, products))

    def join(self, other: "Sums") -> None:
        """Adds what another one has summed."""
        self._add(other.aa, other.bb, other.ab, other.dd)

    def _add(self, aa: float, bb: float, ab: float, dd: float) -> None:
        self.aa, self.bb, self.ab, self.dd = self.aa + aa, self.bb + bb, self.ab + ab, self.dd + dd

    @property
    def cosine(self) -> float | None:
        """Of a and b; None where one of them is zero."""
        scale = math.sqrt(self.aa * self.bb)
        return self.ab / scale if scale else None

    @property
    def relative(self) -> float | None:
        """|a - b| / |a|; None where a is zero."""
        return math.sqrt(self.dd / self.aa) if self.aa else None


def effective_rank(matrix: Array) -> float | None:
    """exp of the entropy of the singular values, divided by their sum (Roy and Vetterli 2007).

    1 for a matrix of rank 1, min(n, m) for an orthogonal one. None where it is zero or not finite.

    Args:
      matrix: float [..., m]; leading axes are one.
    """
    x = np.asarray(matrix, np.float64).reshape(-1, matrix.shape[-1])
    if not np.all(np.isfinite(x)) or not np.any(x):
        return None
    x = x / np.abs(x).max()
    # The Gram matrix of the shorter side: ten times faster than singular values of the whole. What
    # it rounds away is 1e-8 of the largest one.
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    share = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def followed(params: dict[str, tuple], target: dict[str, tuple]) -> str | None:
    """Where in ``params`` the tree lies that the target follows.

    Args:
      params, target: shapes by name.

    Returns:
      What stands before a name of the target among the parameters, as in ``encoder/``; None where
      no part of the parameters has the target's names and shapes.
    """
    tops = dict.fromkeys(name.partition("/")[0] + "/" for name in params)
    if target and target.items() <= params.items():
        return ""
    for top in tops:
        part = {name.removeprefix(top): x for name, x in params.items() if name.startswith(top)}
        if part == target:
            return top
    return None


def _modules(names: list[str]) -> dict[str, list[str]]:
    """Names of arrays by module, in natural order."""
    out: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: natural(module_of(name))):
        out.setdefault(module_of(name), []).append(name)
    return out


def _shapes(stored: Stored, start: str) -> dict[str, tuple]:
    named = {name: tuple(found.shape) for name, found in stored.arrays.items()}
    return {n.removeprefix(start): shape for n, shape in named.items() if n.startswith(start)}


def summary(stored: Stored) -> dict[str, Any]:
    """The modules of a checkpoint.

    Returns:
      ``modules``: for each one ``module``, ``parameters``, ``norm``, ``target_norm``, ``cosine``
      and ``drift`` (|params - target| / |params|; None where no target follows it), ``rank`` (mean
      over its matrices of effective rank / full rank), ``non_finite`` (numbers, in parameters,
      target and moments), ``matrices``; ``all``: the same of all of them; ``followed``: see
      :func:`followed`.

    Raises:
      Damaged: arrays cannot be read.
    """
    shapes = _shapes(stored, PARAMS)
    prefix = followed(shapes, _shapes(stored, TARGET))
    names = sorted(shapes, key=lambda name: natural(module_of(name)))
    twins = [_twins(stored, name, prefix) for name in names]
    modules: dict[str, _Module] = {}
    for name, found in zip(names, stored.bundles(twins), strict=True):
        modules.setdefault(module_of(name), _Module()).add(name, [*found.items()])
    everything = _Module()
    for module in modules.values():
        everything.join(module)
    total = everything.row()
    total.pop("matrices")
    rows = [{"module": name, **module.row()} for name, module in modules.items()]
    return {"followed": prefix, "modules": rows, "all": {"module": "all", **total}}


def _twins(stored: Stored, name: str, prefix: str | None) -> list[str]:
    """A parameter's place in the state, and those of its target and moments, where it has any."""
    places = [PARAMS + name, *(moment + name for moment in MOMENTS)]
    if prefix is not None and name.startswith(prefix):
        places.append(TARGET + name.removeprefix(prefix))
    return [place for place in places if place in stored.arrays]


class _Module:
    """What is summed over the parameters of one row."""

    def __init__(self):
        self.own, self.pairs = Sums(), Sums()  # of parameters; of those that a target follows
        self.count = self.bad = 0
        self.matrices: dict[str, dict[str, Any]] = {}

    def add(self, name: str, found: list[tuple[str, Array]]) -> None:
        """Adds a parameter; ``found`` are it and its twins by place, itself first."""
        x, places = found[0][1], dict(found)
        self.own.add(x, x)
        self.count += x.size
        self.bad += sum(int(np.sum(~np.isfinite(array))) for array in places.values())
        for place, array in places.items():
            if place.startswith(TARGET):
                self.pairs.add(x, array)
        if x.ndim > 1:
            rank, full = effective_rank(x), min(x.size // x.shape[-1], x.shape[-1])
            self.matrices[name] = {"rank": rank, "of": full, "share": rank and rank / full}

    def join(self, other: "_Module") -> None:
        """Adds another row."""
        self.own.join(other.own)
        self.pairs.join(other.pairs)
        self.count, self.bad = self.count + other.count, self.bad + other.bad
        self.matrices |= other.matrices

    def row(self) -> dict[str, Any]:
        """See :func:`summary`."""
        pairs = self.pairs
        shares = [matrix["share"] for matrix in self.matrices.values() if matrix["share"]]
        return {
            "parameters": self.count,
            "norm": math.sqrt(self.own.aa),
            "target_norm": math.sqrt(pairs.bb) if pairs.aa or pairs.bb else None,
            "cosine": pairs.cosine,
            "drift": pairs.relative,
            "rank": float(np.mean(shares)) if shares else None,
            "non_finite": self.bad,
            "matrices": self.matrices,
        }


def difference(a: Stored, b: Stored) -> dict[str, Any]:
    """How checkpoint b differs from a.

    Returns:
      ``config``, ``data``, ``provenance`` and ``counters``: key -> [of a, of b], where they
      differ; ``only_in``: [names, names]; ``other_shape``: name -> [of a, of b]; ``modules``: for
      each one of each part ``arrays``, ``norm`` (of a), ``difference`` (norm of a - b),
      ``relative``, ``cosine``, ``same_bits``; ``same_bits``: of all arrays.

    Raises:
      Damaged: something cannot be read.
    """
    kinds = [{name: _kind(found) for name, found in stored.arrays.items()} for stored in (a, b)]
    both = [name for name in kinds[0] if kinds[1].get(name) == kinds[0][name]]
    other = {
        name: [kinds[0][name], kinds[1][name]]
        for name in kinds[0]
        if name in kinds[1] and kinds[0][name] != kinds[1][name]
    }
    only_in = [[n for n in x if n not in y] for x, y in (kinds, kinds[::-1])]
    parts = (PARAMS, TARGET, *MOMENTS)
    counters = [n for n in both if not a.arrays[n].shape and not n.startswith(parts)]
    place = followed(_shapes(a, PARAMS), _shapes(a, TARGET)) or ""
    compared = [name for name in both if name not in counters]
    rows: dict[tuple[str, str], _Pair] = {}
    singles = [[name] for name in compared]
    for name, left, right in zip(compared, a.bundles(singles), b.bundles(singles), strict=True):
        rows.setdefault(part_and_module(name, place), _Pair()).add(left[name], right[name])
    order = sorted(rows, key=lambda row: (row[0], natural(row[1])))
    modules = [{"part": part, "module": m, **rows[part, m].row()} for part, m in order]
    old, new = a.read(counters), b.read(counters)
    changed = _changed(*({n: x.item() for n, x in found.items()} for found in (old, new)))
    same = not (changed or other or any(only_in)) and all(row["same_bits"] for row in modules)
    return {
        "config": _changed(*(flat(x.meta.get("config", {})) for x in (a, b))),
        "data": _changed(a.data, b.data),
        "provenance": _changed(*(flat({k: x.meta.get(k) for k in PROVENANCE}) for x in (a, b))),
        "counters": changed,
        "only_in": only_in,
        "other_shape": other,
        "modules": modules,
        "same_bits": same,
    }


def _kind(found: Any) -> str:
    return f"{np.dtype(found.dtype).name} {tuple(found.shape)}"


def part_and_module(name: str, place: str = "") -> tuple[str, str]:
    """``params``, ``target`` or a moment of Adam, and the module; of moments all in one.

    ``place``: of the target among the parameters, so that its modules have the same names.
    """
    for start, before in ((PARAMS, ""), (TARGET, place)):
        if name.startswith(start):
            return start[:-1], module_of(before + name.removeprefix(start))
    return "/".join(name.split("/")[:2]), ""


def _changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
    keys = sorted(old.keys() | new.keys())
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


class _Pair:
    """What is summed over the arrays of one row."""

    def __init__(self):
        self.sums, self.count, self.same = Sums(), 0, True

    def add(self, a: Array, b: Array) -> None:
        """Adds an array of either checkpoint."""
        self.sums.add(a, b)
        self.count += 1
        self.same &= a.tobytes() == b.tobytes()

    def row(self) -> dict[str, Any]:
        """See :func:`difference`."""
        return {
            "arrays": self.count,
            "norm": math.sqrt(self.sums.aa),
            "difference": math.sqrt(self.sums.dd),
            "relative": self.sums.relative,
            "cosine": self.sums.cosine,
            "same_bits": self.same,
        }
