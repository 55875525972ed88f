"""Weights of other libraries in our layout: tables of names, read tensor by tensor.

A table is a list of :class:`Rule`; each tensor of the files matches exactly one. Towers bring
tables of their own.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from jepa_vl import tree
from jepa_vl.config import ConfigError
from jepa_vl.pretrained import INDEX, WEIGHTS
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
        shards = json.loads((folder / INDEX).read_text())["weight_map"].values()
        files = [folder / name for name in sorted(set(shards))]
    for file in files:
        try:
            with safe_open(file, "np") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dictionary
                    yield name, lambda opened=opened, name=name: opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ConfigError(key, str(file), f"cannot be read: {error}") from error


def convert(
    tensors: Tensors, rules: Sequence[Rule], like: PyTree, where: tuple[str, str], dtype: Any
) -> PyTree:
    """Foreign tensors as a tree of parameters; one tensor at a time is in memory twice.

    Args:
      tensors: names and readers, see :func:`read_safetensors`.
      rules: the table; the first row that fits counts.
      like: arrays or ShapeDtypeStructs, what a module expects.
      where: configuration key and path, for errors.
      dtype: that matrices are stored in; vectors (norms, biases) stay float32.

    Returns:
      Nested dictionaries of numpy arrays, shaped as ``like``.

    Raises:
      ConfigError: lists what is missing, unexpected or misshapen.
    """
    expected = {name: tuple(leaf.shape) for name, leaf in tree.flatten(like).items()}
    found: dict[str, Array] = {}
    misshapen: set[str] = set()
    problems: list[str] = []
    for foreign, read in tensors:
        rule, names = _destination(foreign, rules)
        if rule is None:
            problems.append(f"unexpected {foreign}")
        if rule is None or not names:
            continue
        for name, part in zip(names, np.split(read(), len(names)), strict=True):
            array = rule.change(part)
            if name not in expected:
                problems.append(f"unexpected {foreign} (would be {name})")
            elif array.shape != expected[name]:
                problems.append(
                    f"misshapen {foreign}: {name} is {expected[name]}, not {array.shape}"
                )
                misshapen.add(name)
            else:
                stored = dtype if array.ndim > 1 else np.float32
                found[name] = np.ascontiguousarray(array.astype(stored))
    problems += [f"missing {name}" for name in expected.keys() - found.keys() - misshapen]
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        listing = "\n  ".join(sorted(problems)[:SHOWN]) + more
        raise ConfigError(*where, f"the weights do not fit the model:\n  {listing}")
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
