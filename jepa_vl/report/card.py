"""The card of a checkpoint as a page: numbers beside their floors, and how each came about."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jepa_vl.evaluators.results import by_images, of_encoder, table
from jepa_vl.report import COLOURS, NORMAL, SMALL, figures
from jepa_vl.report.page import Section, render_page

HOW = """\
Each dot is a share of held-out images that were right, each bar its 95 % interval, by the \
bootstrap over these images: it tells what other images of the same kind would have changed, not \
what another seed of the training would. Signs left of it are floors: the same network untrained, \
raw pixels, and whatever is cheaper still."""
MARKS = ("x", "+", "|", "1", "2", "3")


def render(page: dict[str, Any]) -> str:
    """One self-contained HTML page of what ``jepa-vl eval`` wrote."""
    name = page.get("workdir") or page.get("model")
    summary = [
        ("checkpoint", page["checkpoint_hash"]),
        ("step", page["step"]),
        ("branch", page["branch"]),
        ("layers", page["layers"]),
        ("objective", page["objective"]),
        ("commit", page["git"] or "unknown"),
    ]
    sections = [*measured(page), _protocols(page)]
    versions = ("Versions", "", (), (("library", "version"), [*page["versions"].items()]))
    sections.append(Section(*versions))
    cards = [(key, str(value)) for key, value in summary if value is not None]
    return render_page(f"Evaluation of {name}", cards, sections, page)


def measured(page: dict[str, Any], lead: str = "") -> list[Section]:
    """A section for each set of images that a card has numbers of, their titles with a lead."""
    out = []
    for images, results in by_images(of_encoder(page)).items():
        drawn = [r for r in results if r["ci"]]
        pictures = [(figures.to_png(accuracies(drawn)), images)] if drawn else []
        text = f"{images}.\n\n{HOW}" if drawn else f"{images}."
        out.append(Section(lead + _title(results), text, pictures, table(results)))
    return out


def newest(workdir: Path) -> tuple[list[Section], list[str]]:
    """What `jepa-vl eval` measured of a run's newest checkpoint that has a card.

    Returns:
      Sections, [] where there is no card, and the names of all cards, the one shown first.
    """
    found = []
    for path in workdir.glob("eval_*_*.json"):
        try:
            page = json.loads(path.read_text())
            rank = int(page["step"]), page["branch"] == "target", page["layers"] == 1
            by_images(of_encoder(page))  # what is no card fails here
            table(of_encoder(page))
            found.append((rank, path.name, page))
        except (OSError, ValueError, KeyError, TypeError):  # of another tool, or half written
            continue
    if not found:
        return [], []
    found.sort(key=lambda one: one[:2], reverse=True)
    return measured(found[0][2], "Card: "), [name for _, name, _ in found]


def _protocols(page: dict[str, Any]) -> Section:
    rows = [
        (result["task"], result["features"], key, _plain(value))
        for result in page["results"]
        for key, value in result["protocol"].items()
    ]
    text = "All that each number depends on; two that differ here are not the same number."
    return Section("Protocols", text, (), (("task", "features", "key", "value"), rows))


def _title(results: list[dict[str, Any]]) -> str:
    """The tasks and what they were tested on, briefly."""
    tasks = ", ".join(dict.fromkeys(result["task"] for result in results))
    return f"{tasks}: {results[0]['protocol']['held_out']['name']}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def accuracies(results: list[dict[str, Any]]) -> Figure:
    """Numbers with their intervals and floors, a row each."""
    rows = [(r, score) for r in results for score in r["ci"] if score in r["metrics"]]
    fig = Figure(figsize=(7.5, 0.6 + 0.32 * len(rows)))
    fig.set_layout_engine("constrained")
    ax = fig.add_subplot()
    names = list(dict.fromkeys(name for r in results for name in r["baselines"]))
    for y, (result, score) in enumerate(rows):
        low, high = result["ci"][score]
        ax.plot([low, high], [y, y], color=COLOURS[0], lw=2)
        ax.plot(result["metrics"][score], y, "o", color=COLOURS[0], ms=6)
        for i, name in enumerate(names):
            if score in result["baselines"].get(name, {}):
                ax.plot(result["baselines"][name][score], y, _mark(i), color=_colour(i), ms=7)
    for i, name in enumerate(names):
        ax.plot([], [], _mark(i), color=_colour(i), ls="", label=name)
    ax.plot([], [], "o", color=COLOURS[0], label="encoder")
    ax.set_yticks(range(len(rows)), [f"{r['task']} {score}" for r, score in rows], **SMALL)
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.25)
    ax.tick_params(labelsize=8)
    ax.set_xlabel("share of right images", **NORMAL)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def _mark(index: int) -> str:
    return MARKS[index % len(MARKS)]


def _colour(index: int) -> str:
    return COLOURS[1:][index % len(COLOURS[1:])]
