"""One self-contained HTML page: text, tables and figures, no request to anywhere."""

import base64
import html
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n"
Table = tuple[Sequence[str], Sequence[Sequence[Any]]]

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--quiet:#57606a;--page:#fff;--card:#f4f6f8;
--line:#d4dae0;--link:#0b5cad}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaee;--quiet:#a3adb8;--page:#14171a;
--card:#1f2428;--line:#3a424a;--link:#7ab8ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
header,main,footer,nav ul{max-width:1310px;margin:0 auto;padding:0 20px}
h1{font-size:1.75rem;line-height:1.25;margin:1.6rem 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;line-height:1.3;margin:0 0 .4rem}
section{padding:1.6rem 0;scroll-margin-top:2.5rem}
section+section{border-top:1px solid var(--line)}
p{max-width:75ch;margin:.4rem 0 1rem;overflow-wrap:anywhere}
a{color:var(--link)}
a:focus-visible,.scroll:focus-visible{outline:3px solid var(--link);outline-offset:2px}
nav{position:sticky;top:0;background:var(--page);border-block:1px solid var(--line);z-index:1}
nav ul{display:flex;gap:1.2rem;list-style:none;overflow-x:auto;white-space:nowrap}
nav a{display:block;padding:.6rem 0;text-decoration:none}
nav a:hover{text-decoration:underline}
dl{display:flex;flex-wrap:wrap;gap:10px;margin:0 0 1.4rem}
dl div{flex:0 1 auto;min-width:8.5rem;padding:.55rem .8rem;background:var(--card);
border:1px solid var(--line);border-radius:8px}
dt{color:var(--quiet);font-size:.85rem}
dd{margin:0;font-size:1.1rem;font-weight:600;overflow-wrap:anywhere}
figure{margin:1.2rem 0}
img{display:block;max-width:100%;height:auto;background:#fff;border-radius:4px;
box-shadow:0 0 0 1px var(--line)}
figcaption{color:var(--quiet);font-size:.9rem;margin-top:.4rem;max-width:75ch}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.35rem .9rem .35rem 0;border-bottom:1px solid var(--line);
vertical-align:top}
th{color:var(--quiet);font-weight:600;white-space:nowrap}
td{min-width:5rem}
td:last-child{min-width:8rem}
.number{text-align:right}
footer{color:var(--quiet);font-size:.85rem;padding-block:1rem 2rem}
@media print{nav{display:none}}
"""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      title: its heading and its name in the navigation.
      text: how to read it; an empty line separates paragraphs.
      figures: (PNG bytes, caption); the caption is the alternative text as well.
      table: (header, rows), or None; floats are shown with four digits.
    """

    title: str
    text: str = ""
    figures: Sequence[tuple[bytes, str]] = ()
    table: Table | None = None


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
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{_text(title)}</title>
<style>{STYLE}</style>
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
</body>
</html>
"""


def _section(index: int, part: Section) -> str:
    paragraphs = [f"<p>{_text(text)}</p>" for text in part.text.split("\n\n") if text.strip()]
    table = [_table(part.title, *part.table)] if part.table else []
    figures = [_figure(png, caption) for png, caption in part.figures]
    heading = f'<section id="part-{index}">\n<h2>{_text(part.title)}</h2>'
    return "\n".join([heading, *paragraphs, *table, *figures, "</section>"])


def _figure(png: bytes, caption: str) -> str:
    if png[:8] != PNG:
        raise ValueError(f"figure {caption!r}: not a PNG")
    # The size is told so that the page does not jump while the images are decoded.
    width, height = struct.unpack(">II", png[16:24])
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = f'<img src="{source}" alt="{_text(caption)}" width="{width}" height="{height}">'
    return f"<figure>{image}<figcaption>{_text(caption)}</figcaption></figure>"


def _table(name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(
        f'<th scope="col"{_align(rows, i)}>{_text(h)}</th>' for i, h in enumerate(header)
    )
    lines = (
        "".join(f"<td{_align([row], i)}>{_text(cell)}</td>" for i, cell in enumerate(row))
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return (
        f'<div class="scroll" role="region" aria-label="{_text(name)}" tabindex="0">{table}</div>'
    )


def _align(rows: Sequence[Sequence[Any]], column: int) -> str:
    """Numbers to the right, and a header to the right over nothing but numbers."""
    cells = [row[column] for row in rows if column < len(row)]
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
