"""Pages that are made from the code each time the site is built, so that they cannot lag behind."""

import contextlib
import dataclasses
import io
import typing

from jepa_vl import config, kinds, limits, methods
from jepa_vl.cli import main
from jepa_vl.schema import VARIANTS, Config


def on_page_markdown(markdown, page, **_):
    """Fills the marks of the reference pages."""
    for mark, make in {"<!-- commands -->": commands, "<!-- keys -->": keys}.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def commands() -> str:
    """The help of each verb, as the program prints it."""
    parts = []
    for name in main.VERBS:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            main.main([*name.split(), "--help"])
        parts.append(f"## {name}\n\n```text\n{said.getvalue().rstrip()}\n```\n")
    return "\n".join(parts)


def rule(name: str) -> str:
    """What a value must be, in words."""
    rules = []
    choices = dict(config.CHOICES)
    choices |= {"objective": tuple(methods.METHODS), "data.kind": tuple(kinds.KINDS)}
    choices["encoder.variant"] = ("", *VARIANTS)
    if name in choices:
        rules.append("one of " + ", ".join(f"`{c}`" if c else "empty" for c in choices[name]))
    if name in limits.AT_LEAST_1:
        rules.append("at least 1")
    if name in limits.NOT_NEGATIVE:
        rules.append("at least 0")
    if name in limits.POSITIVE:
        rules.append("above 0")
    if name in limits.AT_MOST:
        rules.append(f"at most {limits.AT_MOST[name]:,}")
    if name in config.RANGES:
        high = config.RANGES[name]
        rules.append("0 < low <= high" + (f" <= {high:g}" if high else ""))
    if name.startswith(config.RESUMABLE):
        rules.append("may change on resuming")
    return "; ".join(rules)


def keys() -> str:
    """A table of keys for each section of the schema."""
    parts = ["## Top level\n\n", *table(Config, "")]
    for field in dataclasses.fields(Config):
        schema = typing.get_type_hints(Config)[field.name]
        if dataclasses.is_dataclass(schema):
            parts += [
                f"\n## {field.name}\n\n{schema.__doc__}\n\n",
                *table(schema, field.name + "."),
            ]
    return "".join(parts)


def table(schema, prefix: str) -> list[str]:
    """Rows of one section; sections within it have their own."""
    hints = typing.get_type_hints(schema)
    rows = ["| key | type | default | meaning | rule |\n|---|---|---|---|---|\n"]
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        name, doc = prefix + field.name, field.metadata.get("doc", "")
        cells = (f"`{name}`", hints[field.name].__name__, f"`{field.default!r}`", doc, rule(name))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return rows
