"""What do captions cost a step: embeddings out of a cache, or a tower in it, packed or not?

Command:    python benchmarks/text_cost.py --out RESULT.json
Needs:      nothing beyond the package; a CPU will do. 1 GB of disk in the temporary folder.

A T5 of the asked size with random weights, and captions of random words whose lengths are Poisson
around --mean-words, cut at --words. Arms, which take turns: "cache" reads the embeddings of an
image's captions into arrays as a data worker does (CPU of one core, files in the page cache),
"padded" and "packed" embed them in a jitted program on all cores of this machine. "ms": an image.

"bytes": an image's in the cache, and in the batch that goes to the device (padded in both dtypes).
"flops": of the tower, an image. "break_even": bytes a second from which on a chip is served by the
cache as soon as by the tower that would run on it, at --utilisation of its peak; slower storage
makes the tower cheaper. Arithmetic on published peaks, nothing of it ran on such a chip.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import tokenizers

from jepa_vl.data import captions, embeddings
from jepa_vl.hardware import CHIPS
from jepa_vl.models import packing, t5
from jepa_vl.schema import TextConfig
from jepa_vl.training import flops

SIZES = {  # width, blocks, heads, hidden; of T5 v1.0
    "tiny": (32, 2, 2, 64),
    "small": (512, 6, 8, 2048),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}
VOCABULARY = 32128
SHOWN = ("v5e", "v5p", "v6e", "h100")


def make_tower(size: str) -> t5.T5Encoder:
    """The encoder of a published size."""
    width, depth, heads, hidden = SIZES[size]
    shape = t5.T5Shape(VOCABULARY, width, depth, heads, 64, hidden, "relu", 32, 128, 1e-6)
    return t5.T5Encoder(shape)


def make_captions(args: argparse.Namespace, count: int) -> list[str]:
    """So many different captions, a token a word."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.poisson(args.mean_words, count), 1, args.words)
    return [" ".join(f"w{word}" for word in rng.integers(2, 9999, n)) for n in lengths]


def make_cache(args: argparse.Namespace, said: list[str], folder: Path) -> TextConfig:
    """Embeddings of the captions as `jepa-vl data embed` writes them; numbers are random."""
    tower, cache = folder / "tower", folder / "cache"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps({"model_type": "t5"}))
    vocabulary = {"<pad>": 0, "<unk>": 1, **{f"w{i}": i for i in range(2, 9999)}}
    fast = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    config = TextConfig(
        kind="t5", path=str(tower), words=args.words, captions=args.captions, cache_dtype="bfloat16"
    )
    rng, width = np.random.default_rng(1), SIZES[args.size][0]
    rows = ((one, rng.normal(size=(len(one.split()), width))) for one in said)
    embeddings.write(cache, config, fast.to_str(), rows)
    return TextConfig(kind="cached", path=str(cache), words=args.words, captions=args.captions)


def an_image(work: Callable[[], Any], images: int) -> measure.Sample:
    """What a call takes, by the images that it reads."""
    wall, cpu = measure.timed(work)
    return {"ms": 1e3 * wall / images, "cpu_ms": 1e3 * cpu / images}


def cached_arm(
    args: argparse.Namespace, said: list[str], config: TextConfig
) -> Callable[[], measure.Sample]:
    """Reads a batch's captions; each image has captions of its own."""
    reader, rng = captions.CaptionReader(config), np.random.default_rng(2)
    images = [said[i : i + args.captions] for i in range(0, len(said), args.captions)]

    def read() -> None:
        for image in images:
            reader.encode(image, rng)

    return lambda: an_image(read, len(images))


def tower_arm(
    args: argparse.Namespace, embed: Callable[..., Any], params: Any, ids: Any, mask: Any
) -> tuple[Callable[[], measure.Sample], int]:
    """Runs a jitted tower on one batch; beside it its FLOPs an image."""
    compiled = jax.jit(embed)

    def run() -> None:
        jax.block_until_ready(compiled(params, ids, mask))

    run()
    traced = jax.make_jaxpr(embed)(params, ids, mask).jaxpr
    cost = sum(flops.matmuls(traced).values()) // args.batch
    return lambda: an_image(run, args.batch), cost


def tower_arms(args: argparse.Namespace, said: list[str]) -> dict[str, Any]:
    """Arm and FLOPs of the padded and the packed tower."""
    module = make_tower(args.size)
    lengths = [len(one.split()) for one in said[: args.batch * args.captions]]
    mask = np.arange(args.words) < np.reshape(lengths, (args.batch, args.captions, 1))
    ids = jnp.asarray(np.random.default_rng(3).integers(2, VOCABULARY, mask.shape), jnp.int32)
    params = jax.jit(module.init)(jax.random.key(0), ids[:1], mask[:1])

    def padded(params: Any, ids: Any, mask: Any) -> Any:
        return module.apply(params, ids, mask)

    def packed(params: Any, ids: Any, mask: Any) -> Any:
        return packing.embed(lambda *x: module.apply(params, *x), ids, mask, args.packed)  # pyright: ignore[reportArgumentType]

    most = int(mask.sum(axis=(1, 2)).max())
    if most > args.packed:
        raise SystemExit(f"--packed {args.packed}: an image has {most} words")
    return {
        name: tower_arm(args, embed, params, ids, jnp.asarray(mask))
        for name, embed in (("padded", padded), ("packed", packed))
    }


def sizes(args: argparse.Namespace, said: list[str]) -> dict[str, float]:
    """Bytes of an image's embeddings."""
    width = SIZES[args.size][0]
    words = sum(len(one.split()) for one in said) / len(said) * args.captions
    whole = args.captions * args.words * width
    return {
        "cached_bfloat16": 2 * words * width,
        "batch_bfloat16": 2 * whole,
        "batch_float32": 4 * whole,
    }


def break_even(stored: float, cost: dict[str, int], utilisation: float) -> dict[str, Any]:
    """MB/s a chip, by chip and way of computing."""
    return {
        name: {way: stored * utilisation * CHIPS[name].flops / n / 1e6 for way, n in cost.items()}
        for name in SHOWN
    }


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--size", choices=SIZES, default="base", help="of T5")
    parser.add_argument("--captions", type=int, default=8, help="N, captions an image")
    parser.add_argument("--words", type=int, default=64, help="S, words a caption at most")
    parser.add_argument("--mean-words", type=float, default=16.0, help="of a caption")
    parser.add_argument("--packed", type=int, default=192, help="text.packed")
    parser.add_argument("--batch", type=int, default=4, help="images of a call of the tower")
    parser.add_argument("--images", type=int, default=256, help="in the cache")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--utilisation", type=float, default=0.4, help="of a chip's peak")
    parser.add_argument("--out", default="", help="JSON file; empty: printed")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Measures and writes JSON."""
    args = parse(argv)
    said = make_captions(args, args.images * args.captions)
    towers = tower_arms(args, said)
    with tempfile.TemporaryDirectory() as folder:
        cache = cached_arm(args, said, make_cache(args, said, Path(folder)))
        cache()
        arms = {"cache": cache, **{name: arm for name, (arm, _) in towers.items()}}
        found = measure.interleave(arms, args.repeats)
    told = measure.summaries(found)
    cost, stored = {name: n for name, (_, n) in towers.items()}, sizes(args, said)
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "machine": measure.machine("jax", "jaxlib", "array-record"),
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "arms": told,
        "ratios": {
            "padded over packed": measure.ratio(told["padded"]["ms"], told["packed"]["ms"]),
            "packed over cache": measure.ratio(told["packed"]["cpu_ms"], told["cache"]["cpu_ms"]),
        },
        "bytes": stored,
        "flops": cost,
        "break_even_mb_per_second": break_even(stored["cached_bfloat16"], cost, args.utilisation),
    }
    measure.write(result, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
