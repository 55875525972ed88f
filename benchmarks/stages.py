"""Where the time of an input pipeline goes, by clocks around its own functions."""

import functools
import importlib.util
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
from PIL import ImageFile

from jepa_vl.config import Config
from jepa_vl.data import controls, pipeline, sources, transforms, turbo

STAGES = ("read", "decode", "crop", "masks", "captions", "element")


def present(*modules: str) -> bool:
    """Are they installed?"""
    return all(importlib.util.find_spec(name) is not None for name in modules)


@contextmanager
def clock(spent: dict[str, float], stage: str, owner: Any, name: str) -> Iterator[None]:
    """Adds the CPU time of calls of ``owner.name`` in this thread to ``spent[stage]``."""
    call = getattr(owner, name)

    @functools.wraps(call)
    def timed(*args: Any, **values: Any) -> Any:
        start = time.thread_time()
        try:
            return call(*args, **values)
        finally:
            spent[stage] += time.thread_time() - start

    with mock.patch.object(owner, name, timed):
        yield


def split(config: Config, images: int, repeats: int, whole_ms: float | None) -> dict[str, Any]:
    """CPU milliseconds an image of each stage, in one thread, of the fastest of the repeats.

    Args:
      config: of the training batches.
      images: number of images to make.
      repeats: how often.
      whole_ms: CPU time an image of the running pipeline with its workers: what it has beyond the
        stages is batching and transport.
    """
    source = sources.open_sources(config)[0]
    element = pipeline.TrainElement(config, source)
    rounds = [_round(config, element, source, images) for _ in range(repeats + 1)][1:]
    best = min(rounds, key=lambda found: found["element"] + found["masks"])
    whole = best["element"] + best["masks"]
    if whole_ms is not None:
        best["batch_and_transport"], whole = whole_ms - whole, whole_ms
    return {"cpu_ms_per_image": best, "mask_share": best["masks"] / whole}


def _round(
    config: Config, element: pipeline.TrainElement, source: Any, images: int
) -> dict[str, float]:
    spent: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    with ExitStack() as clocks:
        for stage, owner, name in (
            ("read", type(source), "__getitem__"),
            ("decode", ImageFile.ImageFile, "load"),
            ("crop", transforms, "random_crop"),
            ("masks", pipeline.ProductionMasks, "__call__"),
            ("captions", controls.Own, "draw"),
            ("element", pipeline.TrainElement, "__call__"),
        ):
            clocks.enter_context(clock(spent, stage, owner, name))
        if element.data.decoder == "turbo":
            clocks.enter_context(clock(spent, "decode", turbo.jpeg(), "decode_jpeg"))
        order = np.random.default_rng(0).permutation(len(source))  # as in training: from anywhere
        masks, batch = pipeline.ProductionMasks(config), config.train.batch_size
        for position in range(images):
            rng = np.random.Generator(np.random.Philox(position))
            element({"index": int(order[position % len(source)]), "position": position}, rng)
            if (position + 1) % batch == 0:  # of a whole batch
                masks({"position": np.arange(position + 1 - batch, position + 1)})
    found = {name: 1e3 * seconds / images for name, seconds in spent.items()}
    crop_resize = found.pop("crop") - found["decode"]
    known = sum(found[name] for name in ("read", "decode", "captions")) + crop_resize
    return {**found, "crop_and_resize": crop_resize, "other": found["element"] - known}
