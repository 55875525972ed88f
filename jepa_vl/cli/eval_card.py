"""The card of a checkpoint: all that was measured on it, as JSON and as a page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli.columns import columns
from jepa_vl.evaluators.results import by_images, of_encoder, table


class Card:
    """The file of one checkpoint's results, which grows with each."""

    def __init__(self, path: Path, facts: dict[str, Any]):
        """Opens the card; results of other weights than these are dropped.

        Args:
          path: of the JSON file; it and its folder may be absent.
          facts: of the checkpoint: ``checkpoint_hash``, ``branch``, ``layers``, ``step``, ...
        """
        self.path, self._asked = path, set[str]()
        self.page: dict[str, Any] = facts | {"results": _known(path, facts)}

    def has(self, key: str) -> bool:
        """Is the result of this name there? It is one of those that :meth:`told` shows."""
        self._asked.add(key)
        return any(result["key"] == key for result in self.page["results"])

    def put(self, result: dict[str, Any]) -> None:
        """Adds a result, in the place of one that was measured the same way; writes the file."""
        self._asked.add(result["key"])
        others = [other for other in self.page["results"] if not _same(other, result)]
        self.page["results"] = [*others, result]
        self._write()

    def finish(self) -> None:
        """Puts floors beside the encoder's numbers, and writes file and page."""
        results = self.page["results"]
        results.sort(key=lambda result: result["features"] != "encoder")
        for result in results:
            if result["features"] == "encoder":
                result["baselines"] |= _floors(result, results)
        self._write()
        from jepa_vl.report.card import render

        self.path.with_suffix(".html").write_text(render(self.page))

    def told(self) -> list[str]:
        """Lines for the screen: of each set of images, the numbers that were asked for."""
        page = self.page
        of_layers = f", last {page['layers']} layers" if page["layers"] > 1 else ""
        of = f"{page['model']}, {page['kind']}" if "model" in page else f"step {page['step']}"
        lines = [f"{of}, {page['branch']} encoder{of_layers}"]
        shown = [result for result in of_encoder(page) if result["key"] in self._asked]
        for images, results in by_images(shown).items():
            heads, rows = table(results)
            lines += [images, *columns([tuple(heads), *map(tuple, rows)], range(2, len(heads)))]
        words = {r["protocol"]["interval"] for r in shown if "interval" in r["protocol"]}
        words |= {r["protocol"]["absent"] for r in shown if "absent" in r["protocol"]}
        files = str(self.path), str(self.path.with_suffix(".html"))
        return [*lines, *(f"({text})" for text in sorted(words)), *files]

    def _write(self) -> None:
        from jepa_vl.training.metrics import write_json

        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.page)


def _same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Were they measured the same way? Keys also differ by settings that a task does not read."""
    alike = ("task", "features", "data_hash", "seed", "protocol")
    return one["key"] == two["key"] or all(one[k] == two[k] for k in alike)


def _known(path: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Results in a file that are of the same weights."""
    try:
        page = json.loads(path.read_text())
        same = all(page[k] == facts[k] for k in ("checkpoint_hash", "branch", "layers"))
        return [result for result in page["results"] if "key" in result] if same else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _floors(result: dict[str, Any], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same numbers of other features, measured the same way on the same images."""
    same = ("task", "data_hash", "seed")
    return {
        other["features"]: {
            name: other["metrics"][name]
            for name in other["ci"] or other["metrics"]
            if name in other["metrics"]
        }
        for other in results
        if other is not result and all(other[k] == result[k] for k in same)
        if other["features"] != "encoder"
    }
