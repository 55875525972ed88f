"""Which JPEG decoder is fastest, which resize, and do they give the same pixels as Pillow?

Command:    python benchmarks/decoders.py --data FOLDER --out RESULT.json
            FOLDER is searched for *.jpg; without it photograph-like JPEGs are made.
Needs:      whatever of simplejpeg, opencv-python-headless, imagecodecs, pyvips[binary] and
            cykooz-resizer is to be compared; those that are absent are left out.

CPU time of all threads. "decode" ends with uint8 [H, W, 3] of the image or, where the codec can, of
its half or quarter; "resize" starts from a decoded crop; "crop" is all that training does.
"""

import argparse
import importlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import stages
from photographs import make_folder
from PIL import Image

from jepa_vl.data import transforms

FACTORS = (1, 2, 4)
Reader = Callable[[bytes, int], np.ndarray]


def readers() -> dict[str, Reader]:
    """Those that are installed; each takes bytes and a factor, and raises KeyError for its lack."""
    found: dict[str, Reader] = {"pillow": _pillow}
    if stages.present("simplejpeg"):
        found["simplejpeg"] = _simplejpeg
    if stages.present("cv2"):
        cv2: Any = importlib.import_module("cv2")
        cv2.setNumThreads(1)
        flags = {
            1: cv2.IMREAD_COLOR_RGB,
            2: cv2.IMREAD_REDUCED_COLOR_2,
            4: cv2.IMREAD_REDUCED_COLOR_4,
        }

        def _opencv(data: bytes, factor: int) -> np.ndarray:
            flag = flags[factor] | cv2.IMREAD_IGNORE_ORIENTATION
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
            return pixels if factor == 1 else pixels[..., ::-1]  # BGR, turned without a copy

        found["opencv"] = _opencv
    if stages.present("imagecodecs"):
        codec: Any = importlib.import_module("imagecodecs")
        found["imagecodecs"] = lambda data, factor: {1: codec.jpeg8_decode}[factor](data)
    if stages.present("pyvips"):
        vips: Any = importlib.import_module("pyvips")
        found["pyvips"] = lambda data, factor: vips.Image.new_from_buffer(
            data, "", shrink=factor, access="sequential"
        ).numpy()
    return found


def _pillow(data: bytes, factor: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))
    return np.asarray(image)


def _simplejpeg(data: bytes, factor: int) -> np.ndarray:
    library: Any = importlib.import_module("simplejpeg")
    height, width = library.decode_jpeg_header(data)[:2]
    sides = {"min_height": -(-height // factor), "min_width": -(-width // factor)}
    return library.decode_jpeg(data, min_factor=factor, **sides)


def resizers(size: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Antialiased bilinear from uint8 [h, w, 3] to [S, S, 3]."""
    bilinear = Image.Resampling.BILINEAR
    found = {
        "pillow": lambda part: np.asarray(Image.fromarray(part).resize((size, size), bilinear))
    }
    if stages.present("cykooz_resizer"):
        lib: Any = importlib.import_module("cykooz_resizer")
        convolution = lib.ResizeAlg.convolution(lib.FilterType.bilinear)

        def _cykooz(part: np.ndarray) -> np.ndarray:
            height, width = part.shape[:2]
            pixels = lib.ImageData(width, height, lib.PixelType.U8x3, part.tobytes())
            result = lib.ImageData(size, size, lib.PixelType.U8x3)
            options = lib.ResizeOptions(convolution, use_alpha=False)
            lib.Resizer().resize(pixels, result, options)
            return np.frombuffer(result.get_buffer(), np.uint8).reshape(size, size, 3)

        found["cykooz-resizer"] = _cykooz
    return found


def croppers(size: int) -> dict[str, Callable[[int, bytes], np.ndarray]]:
    """The crop of training, by our two decoders."""
    names = ["pillow", "turbo"] if stages.present("simplejpeg", "cykooz_resizer") else ["pillow"]

    def crop(decoder: str) -> Callable[[int, bytes], np.ndarray]:
        return lambda number, data: transforms.random_crop(
            data, size, (0.3, 1.0), (0.75, 4 / 3), np.random.default_rng(number), "", decoder
        )

    return {name: crop(name) for name in names}


def compare(arms: dict[str, Callable[..., Any]], items: list[tuple], repeats: int) -> Any:
    """Of each arm: CPU time an item, gain over Pillow, and largest difference from it."""
    able = {name: arm for name, arm in arms.items() if _works(arm, items[0])}

    def sample(arm: Callable[..., Any]) -> measure.Sample:
        start = time.process_time()
        for item in items:
            arm(*item)
        return {"cpu_ms": 1e3 * (time.process_time() - start) / len(items)}

    timed = {name: (lambda arm=arm: sample(arm)) for name, arm in able.items()}
    found = measure.interleave(timed, repeats)
    out: dict[str, Any] = {}
    for name, arm in able.items():
        apart = [_apart(arm(*item), able["pillow"](*item)) for item in items[:20]]
        out[name] = {key: measure.summary(column) for key, column in found[name].items()}
        out[name]["largest_difference"] = max(apart)
    for row in out.values():
        row["times_as_fast"] = measure.ratio(out["pillow"]["cpu_ms"], row["cpu_ms"])
    return out


def _apart(one: np.ndarray, other: np.ndarray) -> int:
    """Where both have pixels: libvips leaves the last, partial ones of a shrunk image out."""
    height, width = np.minimum(one.shape[:2], other.shape[:2])
    return int(np.abs(one[:height, :width].astype(int) - other[:height, :width]).max())


def _works(arm: Callable[..., Any], item: tuple) -> bool:
    try:
        arm(*item)
    except KeyError:
        return False
    return True


def main(argv: list[str]) -> None:
    """Measures and writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="", help="folder of .jpg files")
    parser.add_argument("--make", default="64x500x375", help="IMAGESxWIDTHxHEIGHT to make instead")
    parser.add_argument("--images", type=int, default=60, help="at most so many")
    parser.add_argument("--sizes", default="224,96", help="sides of the crops, pixels")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default="", help="JSON file; printed if absent")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        if not args.data:
            make_folder(Path(scratch), *(int(number) for number in args.make.split("x")))
        files = sorted(Path(args.data or scratch).rglob("*.jpg"))
        colour = (data for data in (file.read_bytes() for file in files) if _is_colour(data))
        images = [data for data, _ in zip(colour, range(args.images), strict=False)]
    whole = [_pillow(data, 1) for data in images]
    parts = [np.ascontiguousarray(x[: x.shape[0] * 4 // 5, x.shape[1] // 5 :]) for x in whole]
    sizes = [int(size) for size in args.sizes.split(",")]
    packages = ("opencv-python-headless", "imagecodecs", "pyvips", "simplejpeg", "cykooz-resizer")
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "machine": measure.machine("pillow", *packages),
        "data": {
            "made": not args.data,
            "images": len(images),
            "mean_bytes": float(np.mean([len(data) for data in images])),
            "mean_pixels": float(np.mean([x.shape[0] * x.shape[1] for x in whole])),
        },
        "load_at_start": os.getloadavg()[0],
        "decode": {
            f"1/{f}": compare(readers(), [(data, f) for data in images], args.repeats)
            for f in FACTORS
        },
        "resize": {
            str(size): compare(resizers(size), [(part,) for part in parts], args.repeats)
            for size in sizes
        },
        "crop": {
            str(size): compare(croppers(size), list(enumerate(images)), args.repeats)
            for size in sizes
        },
    }
    measure.write(result, args.out)


def _is_colour(data: bytes) -> bool:
    return Image.open(io.BytesIO(data)).mode == "RGB"


if __name__ == "__main__":
    main(sys.argv[1:])
