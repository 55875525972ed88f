"""Configuration files and the values that the command line changes in them."""

import ast
import dataclasses
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from jepa_vl.config import Config, ConfigError, flat, from_dict, resolve

# What Python raises on reading text as a value; the last two where brackets are nested deeply.
UNREADABLE = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)
_NUMBER = re.compile(r"-\.?\d")


class Override(NamedTuple):
    """``--config.key=value``; None where no value was given."""

    key: str
    value: str | None


def take_overrides(argv: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Separates ``--config.key=value`` and ``--config.key value`` from the other arguments.

    ``--config.key`` alone turns a switch on, ``--noconfig.key`` turns it off.
    """
    rest: list[str] = []
    overrides: list[Override] = []
    waiting = list(argv)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if name.startswith("--noconfig.") and not equals:
            overrides.append(Override(name.removeprefix("--noconfig."), "false"))
        elif not name.startswith("--config."):
            rest.append(word)
        elif equals:
            overrides.append(Override(name.removeprefix("--config."), value))
        else:
            given = waiting and (waiting[0][:1] != "-" or _NUMBER.match(waiting[0]))
            value = waiting.pop(0) if given else None
            overrides.append(Override(name.removeprefix("--config."), value))
    return rest, overrides


PATHLESS = ("shapes_world", "mixture")
UNREAD = "(not read)"


def load(path: str, overrides: Sequence[Override] = (), reads_data: bool = True) -> Config:
    """Reads a config file, changes single values and resolves the rest.

    Args:
      path: of a Python file with ``get_config()``; what follows a colon is its argument.
      overrides: applied in their order.
      reads_data: False: what is done needs no data, so that data.path may be left out.

    Raises:
      ConfigError: no such file, a file that fails, unknown keys, wrong types or meaning, or masks
        that cannot be drawn.
    """
    # Through the schema: a file may leave keys out, and 1 may stand where a float is meant.
    config = from_dict(_read(path))
    if not reads_data and not config.data.path and config.data.kind not in PATHLESS:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=UNREAD))
    return change(config, overrides)


def change(config: Config, overrides: Sequence[Override]) -> Config:
    """Changes single values, in their order, and resolves the rest.

    Raises:
      ConfigError: unknown keys, wrong types or meaning.
    """
    tree = ConfigDict(dataclasses.asdict(config), convert_dict=True)
    for override in overrides:
        tree = _change(tree, override)
    from jepa_vl.data import masking  # numpy: not for --help

    config = resolve(tree)
    masking.plan_masks(config)
    return config


def _read(path: str) -> ConfigDict | dict[str, Any]:
    """What ``get_config`` of a file returns."""
    file = Path(path.partition(":")[0])
    if not file.is_file():
        raise ConfigError("--config", path, "no such file")
    sys.modules.pop("config_config", None)  # else names of a file loaded earlier live on in it
    values, argv = flags.FlagValues(), [f"--config={path}"]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv, lock_config=False)
    try:
        values(["jepa-vl", *argv])
        tree = values.config
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, ConfigError):
            raise cause from None
        what = f"{type(cause).__name__}: {_first_line(cause)}{_where(cause, file)}"
        raise ConfigError("--config", path, f"cannot be loaded: {what}") from error
    if isinstance(tree, ConfigDict | dict):
        return tree
    if type(tree).__name__ == "_ErrorConfig":  # ml_collections puts off errors of reading
        raise ConfigError("--config", path, "cannot be read")
    rule = f"get_config() must return a ConfigDict, not {type(tree).__name__}"
    raise ConfigError("--config", path, rule)


def _cause(error: BaseException) -> BaseException:
    """The exception that the file raised; absl wraps it."""
    while (inner := error.__cause__ or error.__context__) is not None:
        if isinstance(error, ConfigError):
            break
        error = inner
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _where(error: BaseException, file: Path) -> str:
    """The last line of the file that the error passed through."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    return f" (line {lines[-1]})" if lines else ""


def _change(tree: ConfigDict, override: Override) -> ConfigDict:
    key, text = override
    leaves = flat(tree.to_dict())
    if key not in leaves:
        raise ConfigError(key or "--config.", text, _unknown(key, list(leaves)))
    kind = type(leaves[key])
    if text is None:
        if kind is not bool:
            raise ConfigError(key, "", f"needs a value: --config.{key}=VALUE")
        text = "true"
    if kind is tuple:
        text = _quoted(text)
    values, argv = flags.FlagValues(), [f"--config.{key}={text}"]
    try:
        config_flags.DEFINE_config_dict("config", tree, flag_values=values, sys_argv=argv)
        values(["jepa-vl", *argv])
    except (flags.Error, *UNREADABLE) as error:
        raise ConfigError(key, text, f"must be {kind.__name__}") from error
    return values.config


def _quoted(text: str) -> str:
    """Words between commas as the Python tuple that they stand for; other text as it is."""
    try:
        ast.literal_eval(text)
    except UNREADABLE:
        if text[:1] not in ("(", "["):
            return repr(tuple(word.strip() for word in text.split(",") if word.strip()))
    return text


def _unknown(key: str, leaves: list[str]) -> str:
    below = [leaf for leaf in leaves if leaf.startswith(key + ".")]
    if below:
        return f"holds keys of its own, not a value: {', '.join(below)}"
    near = difflib.get_close_matches(key, leaves, n=1)
    # "steps" for "train.steps" is a likely slip, and far away as text.
    near = [leaf for leaf in leaves if leaf.split(".")[-1] == key.split(".")[-1]][:1] or near
    return f"no such key; did you mean {near[0]}?" if near else "no such key"
