"""One self-contained HTML page: text, tables and figures, no request to anywhere."""

import base64
import html
import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PNG = b"\x89PNG\r\n\x1a\n"
Table = tuple[Sequence[str], Sequence[Sequence[Any]]]


@dataclass(frozen=True)
class Widget:
    """A part of the page that the reader moves; without scripts its section's figures stand there.

    Attributes:
      kind: name of the script that draws it, ``KIND.js`` beside this file.
      data: what it draws, JSON.
    """

    kind: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      title: its heading and its name in the navigation.
      text: how to read it; an empty line separates paragraphs.
      figures: (PNG bytes, caption); the caption is the alternative text as well.
      table: (header, rows), or None; floats are shown with four digits.
      widget: takes the place of the figures where the page can run its scripts.
    """

    title: str
    text: str = ""
    figures: Sequence[tuple[bytes, str]] = ()
    table: Table | None = None
    widget: Widget | None = None


def render_page(
    title: str,
    summary: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    data: dict[str, Any] | None = None,
) -> str:
    """Renders the page; every string is escaped.

    Args:
      title: of the page.
      summary: (name, value) cards at the top.
      sections: what follows, in this order.
      data: the results for machines, as JSON in the element ``#run``; what JSON cannot hold becomes
        null (not finite) or a string (anything else).

    Raises:
      ValueError: a figure is not a PNG.
    """
    cards = "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in summary)
    links = "".join(
        f'<li><a href="#part-{i}">{_text(part.title)}</a></li>' for i, part in enumerate(sections)
    )
    body = "\n".join(_section(i, part) for i, part in enumerate(sections))
    kinds = dict.fromkeys(part.widget.kind for part in sections if part.widget)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{_text(title)}</title>
<style>{_file("page.css")}</style>
</head>
<body>
<header>
<h1>{_text(title)}</h1>
{f"<dl>{cards}</dl>" if cards else ""}
</header>
{f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if links else ""}
<main>
{body}
</main>
<footer>This page is one file and loads nothing else. Its numbers are in the element #run, as JSON.
</footer>
<script type="application/json" id="run">{_json(data or {})}</script>
{_scripts(kinds)}</body>
</html>
"""


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _scripts(kinds: Iterable[str]) -> str:
    """One script of all that the widgets of a page need; empty where there is none."""
    files = [_file(f"{kind}.js") for kind in kinds]
    if not files:
        return ""
    whole = "\n".join(['"use strict";', _file("widgets.js"), *files, "startWidgets();"])
    return f"<script>\n(() => {{\n{whole}\n}})();\n</script>\n"


def _section(index: int, part: Section) -> str:
    paragraphs = [f"<p>{_text(text)}</p>" for text in part.text.split("\n\n") if text.strip()]
    table = [_table(part.title, *part.table)] if part.table else []
    figures = [_figure(png, caption) for png, caption in part.figures]
    if part.widget:
        figures = [_widget(part.widget, figures)]
    heading = f'<section id="part-{index}">\n<h2>{_text(part.title)}</h2>'
    return "\n".join([heading, *paragraphs, *table, *figures, "</section>"])


def _widget(widget: Widget, stills: Sequence[str]) -> str:
    data = f'<script type="application/json">{_json(widget.data)}</script>'
    still = f'<div class="still">{"".join(stills)}</div>'
    return f'<div class="widget" data-kind="{_text(widget.kind)}">{data}{still}</div>'


def _figure(png: bytes, caption: str) -> str:
    if png[:8] != PNG:
        raise ValueError(f"figure {caption!r}: not a PNG")
    # The size is told so that the page does not jump while the images are decoded.
    width, height = struct.unpack(">II", png[16:24])
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = f'<img src="{source}" alt="{_text(caption)}" width="{width}" height="{height}">'
    shown = (
        f'<div class="scroll" role="group" aria-label="{_text(caption)}" tabindex="0">{image}</div>'
    )
    return f"<figure>{shown}<figcaption>{_text(caption)}</figcaption></figure>"


def _table(name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    align = [_align(rows, column) for column in range(len(header))]
    head = "".join(f'<th scope="col"{align[i]}>{_text(h)}</th>' for i, h in enumerate(header))
    lines = (
        "".join(f"<td{align[i]}>{_text(cell)}</td>" for i, cell in enumerate(row)) for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return (
        f'<div class="scroll" role="region" aria-label="{_text(name)}" tabindex="0">{table}</div>'
    )


def _align(rows: Sequence[Sequence[Any]], column: int) -> str:
    """A column of nothing but numbers and blanks is set to the right, its header too."""
    cells = [row[column] for row in rows if column < len(row) and row[column] != ""]
    numbers = bool(cells) and all(_is_number(cell) for cell in cells)
    return ' class="number"' if numbers else ""


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _text(value: Any) -> str:
    """Escaped for text and for double-quoted attributes."""
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _json(data: Any) -> str:
    """JSON that cannot end the script element: ``<``, ``>`` and ``&`` are written as escapes."""
    text = json.dumps(_plain(data), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
