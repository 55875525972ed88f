"""Numbers that options give."""

import math

from jepa_vl.config import ConfigError


def whole(option: str, text: str, least: int) -> int:
    """A whole number.

    Raises:
      ConfigError: it is none, or below the least.
    """
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(option, text, f"a whole number, at least {least}")
    return int(text)


def positive(option: str, text: str) -> float:
    """A number above 0.

    Raises:
      ConfigError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(option, text, "a number above 0")
    return value
