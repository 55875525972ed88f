"""``jepa-vl preview``: what a configuration means, before anything is trained."""

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl.cli import configs
from jepa_vl.cli.table import columns
from jepa_vl.cli.train import writable
from jepa_vl.config import Config, config_hash, one_of, reads_text, to_dict
from jepa_vl.shapes import Array

MASKS_DRAWN = 2048
IMAGES_SHOWN = 4
SHEET = 12  # images on a contact sheet


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Prints what was asked for, and the paths of the pictures.

    Raises:
      ConfigError: a bad configuration or data.
    """
    one_of("--what", args.what, KINDS)
    config = configs.load(args.config, overrides)
    out = Path(args.out or "preview")
    if args.what in PICTURED:
        writable("--out", str(out))
    KINDS[args.what](config, out)
    return 0


def _config(config: Config, out: Path) -> None:
    print(json.dumps({"config_hash": config_hash(config), "config": to_dict(config)}, indent=2))


def _abstract(config: Config, mesh: Any) -> Any:
    from jepa_vl import objectives
    from jepa_vl.training import state

    return state.abstract(config, objectives.build(config), state.batch_spec(config), mesh)


def _params(config: Config, out: Path) -> None:
    import jax

    from jepa_vl import sharding, tree
    from jepa_vl.schema import MeshConfig

    state = _abstract(config, sharding.make_mesh(MeshConfig(), jax.local_devices()[:1]))
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

    mesh = sharding.make_mesh(config.mesh)
    state = _abstract(config, mesh)
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


def _masks(config: Config, out: Path) -> None:
    from jepa_vl.data import masking, pipeline, sources
    from jepa_vl.report import figures

    plan = masking.plan_masks(config)
    cells = plan.grid**2
    padded = " at most, padded" if plan.mode == "reference" else ""
    print(
        f"mode             {plan.mode}\n"
        f"grid             G = {plan.grid}: {cells} patches of {config.encoder.patch_size} px\n"
        f"context          K = {plan.context_tokens}{padded} ({plan.context_tokens / cells:.1%})\n"
        f"target blocks    M = {plan.target_blocks}\n"
        f"tokens a block   C = {plan.target_tokens}{padded} ({plan.target_tokens / cells:.1%})\n"
        f"block sizes      {', '.join(f'{h}x{w}' for h, w in plan.sizes)} (height x width)"
    )
    context, target = _coverage(config, plan)
    print(f"\nhow often a patch of a row is context, in one target block ({MASKS_DRAWN} draws)")
    rows = [
        (str(i), f"{c:.3f}", f"{t:.3f}")
        for i, (c, t) in enumerate(zip(context.mean(1), target.mean(1), strict=True))
    ]
    rows.append(("all", f"{context.mean():.3f}", f"{target.mean():.3f}"))
    print("\n".join(columns([("row", "context", "target"), *rows], right=(1, 2))))
    held_out = sources.open_sources(config)[1]
    indices = np.arange(min(IMAGES_SHOWN, len(held_out)))
    batch = next(pipeline.eval_batches(config, held_out, indices, len(indices)))
    ctx_idx, tgt_idx = (
        np.where(batch.get(f"{name}_valid", True), batch[f"{name}_idx"], -1)  # -1: padding
        for name in ("ctx", "tgt")
    )
    _write(out / "masks.png", figures.masks(batch["image"], ctx_idx, tgt_idx, plan.grid))
    _write(out / "coverage.png", figures.coverage(context, target))


def _coverage(config: Config, plan: Any) -> tuple[Array, Array]:
    """Shares [G, G] of masks drawn as training draws them."""
    from jepa_vl.data import masking

    rng = np.random.default_rng(config.seed)
    if plan.mode == "production":
        rows = [masking.production_masks(plan, rng) for _ in range(MASKS_DRAWN)]
        ctx_idx, tgt_idx = (np.stack([row[f"{n}_idx"] for row in rows]) for n in ("ctx", "tgt"))
        return masking.coverage(ctx_idx, tgt_idx, plan.grid)
    size = config.train.batch_size
    batches = [masking.reference_masks(plan, size, rng) for _ in range(-(-MASKS_DRAWN // size))]
    parts = [masking.coverage(b["ctx_idx"], b["tgt_idx"], plan.grid) for b in batches]
    context, target = (np.mean([part[i] for part in parts], axis=0) for i in range(2))
    return context, target


def _batch(config: Config, out: Path) -> None:
    from jepa_vl.data import captions, pipeline, sources
    from jepa_vl.report import figures

    # The same batches as with workers, without waiting for them to start.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=0))
    source = sources.open_sources(config)[0]
    with pipeline.make_batches(config, source, 0) as stream:
        batch = next(stream)
    print(f"the batch of step 0 from {source.name} ({len(source)} images)\n")
    rows = [(name, str(x.shape), str(x.dtype)) for name, x in batch.items()]
    print("\n".join(columns([("array", "shape", "type"), *rows])))
    count = min(SHEET, len(batch["image"]))
    drawn = [
        _drawn(config, source[int(i)]["captions"], batch, row)
        for row, i in enumerate(batch["index"][:count])
    ]
    for row, texts in enumerate(drawn[:IMAGES_SHOWN]):
        label = int(batch["label"][row])
        print(
            f"\nimage {batch['index'][row]}, {source.classes[label] if label >= 0 else 'no label'}"
        )
        for text in texts:
            kept = [piece for piece, _ in captions.pieces(text)]
            cut = kept[config.text.words :]
            print(
                f"  {text}\n    {' '.join(kept[: config.text.words])}"
                + (f"  (cut: {' '.join(cut)})" if cut else "")
            )
    _write(out / "batch.png", figures.batch_sheet(batch["image"][:count], drawn))


def _drawn(config: Config, texts: list[str], batch: dict[str, Array], row: int) -> list[str]:
    """The captions that an image of a batch comes with, found again by their word ids."""
    if not reads_text(config):
        return []
    from jepa_vl.data import captions

    one = dataclasses.replace(config.text, captions=1)
    known = {captions.encode_all([text], one)["word_ids"].tobytes(): text for text in texts}
    present = batch["caption_mask"][row]
    return [known[ids.tobytes()] for ids in batch["word_ids"][row][present]]


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
    "masks": _masks,
    "batch": _batch,
}
PICTURED = ("masks", "batch")
