"""``jepa-vl preview``: what a configuration means, before anything is trained."""

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl.cli import configs, preview_masks, shares
from jepa_vl.cli.columns import columns
from jepa_vl.cli.train import writable
from jepa_vl.config import Config, config_hash, one_of, reads_text, to_dict
from jepa_vl.shapes import Array

IMAGES_SHOWN = 4
DATALESS = ("params", "shardings", "flops")
SHEET = 12  # images on a contact sheet


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Prints what was asked for, and the paths of the pictures.

    Raises:
      ConfigError: a bad configuration or data.
    """
    one_of("--what", args.what, KINDS)
    config = configs.load(args.config, overrides, args.what not in DATALESS)
    from jepa_vl import objectives  # with jax: not before the configuration is read

    objectives.check(config)
    out = Path(args.out or "preview")
    if args.what in PICTURED:
        writable("--out", str(out))
    KINDS[args.what](config, out)
    return 0


def _config(config: Config, out: Path) -> None:
    print(json.dumps({"config_hash": config_hash(config), "config": to_dict(config)}, indent=2))


def _on_one_device(config: Config) -> Any:
    """The plan of a run, on a mesh of one."""
    import jax

    from jepa_vl import sharding
    from jepa_vl.schema import MeshConfig
    from jepa_vl.training import plan

    return plan.make(config, sharding.make_mesh(MeshConfig(), jax.local_devices()[:1]))


def _params(config: Config, out: Path) -> None:
    from jepa_vl import tree

    state = _on_one_device(config).state
    leaves = tree.flatten(state.params)
    rows = [(name, str(tuple(x.shape)), f"{x.size:,}") for name, x in leaves.items()]
    print("\n".join(columns([("parameter", "shape", "count"), *rows], right=(2,))))
    parts: Counter[str] = Counter()
    for name, leaf in leaves.items():
        parts[name.split("/")[0]] += leaf.size
    rows = [(name, f"{count:,}", f"{count / parts.total():.1%}") for name, count in parts.items()]
    rows += [("total", f"{parts.total():,}", "100.0%")]
    print("", *columns([("part", "count", "share"), *rows], right=(1, 2)), sep="\n")
    items = {
        "parameters": state.params,
        "EMA target": state.target,
        "Adam's moments": state.opt_state,
    }
    sizes = {name: tree.nbytes(item) for name, item in items.items()}
    sizes["train state"] = tree.nbytes(state)
    rows = [(name, f"{size:,}", _mebi(size)) for name, size in sizes.items()]
    print("", *columns([("state, float32", "bytes", ""), *rows], right=(1, 2)), sep="\n")


def _shardings(config: Config, out: Path) -> None:
    from jepa_vl import sharding, tree
    from jepa_vl.training import plan

    mesh = sharding.make_mesh(config.mesh)
    state = plan.make(config, mesh).state
    print("\n".join(sharding.table(state, mesh)))
    whole = sharded = here = 0
    for leaf in tree.flatten(state).values():
        size = leaf.size * leaf.dtype.itemsize
        local = int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        here += local
        whole, sharded = (whole + size, sharded) if local == size else (whole, sharded + size)
    total = whole + sharded
    print(f"\nmesh {dict(mesh.shape)}, {mesh.size} devices; the batch lies along {sharding.BATCH}")
    share = whole / total
    print(
        f"train state {_mebi(total)}, on each device {_mebi(here)}; whole everywhere: {share:.1%}"
    )
    excess = sharding.replicated_excess(state, mesh)
    if excess:
        print(f"too much: {excess}")


def _flops(config: Config, out: Path) -> None:
    from jepa_vl import tree

    planned = _on_one_device(config)
    found = planned.flops()
    images = config.train.batch_size
    names = [*found.forward, *(name for name in found.backward if name not in found.forward)]
    parts = [(n, found.forward.get(n, 0), found.backward.get(n, 0)) for n in names]
    parts += [("total", sum(found.forward.values()), sum(found.backward.values()))]
    rows = [
        (name, *(f"{x / images / 1e9:,.4f}" for x in (f, b, f + b)), f"{(f + b) / found.total:.1%}")
        for name, f, b in parts
    ]
    head = ("GFLOPs an image", "forward", "backward", "both", "share")
    print("\n".join(columns([head, *rows], right=(1, 2, 3, 4))))
    trained = tree.count(planned.state.params)
    share = 6 * trained * config.encoder.grid**2 * images / found.total
    print(
        f"\na step of {images} images: {found.total / 1e12:,.4f} TFLOPs, matrix products alone\n"
        f"the rule 6 N D ({trained:,} parameters, all patches) would say {share:.2f} of it"
    )


def _masks(config: Config, out: Path) -> None:
    from jepa_vl.data import masking, pipeline, sources
    from jepa_vl.report import figures

    plan = masking.plan_masks(config)
    print(preview_masks.sizes(plan, config.encoder.patch_size), end="\n\n")
    own = preview_masks.draw(config, plan)
    drawn, (mode, other) = {plan.mode: own}, preview_masks.other_mode(config)
    if isinstance(other, str):
        print(f"mode {mode} cannot be compared: {other}\n")
    else:
        drawn[mode] = preview_masks.draw(config, other)
    print(preview_masks.tables(drawn, plan.grid))
    held_out = sources.open_sources(config)[1]
    indices = np.arange(min(IMAGES_SHOWN, len(held_out)))
    batch = next(pipeline.eval_batches(config, held_out, indices, len(indices)))
    ctx_idx, tgt_idx = (masking.mark_padding(batch, name) for name in ("ctx", "tgt"))
    _write(out / "masks.png", figures.masks(batch["image"], ctx_idx, tgt_idx, plan.grid))
    shares = masking.coverage(own.context, own.target, plan.grid)
    _write(out / "coverage.png", figures.coverage(*shares))


def _batch(config: Config, out: Path) -> None:
    from jepa_vl.data import captions, controls, pipeline, sources
    from jepa_vl.report import figures

    # The same batches as with workers, without waiting for them to start.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=0))
    source = sources.open_sources(config)[0]
    with pipeline.make_batches(config, source, 0) as stream:
        batch = next(stream)
    print(f"the batch of step 0 from {source.name} ({len(source)} images)\n")
    if mixed := shares.table(config, source):
        print(*mixed, sep="\n", end="\n\n")
    rows = [(name, str(x.shape), str(x.dtype)) for name, x in batch.items()]
    print("\n".join(columns([("array", "shape", "type"), *rows])))
    reader = captions.build(config.text)
    # Spread over the batch, of which the sources of a mixture have different parts.
    size = len(batch["image"])
    picked = np.arange(min(SHEET, size)) * size // min(SHEET, size)
    batch = {name: array[picked] for name, array in batch.items()}
    supply = controls.build(config, source)
    drawn = [
        _drawn(config, supply.texts(int(i), source[int(i)]["captions"]), batch, row)
        for row, i in enumerate(batch["index"])
    ]
    for row, texts in enumerate(drawn[:IMAGES_SHOWN]):
        label = int(batch["label"][row])
        print(
            f"\nimage {batch['index'][row]}, {source.classes[label] if label >= 0 else 'no label'}"
        )
        for text in texts:
            kept = reader.tokens(text)
            last = max((token.word for token in kept if token.word is not None), default=-1)
            cut = captions.words(text)[last + 1 :]
            pieces = " ".join(token.piece for token in kept)
            print(f"  {text}\n    {pieces}" + (f"  (cut: {' '.join(cut)})" if cut else ""))
    _write(out / "batch.png", figures.batch_sheet(batch["image"], drawn))


def _drawn(config: Config, texts: list[str], batch: dict[str, Array], row: int) -> list[str]:
    """The captions that an image of a batch comes with, found again by their arrays.

    Random tokens are no caption.
    """
    if not reads_text(config) or config.data.captions == "random":
        return []
    from jepa_vl.data import captions

    reader = captions.build(dataclasses.replace(config.text, captions=1))
    name = "word_ids" if "word_ids" in batch else "word_states"
    known = {reader.encode_all([text])[name].tobytes(): text for text in texts}
    present = batch["caption_mask"][row]
    return [known[content.tobytes()] for content in batch[name][row][present]]


def _write(path: Path, figure: Any) -> None:
    from jepa_vl.report import figures

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(figures.to_png(figure))
    print(path)


def _mebi(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


KINDS = {
    "config": _config,
    "params": _params,
    "shardings": _shardings,
    "flops": _flops,
    "masks": _masks,
    "batch": _batch,
}
PICTURED = ("masks", "batch")
