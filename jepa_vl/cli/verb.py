"""What a command of ``jepa-vl`` says of itself, and how its name is found in a command line."""

import difflib
from collections.abc import Collection, Sequence

from jepa_vl.config import ConfigError

CODES = """
exit codes:
  0    done
  1    found wanting: does not fit (compile), differs or is damaged (export, report --proof,
       checkpoint verify), a check failed (doctor); or an error of ours, with its traceback
  3    stopped by a signal and saved: give the same command again
  4    diverged, or collapsed where health.action ends the run
  5    bad input: one line names the key, the value and the rule
  130  interrupted
"""


class Verb:
    """One command: its module, options and texts; ``module.run(args, overrides)`` does the work."""

    def __init__(
        self,
        summary: str,
        text: str,
        example: str,
        overrides: tuple[str, ...] = (),
        words: str = "",
        **options: str,
    ):
        """``overrides``: beginnings of the keys that --config.KEY=VALUE may change.

        A verb that takes --config may change all of them. ``words``: what stands behind the verb
        without an option, as in RUN; its module counts them in ``args.words``. ``options``: names
        (step_seconds is --step-seconds) and their help. Empty text: it must be given; its help is
        the shared one.
        """
        self.words = words
        self.summary, self.text, self.example, self.options = summary, text, example, options
        self.overrides = ("",) if "config" in options else overrides


def take(words: Sequence[str], known: Collection[str]) -> list[str]:
    """A command line whose verb, where it has two words, is one of them.

    Raises:
      ConfigError: there is no such verb; names the nearest one.
    """
    if not words or words[0].startswith("-"):
        return list(words)
    first, *rest = words
    second = rest[0] if rest and not rest[0].startswith("-") else ""
    below = [verb for verb in known if verb.startswith(first + " ")]
    if f"{first} {second}" in known:
        return [f"{first} {second}", *rest[1:]]
    if first in known and not (second and below):
        return list(words)
    asked = f"{first} {second}".strip() if below else first
    groups = {verb.split()[0] for verb in known}
    near = difflib.get_close_matches(asked, below or sorted({*known, *groups}), n=1)
    if below and not second:
        near = []
    if near and near[0] not in known:  # the first word of several
        below, near = [verb for verb in known if verb.startswith(near[0] + " ")], []
    if near:
        raise ConfigError("command", asked, f"no such command; did you mean {near[0]}?")
    rule = f"one of {', '.join(below or known)}; see jepa-vl --help"
    raise ConfigError("command", asked, rule)
