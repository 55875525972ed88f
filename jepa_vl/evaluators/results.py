"""Results of evaluators as a card holds them (JSON): hits as bits, and results as tables.

A result is a dictionary: ``task``; ``features`` (encoder, untrained or pixels); ``metrics``;
``ci``, low and high end by metric; ``baselines``, by name a dictionary like ``metrics``; ``hits``,
packed; ``protocol``; ``data_hash``; ``checkpoint_hash``; ``seed``.
"""

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jepa_vl.shapes import Array

PARTS = ("train", "held_out")
Result = dict[str, Any]


def pack(hits: Array) -> dict[str, Any]:
    """Hits as JSON: bool [draws, m] as bits, compressed, base64."""
    bits = zlib.compress(np.packbits(hits).tobytes())
    return {"shape": list(hits.shape), "bits": base64.b64encode(bits).decode()}


def unpack(packed: dict[str, Any]) -> Array:
    """Inverse of :func:`pack`.

    Raises:
      ValueError: these are none.
    """
    try:
        bits = np.frombuffer(zlib.decompress(base64.b64decode(packed["bits"])), np.uint8)
        shape = tuple(packed["shape"])
        return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
    except (KeyError, TypeError, zlib.error) as error:
        raise ValueError(f"no hits: {error}") from error


def interval(low: float, high: float) -> str:
    """An interval as tables show it."""
    return f"[{low:.4g}, {high:.4g}]"


def of_encoder(page: dict[str, Any]) -> list[Result]:
    """The results of a card that are not floors."""
    return [result for result in page["results"] if result["features"] == "encoder"]


def images_of(protocol: dict[str, Any]) -> str:
    """The images of a result, in words."""
    there = [part for part in PARTS if part in protocol]
    images = [f"{p}: {protocol[p]['images']} images of {protocol[p]['name']}" for p in there]
    classes = [f"{protocol['classes']} classes"] if protocol.get("classes") else []
    return ", ".join([*images, *classes, f"seed {protocol['seed']}"])


def by_images(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by the images that they are of."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(images_of(result["protocol"]), []).append(result)
    return groups


def table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: a number of the encoder, its interval, then each floor that any has."""
    floors = list(dict.fromkeys(name for result in results for name in result["baselines"]))
    rows = [
        [
            result["task"],
            score,
            f"{value:.4g}",
            interval(*result["ci"][score]) if score in result["ci"] else "",
            *(_cell(result["baselines"].get(floor, {}), score) for floor in floors),
        ]
        for result in results
        for score, value in result["metrics"].items()
    ]
    return ["task", "number", "encoder", "interval", *floors], rows


def _cell(floor: dict[str, float], score: str) -> str:
    return f"{floor[score]:.4g}" if score in floor else ""
