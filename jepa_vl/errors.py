"""The error that bad input raises, and the checks that raise it most."""

import difflib
from typing import Any

SHOWN = 200  # letters of a value in a message


class ConfigError(ValueError):
    """Bad input of the user: one line that names the key, the value and the rule. Exit code 5."""

    def __init__(self, key: str, value: Any, rule: str):
        self.key, self.value, self.rule = key, value, rule
        super().__init__(f"{_short(str(key))} = {shown(value)}: {rule}")

    def __reduce__(self) -> tuple:
        """Errors travel from data workers by pickle."""
        return ConfigError, (self.key, self.value, self.rule)


def shown(value: Any) -> str:
    """A value as messages show it: on one line, the middle of a long one left out."""
    try:
        return _short(repr(value))
    except ValueError:  # Python writes no integers of thousands of digits
        return f"({type(value).__name__} of too many digits)"


def _short(text: str) -> str:
    text = " ".join(text.splitlines())
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"


def one_of(name: str, value: str, choices: Any) -> None:
    """Refuses a value outside the choices, naming the nearest one."""
    names = list(choices)
    if value in names:
        return
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ConfigError(name, value, f"one of {', '.join(map(repr, names))}{hint}")


def at_least(name: str, value: float, least: int) -> None:
    """Refuses a value below the least."""
    if value < least:
        raise ConfigError(name, value, f"at least {least}")


def divides(name: str, value: int, divisor: int, divisor_name: str) -> None:
    """Refuses a value that the divisor leaves a rest of."""
    if divisor < 1 or value % divisor:
        raise ConfigError(name, value, f"a multiple of {divisor_name} = {divisor}")
