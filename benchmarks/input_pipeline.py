"""How fast do images and captions become batches, beside a plain loop and a torch DataLoader?

Command:    python benchmarks/input_pipeline.py --data FOLDER --out RESULT.json
            FOLDER holds tar files or captions.jsonl; without it photograph-like JPEGs are made.
            --rss 50000 adds a memory curve over so many images.
Needs:      torch for its arms (extra "parity"), simplejpeg and cykooz-resizer for turbo ("turbo").

All arms read the same records, draw torchvision's random resized crop (area 0.3 to 1, no flip) and
resize antialiased and bilinear, with as many processes ("threads": threads of this process instead,
data.workers=0). Ours makes the whole training batch: uint8 crops, masks, captions as tokens. The
others make images alone: "loop" drops them where they were made, "torch uint8" collates
[B, 3, S, S] bytes, "torch float" what training on torch mostly gets, scaled and normalised float32.
Their transforms are what torchvision calls for Pillow images, written out; the crop's box is drawn
by our function. Crops of large JPEGs are decoded smaller by ours alone. Each arm starts anew for
each measurement, and batches made ahead are not timed. A ratio "A over B" says how many times as
fast A is. "mask_share" is of the CPU time of the whole pipeline.
"""

import argparse
import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import measure
import numpy as np
import stages
from photographs import make_folder
from PIL import Image

from jepa_vl.config import Config, defaults, resolve
from jepa_vl.data import pipeline, sources, transforms, turbo

SCALE, RATIO = (0.3, 1.0), (0.75, 4 / 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_config(
    args: argparse.Namespace, size: int, decoder: str = "pillow", threads: bool = False
) -> Config:
    """Of the training batches that ours makes, by worker processes or as many threads."""
    tree = defaults()
    path = Path(args.data)
    tree.data.kind = "folder" if (path / "captions.jsonl").is_file() else "tar"
    tree.data.path, tree.data.decoder, tree.data.holdout = str(path), decoder, 0.01
    tree.data.workers, tree.data.threads = 0 if threads else args.workers, max(args.workers, 1)
    tree.data.prefetch = args.prefetch
    tree.data.crop_scale, tree.data.crop_ratio = SCALE, RATIO
    tree.encoder.variant, tree.encoder.image_size, tree.encoder.patch_size = "Ti", size, args.patch
    tree.text.captions, tree.text.words = args.captions, args.words
    tree.train.batch_size = args.batch
    return resolve(tree)


def plain_crop(source: sources.Source, index: int, size: int) -> Image.Image:
    """Decode, crop, resize: Pillow alone, in the fewest words."""
    record = source[index % len(source)]
    image = Image.open(io.BytesIO(record["image"])).convert("RGB")
    rng = np.random.default_rng(index)
    box = transforms.random_box(image.width, image.height, SCALE, RATIO, rng)
    return image.crop(box).resize((size, size), Image.Resampling.BILINEAR)


def time_batches(batches: Iterator, args: argparse.Namespace) -> measure.Sample:
    """Takes batches: first those that may have been made ahead, then those that are timed."""
    for _ in range(max(args.workers, 1) * args.prefetch + args.warmup):
        next(batches)
    cpu, start = measure.cpu_seconds(), time.perf_counter()
    for _ in range(args.batches):
        next(batches)
    wall, after = time.perf_counter() - start, measure.cpu_seconds()
    images = args.batches * args.batch
    spent = None if cpu is None or after is None else 1e3 * (after - cpu) / images
    return {"ms_per_image": 1e3 * wall / images, "cpu_ms_per_image": spent}


def ours(args: argparse.Namespace, size: int, **how: Any) -> Callable[[], measure.Sample]:
    """Arm: the training pipeline."""

    def run() -> measure.Sample:
        config = make_config(args, size, **how)
        source = sources.open_sources(config)[0]
        with pipeline.make_batches(config, source, 0) as stream:
            return time_batches(stream, args)

    return run


def _loop(source: sources.Source, indices: Iterable[int], size: int) -> tuple[float, float, float]:
    start, cpu = time.monotonic(), time.process_time()
    for index in indices:
        np.asarray(plain_crop(source, index, size))
    return start, time.monotonic(), time.process_time() - cpu


def loop(args: argparse.Namespace, size: int) -> Callable[[], measure.Sample]:
    """Arm: processes that each do every n-th image and keep none."""

    def run() -> measure.Sample:
        source = sources.open_sources(make_config(args, size))[0]
        images, workers = args.batches * args.batch, max(args.workers, 1)
        with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
            warm = [pool.submit(_loop, source, range(args.batch), size) for _ in range(workers)]
            [future.result() for future in warm]
            parts = [range(first, images, workers) for first in range(workers)]
            found = [pool.submit(_loop, source, part, size) for part in parts]
            starts, ends, cpu = zip(*(future.result() for future in found), strict=True)
        wall = max(ends) - min(starts)
        return {"ms_per_image": 1e3 * wall / images, "cpu_ms_per_image": 1e3 * sum(cpu) / images}

    return run


class TorchImages:
    """A map-style dataset of as many images as are asked for."""

    def __init__(self, source: sources.Source, size: int, dtype: str):
        import torch  # pyright: ignore[reportMissingImports]

        self.source, self.size, self.dtype = source, size, dtype
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> Any:
        import torch  # pyright: ignore[reportMissingImports]

        pixels = np.array(plain_crop(self.source, index, self.size))
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        if self.dtype == "float":  # torchvision's to_tensor and normalize
            tensor = tensor.to(torch.float32).div(255).sub_(self.mean).div_(self.std)
        return tensor


def torch_loader(args: argparse.Namespace, size: int, dtype: str) -> Callable[[], measure.Sample]:
    """Arm: torch.utils.data.DataLoader in index order."""

    def run() -> measure.Sample:
        from torch.utils.data import DataLoader  # pyright: ignore[reportMissingImports]

        source = sources.open_sources(make_config(args, size))[0]
        data: Any = TorchImages(source, size, dtype)
        ahead = args.prefetch if args.workers else None
        batches = iter(
            DataLoader(data, args.batch, num_workers=args.workers, prefetch_factor=ahead)
        )
        return time_batches(batches, args)

    return run


def arms_of(args: argparse.Namespace, size: int) -> dict[str, Callable[[], measure.Sample]]:
    """Those whose libraries are there."""
    arms = {"ours pillow": ours(args, size), "loop": loop(args, size)}
    if stages.present(*turbo.LIBRARIES):
        arms["ours turbo"] = ours(args, size, decoder="turbo")
        arms["ours turbo threads"] = ours(args, size, decoder="turbo", threads=True)
    if stages.present("torch"):
        arms |= {f"torch {t}": torch_loader(args, size, t) for t in ("uint8", "float")}
    return arms


def measure_size(args: argparse.Namespace, size: int) -> dict[str, Any]:
    """All arms at one size, their ratios, and where our time goes."""
    found = measure.interleave(arms_of(args, size), args.repeats)
    out: dict[str, Any] = {"arms": {}, "ratios": {}, "stages": {}}
    for name, values in found.items():
        out["arms"][name] = {key: measure.summary(column) for key, column in values.items()}
        speeds = [1e3 / ms for ms in values["ms_per_image"]]
        out["arms"][name]["images_per_second"] = measure.summary(speeds)
    mine = [name for name in found if name.startswith("ours")]
    for name in mine:
        for other in found.keys() - set(mine):
            pair = (out["arms"][other], out["arms"][name])
            out["ratios"][f"{name} over {other}"] = {
                "time": measure.ratio(*(arm["ms_per_image"] for arm in pair)),
                "cpu": measure.ratio(*(arm["cpu_ms_per_image"] for arm in pair)),
            }
        config = make_config(args, size, name.split()[1])
        whole = out["arms"][name]["cpu_ms_per_image"]["min"]
        out["stages"][name] = stages.split(config, args.stage_images, args.repeats, whole)
    return out


def memory_curve(args: argparse.Namespace, size: int) -> dict[str, Any]:
    """Resident memory of all processes while batches are taken, and its growth at the end."""
    config = make_config(args, size)
    source = sources.open_sources(config)[0]
    points = []
    with pipeline.make_batches(config, source, 0) as stream:
        every = max(1, math.ceil(args.rss / args.batch / 50))
        for step in range(math.ceil(args.rss / args.batch) + 1):
            next(stream)
            if step % every == 0:
                points.append([(step + 1) * args.batch, measure.resident_mib()])
    late = np.array([p for p in points if p[0] >= args.rss / 5 and p[1] is not None])
    growth = 1e4 * float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(late) > 1 else None
    return {"image_size": size, "images_mib": points, "mib_per_10000_images": growth}


def describe(args: argparse.Namespace, made: bool) -> dict[str, Any]:
    """The images that were read: how many, how large."""
    source = sources.open_sources(make_config(args, 96))[0]
    records = [source[i]["image"] for i in range(0, len(source), max(1, len(source) // 500))]
    sides = [Image.open(io.BytesIO(data)).size for data in records]
    width, height = np.mean(sides, axis=0).tolist()
    return {
        "made": made,
        "name": "made" if made else source.name,
        "images": len(source),
        "mean_bytes": float(np.mean([len(data) for data in records])),
        "mean_width": width,
        "mean_height": height,
    }


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="", help="folder of tars or with captions.jsonl")
    made = "IMAGESxWIDTHxHEIGHT to make instead"
    parser.add_argument("--make", default="2000x500x375", help=made)
    parser.add_argument("--sizes", default="224,96", help="sides of the crops, pixels")
    for name, value in (
        ("workers", 2), ("prefetch", 4), ("batch", 32), ("batches", 40), ("warmup", 2),
        ("repeats", 5), ("patch", 16), ("captions", 4), ("words", 16), ("stage-images", 256),
        ("rss", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--out", default="", help="JSON file; printed if absent")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Measures and writes JSON."""
    args = parse(argv)
    sizes = [int(size) for size in args.sizes.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        made = not args.data
        if made:
            args.data = scratch
            make_folder(Path(scratch), *(int(number) for number in args.make.split("x")))
        settings = {k: v for k, v in vars(args).items() if k not in ("data", "out")}
        result = {
            "question": (__doc__ or "").splitlines()[0],
            "machine": measure.machine("pillow", "grain", "torch", *turbo.PACKAGES),
            "data": describe(args, made),
            "settings": settings,
            "load_at_start": os.getloadavg()[0],
            "sizes": {str(size): measure_size(args, size) for size in sizes},
        }
        if args.rss:
            result["memory"] = memory_curve(args, sizes[-1])
    measure.write(result, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
