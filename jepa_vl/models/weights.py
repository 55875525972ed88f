"""Weights of other libraries in our layout: tables of names, read tensor by tensor.

A table is a list of :class:`Rule`; each tensor of the files matches exactly one. Towers bring
tables of their own.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from jepa_vl import tree
from jepa_vl.config import ConfigError
from jepa_vl.pretrained import INDEX, WEIGHTS, read_json
from jepa_vl.shapes import Array, PyTree

SHOWN = 12  # problems that an error lists


def conv(x: Array) -> Array:
    """A patch embedding [D, 3, p, p] -> [p, p, 3, D]."""
    return x.transpose(2, 3, 1, 0)


def plain(x: Array) -> Array:
    """As it is."""
    return x


def flat(x: Array) -> Array:
    """Leading axes of size 1 dropped: [1, T, D] -> [T, D], [1, 1, D] -> [D]."""
    while x.ndim > 1 and x.shape[0] == 1:
        x = x[0]
    return x


class Rule(NamedTuple):
    """One row of a table.

    Attributes:
      pattern: regular expression on the whole foreign name.
      names: where the tensor goes; several split it evenly along its first axis, none drops it.
        ``\\1`` stands for the pattern's first group.
      change: of axes, after the split.
    """

    pattern: str
    names: tuple[str, ...] = ()
    change: Callable[[Array], Array] = plain


def dense(pattern: str, *names: str) -> tuple[Rule, Rule]:
    """Rows of a linear map: weight [out, in] -> kernel [in, out], and its bias if it has one."""
    kernel = Rule(rf"{pattern}\.weight", tuple(f"{n}/kernel" for n in names), np.transpose)
    return kernel, Rule(rf"{pattern}\.bias", tuple(f"{n}/bias" for n in names))


def norm(pattern: str, name: str) -> tuple[Rule, Rule]:
    """Rows of a LayerNorm; old files call weight and bias gamma and beta."""
    return (
        Rule(rf"{pattern}\.(?:weight|gamma)", (f"{name}/scale",)),
        Rule(rf"{pattern}\.(?:bias|beta)", (f"{name}/bias",)),
    )


Tensors = Iterable[tuple[str, Callable[[], Array]]]


def read_safetensors(folder: Path, key: str) -> Iterator[tuple[str, Callable[[], Array]]]:
    """Names and readers of all tensors of a folder; each reader maps its tensor from the file.

    Raises:
      ConfigError: there are no safetensors, or they are broken.
    """
    files = [folder / WEIGHTS]
    if not files[0].is_file():
        if not (folder / INDEX).is_file():
            raise ConfigError(key, str(folder), f"holds neither {WEIGHTS} nor {INDEX}")
        try:
            shards = {str(n) for n in read_json(folder, INDEX, key)["weight_map"].values()}
        except (KeyError, TypeError, AttributeError):
            raise ConfigError(key, str(folder / INDEX), "names no files of weights") from None
        files = [folder / name for name in sorted(shards)]
    for file in files:
        yield from read_file(file, key)


def read_file(file: Path, key: str) -> Iterator[tuple[str, Callable[[], Array]]]:
    """As :func:`read_safetensors`, of one file."""
    try:
        opened = safe_open(file, "np")  # stays open while there are readers
        names = opened.keys()
    except (OSError, SafetensorError) as error:
        raise ConfigError(key, str(file), f"cannot be read: {error}") from error
    for name in names:
        yield name, lambda name=name: opened.get_tensor(name)


class Problem(NamedTuple):
    """One way in which files do not fit: what it may be allowed by, and what is said of it."""

    names: tuple[str, ...]
    text: str


def match(
    tensors: Tensors,
    rules: Sequence[Rule],
    expected: Mapping[str, tuple[int, ...] | None],
    dtype: Any = np.float32,
) -> tuple[dict[str, Array], list[Problem]]:
    """Foreign tensors under our names; one tensor at a time is in memory twice.

    Args:
      tensors: names and readers, see :func:`read_safetensors`.
      rules: the table; the first row that fits counts.
      expected: our names with their shapes; None: any shape.
      dtype: that matrices are stored in; vectors (norms, biases) stay float32.

    Returns:
      What was found, and what is missing, unexpected or misshapen.
    """
    found: dict[str, Array] = {}
    problems: list[Problem] = []
    misshapen: set[str] = set()
    for foreign, read in tensors:
        rule, names = _destination(foreign, rules)
        if rule is None:
            problems.append(Problem((foreign,), f"unexpected {foreign}"))
        strange = [name for name in names if name not in expected]
        problems += [Problem((n, foreign), f"unexpected {foreign} (would be {n})") for n in strange]
        if rule is None or len(strange) == len(names):
            continue
        given = read()
        for name, array in zip(names, _parts(given, rule), strict=True):
            shape = expected.get(name)
            if name in strange:
                continue
            if array is None or (shape is not None and array.shape != shape):
                there = given.shape if array is None else array.shape
                text = f"misshapen {foreign}: {name} is {shape}, not {there}"
                problems.append(Problem((name, foreign), text))
                misshapen.add(name)
            else:
                stored = dtype if array.ndim > 1 else np.float32
                found[name] = np.ascontiguousarray(array.astype(stored))
    gone = [name for name in expected if name not in found and name not in misshapen]
    return found, problems + [Problem((name,), f"missing {name}") for name in gone]


def _parts(given: Array, rule: Rule) -> list[Array | None]:
    """A tensor split and turned as its row says; None: it has not the axes for that."""
    try:
        return [rule.change(part) for part in np.split(given, len(rule.names))]
    except (ValueError, IndexError):
        return [None] * len(rule.names)


def refuse(problems: Sequence[Problem], where: tuple[str, str], hint: str = "") -> None:
    """Raises ConfigError where there are any; lists them.

    Args:
      problems: what does not fit.
      where: configuration key and path.
      hint: what is said before the list.
    """
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        listing = "\n  ".join(sorted(problem.text for problem in problems)[:SHOWN]) + more
        raise ConfigError(*where, f"the weights do not fit the model{hint}:\n  {listing}")


def convert(
    tensors: Tensors, rules: Sequence[Rule], like: PyTree, where: tuple[str, str], dtype: Any
) -> PyTree:
    """Foreign tensors as a tree of parameters; see :func:`match`.

    Args:
      tensors, rules, dtype: as there.
      like: arrays or ShapeDtypeStructs, what a module expects.
      where: configuration key and path, for errors.

    Returns:
      Nested dictionaries of numpy arrays, shaped as ``like``.

    Raises:
      ConfigError: lists what is missing, unexpected or misshapen.
    """
    expected = {name: tuple(leaf.shape) for name, leaf in tree.flatten(like).items()}
    found, problems = match(tensors, rules, expected, dtype)
    refuse(problems, where)
    return tree.map_named(lambda name, _: found[name], like)


def _destination(foreign: str, rules: Sequence[Rule]) -> tuple[Rule | None, tuple[str, ...]]:
    """The row that fits a foreign name, None if none does, and what it is called here."""
    for rule in rules:
        match = re.fullmatch(rule.pattern, foreign)
        if match:
            return rule, tuple(match.expand(name) for name in rule.names)
    return None, ()


def load(
    folder: Path, rules: Sequence[Rule], like: PyTree, where: tuple[str, str], dtype: Any
) -> PyTree:
    """The weights of a Hugging Face folder; see :func:`convert`."""
    return convert(read_safetensors(folder, where[0]), rules, like, where, dtype)


def expected(module: Any, *inputs: Any) -> PyTree:
    """Shapes of a module's parameters: what :func:`load` is asked for; nothing is computed."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
    return jax.eval_shape(module.init, jax.random.key(0), *shapes)["params"]


def require(
    config: dict[str, Any], wanted: dict[str, Sequence[Any]], where: tuple[str, str]
) -> None:
    """Refuses models of a kind that the formulas here do not cover.

    Args:
      config: a config.json.
      wanted: key -> the values that are covered; the first stands for an absent key.
      where: configuration key and path, for errors.

    Raises:
      ConfigError: names the key and its value.
    """
    for name, values in wanted.items():
        value = config.get(name, values[0])
        if value not in values:
            some = " or ".join(repr(v) for v in values)
            raise ConfigError(*where, f"its config.json has {name} = {value!r}; covered: {some}")
