"""Words on patches: heat maps of single images and, where truth is known, the pointing game."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jepa_vl.data import captions, masking
from jepa_vl.evaluators import grounding, wordmaps
from jepa_vl.evaluators.truths import scenes
from jepa_vl.evaluators.wordmaps import WordMaps
from jepa_vl.report import figures, words
from jepa_vl.report.page import Section
from jepa_vl.shapes import Array

IMAGES, CAPTIONS = 6, 2  # drawn
DRAWS = 16  # masks an image
POINTED = 64  # images that the pointing game is played on
KINDS = ("colour", "shape", "texture", "size")

HOW = """\
For each word the similarity O of TC-JEPA (cosine of patch query and word key, negative ones cut) \
at every patch, averaged over {draws} random masks that together cover the image: of each layer of \
the predictor, or over all of them. All words of a caption share one scale, from their least value \
to their greatest: what a word fits worse than others do stays dark."""
BOXES = " The dashed box is where the object is that the word names."
GAME = """\
Does the brightest patch of a word's map lie on the object that the word names? A share of the \
{words} words that name an object in the captions of {images} held-out images. A patch is the \
object's where the object covers a quarter of it.

"Another image" draws the maps of the same captions over another image: what is then hit is habit \
of place, not seeing. "Other captions" reads those of another image over this one: what is then \
hit is what any word looks at. "Centre" always points at the middle, "chance" at any patch."""
COLUMNS = {
    "maps": "maps",
    "visible patches": "visible",
    "patches to predict": "predicted",
    "another image": "another_image",
    "other captions": "shuffled_captions",
    "centre": "centre",
    "chance": "chance",
}


def sections(run: Any, data: dict[str, Any]) -> list[Section]:
    """Heat maps and, for a source that knows the truth, the pointing game.

    Args:
      run: a ``pictures.Loaded`` whose objective reads text.
      data: receives ``pointing``.
    """
    plan = masking.plan_masks(run.config)
    model, how = (run.objective, run.params, run.target, run.frozen), {"plan": plan, "draws": DRAWS}
    out = [_maps(run, functools.partial(wordmaps.layer_maps, *model, **how))]
    if hasattr(run.held_out, "annotate"):
        draw = functools.partial(wordmaps.word_maps, *model, **how)
        out.append(_pointing(run, draw, data))
    return out


def _maps(run: Any, draw: Any) -> Section:
    """Maps of some images: the reader chooses; the pictures are for who runs no scripts."""
    batches = run.read(run.held_out, run.spread(IMAGES))
    pictures, shown, known = [], [], hasattr(run.held_out, "annotate")
    for batch in batches:
        heat = draw(batch)
        for row in np.flatnonzero(batch["valid"]):
            index, image = int(batch["index"][row]), batch["image"][row]
            told = _captions(run, index, heat[row])
            shown.append((f"held-out image {index}", image, told))
            for caption in told:
                mean = caption.maps.mean(0)
                fig = figures.word_maps(
                    image, caption.words, mean, caption.text, boxes=caption.boxes
                )
                note = f"Held-out image {index}: “{caption.text}”"
                pictures.append((figures.to_png(fig, colours=256), note))
    text = HOW.format(draws=DRAWS) + (BOXES if known else "")
    return Section("Words on patches", text, pictures, widget=words.widget(shown))


def _captions(run: Any, index: int, heat: Array) -> list[words.Caption]:
    """Captions of an image with the maps of their words, of heat [L, N, S, G, G]."""
    record = run.held_out.annotate(index) if hasattr(run.held_out, "annotate") else {}
    texts = (record or run.held_out[index])["captions"]
    out, reader = [], captions.build(run.config.text)
    kept = enumerate(wordmaps.captions_shown(texts, heat.shape[1]))
    # Some data sets repeat a caption with other punctuation.
    different = {tuple(captions.words(texts[caption])): (row, caption) for row, caption in kept}
    for row, caption in list(different.values())[:CAPTIONS]:
        text = texts[caption]
        layers = [wordmaps.by_word(reader, text, layer[row]) for layer in heat]
        named = layers[0][0]
        boxes: list[figures.Box | None] = [None] * len(named)
        if record:
            numbers = record["word_objects"][caption][: len(named)]
            boxes = [_box(record["mask"] == number) if number else None for number in numbers]
        out.append(words.Caption(text, named, np.stack([maps for _, maps in layers]), boxes))
    return out


def _box(mask: Array) -> tuple[float, float, float, float] | None:
    """(left, top, right, bottom) of a mask; None if nothing of the object is seen."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _pointing(run: Any, draw: Any, data: dict[str, Any]) -> Section:
    count = min(POINTED, len(run.held_out))
    found = scenes(run.config, run.held_out, np.arange(count))
    reader, size = captions.build(run.config.text), run.config.eval.batch_size

    def maps(batch: dict[str, Array], numbers: Sequence[int]) -> WordMaps:
        return draw(batch, numbers=numbers)

    played = grounding.play(maps, reader, found, size)
    table, data["pointing"] = [], {}
    for kind in ("all", *KINDS):
        of = [word for word in played if kind in ("all", word["kind"])]
        if of:
            means = {head: _mean([word[name] for word in of]) for head, name in COLUMNS.items()}
            table.append([kind, len(of), *(f"{mean:.3f}" for mean in means.values())])
            data["pointing"][kind] = {"words": len(of), **means}
    text = GAME.format(words=len(played), images=len(found))
    return Section("Pointing game", text, table=(("words", "count", *COLUMNS), table))


def _mean(values: list[Any]) -> float:
    """Of shares, or of pairs (points, IoU): how many point."""
    return float(np.mean([v[0] if isinstance(v, tuple) else v for v in values]))
