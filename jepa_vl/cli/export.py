"""``jepa-vl export``: the encoder of a checkpoint for other libraries."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli import checkpoints
from jepa_vl.cli.configs import Override
from jepa_vl.cli.train import writable
from jepa_vl.config import Config, ConfigError, one_of, resolve
from jepa_vl.shapes import Array

BRANCHES = ("target", "context")
ENCODER = "encoder"
DIFFERS = 1
NOT_READ = ("label", "index", "valid")  # of a batch, by objectives


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Writes a folder and prints how far its features are from ours.

    Returns:
      0; 1: they are too far, and no folder is left.

    Raises:
      ConfigError: a bad option, a damaged checkpoint, libraries that are not installed.
    """
    del overrides
    if bool(args.workdir) == bool(args.model):
        raise ConfigError("--workdir", args.workdir or "", "give DIR, a run, or --model PATH")
    branch = args.branch or BRANCHES[0]
    one_of("--branch", branch, BRANCHES)
    if not args.out:
        raise ConfigError("--out", "", "give DIR: folder to write")
    out = writable("--out", args.out)
    if out.exists():
        raise ConfigError("--out", args.out, "is there already; name a new folder")
    part = args.part or ENCODER
    from jepa_vl.cli import export_images
    from jepa_vl.export import FORMATS, parts, process, write
    from jepa_vl.training import stored

    one_of("--format", args.format, FORMATS)
    one_of("--part", part, (ENCODER, *parts.PARTS, parts.WHOLE))
    if part != ENCODER:
        return _part(args, part, branch, out)
    form = FORMATS[args.format]
    process.require(args.format, form.needs, form.extra)
    if args.model:
        encoder, held_out = _imported(args.model, branch), None
        what = args.model
    else:
        workdir, step = checkpoints.folder("--workdir", args.workdir), checkpoints.step(args)
        one = stored.find(workdir, step)
        with checkpoints.readable(workdir):
            encoder = _encoder(one, branch, workdir)
        what, held_out = f"step {one.step}", lambda: _images(encoder.config).parts[1]
    shown = export_images.choose(encoder.config, args.images, held_out)
    facts = {**encoder.facts, "compared_on": shown.words}
    encoder = dataclasses.replace(encoder, facts=facts)
    try:
        told = write.export(encoder, args.format, out, shown.images)
    except write.Differs as error:
        return _refuse(args.format, error)
    print(
        f"{what}, {encoder.facts['branch']} encoder, {args.format}\n"
        f"features of {shown.words} {_told(told, 'feature')}\n{out}"
    )
    return 0


def _part(args: argparse.Namespace, part: str, branch: str, out: Path) -> int:
    """Writes a part that no other library has."""
    from jepa_vl.export import parts, write
    from jepa_vl.training import stored, verify

    if args.format != "safetensors":
        rule = f"safetensors alone with --part {part}, which no other library has"
        raise ConfigError("--format", args.format, rule)
    if args.model:
        raise ConfigError("--part", part, "of a run: give --workdir")
    workdir = checkpoints.folder("--workdir", args.workdir)
    one = stored.find(workdir, checkpoints.step(args))
    with checkpoints.readable(workdir):
        config = resolve(one.meta["config"])
        names = list(one.arrays)
        chosen = parts.names_of(part, branch, names, config)
        model = verify.read_whole(one, parts.names_of(parts.WHOLE, branch, names, config))
        facts = _facts(one)
    arrays = {name: model.pop(name) for name in chosen}
    probe = _probe(config, arrays, model, args.images)
    try:
        told = parts.export(part, arrays, config, facts, out, probe)
    except write.Differs as error:
        return _refuse(part, error)
    print(
        f"step {one.step}, {part}: {len(arrays)} arrays, read again bit by bit\n"
        f"outputs of the model for {probe.words} {_told(told, 'output')}\n{out}"
    )
    return 0


def _probe(
    config: Config, arrays: dict[str, Array], others: dict[str, Array], images: str | None
) -> Any:
    """What the model of a part, and of others beside it, computes of images and captions."""
    from jepa_vl.cli import export_images
    from jepa_vl.data import pipeline
    from jepa_vl.export.parts import Probe
    from jepa_vl.training import whole

    # Those that the images come with, whatever the run gave them.
    data = dataclasses.replace(config.data, captions="own")
    shown = export_images.choose(config, images, lambda: _images(config).captioned[1])
    usual = dataclasses.replace(config, data=data)
    read = pipeline.eval_batches(usual, shown.source, shown.indices, len(shown.indices))
    batch = {name: x for name, x in next(read).items() if name not in NOT_READ}
    model = whole.fit(config, {**others, **arrays}, ("--workdir", "its checkpoint"))
    return Probe(others, batch, whole.outputs(model, batch), shown.words)


def _told(told: Any, what: str) -> str:
    """The differences, for people."""
    versions = ", ".join(f"{name} {version}" for name, version in told.versions.items())
    largest = f"largest difference {told.largest:.3g}, mean {told.mean:.3g}"
    return f"by {versions}: {largest} (largest {what} {told.scale:.3g})"


def _refuse(what: str, error: Exception) -> int:
    print(f"jepa-vl: error: {what}: {error}; nothing was left", file=sys.stderr)
    return DIFFERS


def _facts(one: Any) -> dict[str, Any]:
    """What a card says of a checkpoint."""
    return {
        "step": one.step,
        "config_hash": one.meta["config_hash"],
        "git": one.meta["git"] or "unknown",
        "data": f"{one.data['name']} ({one.data['images']:,} images)",
    }


def _encoder(one: Any, branch: str, workdir: Path) -> Any:
    """Arrays and facts of a checkpoint."""
    from jepa_vl.export import base
    from jepa_vl.training import verify

    config = resolve(one.meta["config"])
    shapes = {name: tuple(found.shape) for name, found in one.arrays.items()}
    place = base.find(shapes, config, branch)
    names = [name for name in shapes if name.startswith(place)]
    params = {n.removeprefix(place): x for n, x in verify.read_whole(one, names).items()}
    facts = {
        **_facts(one),
        "images": one.step * one.data["global_batch"],
        "branch": branch,
        "results": _results(workdir, one.step, branch),
    }
    return base.Encoder(config, params, facts)


def _imported(model: str, branch: str) -> Any:
    """An encoder that no run here has trained, or one that left it before."""
    from jepa_vl.cli.eval_model import described
    from jepa_vl.export import base
    from jepa_vl.models import intake
    from jepa_vl.models.intake.plain import as_ours
    from jepa_vl.pretrained import fingerprint

    source, content = intake.open_source(model, "--model", branch), fingerprint(model, "--model")
    own, params = as_ours(source)
    config = dataclasses.replace(described(source.shape), encoder=own)
    facts = {
        "origin": f"{Path(model).name} ({source.kind}), fingerprint {content}",
        "branch": source.branch or "unknown",
        "results": [],
    }
    return base.Encoder(config, params, facts)


def _images(config: Config) -> Any:
    """The data of a run, opened when they are asked for."""
    from jepa_vl.evaluators.subject import Images

    return Images(config)


def _results(workdir: Path, step: int, branch: str) -> list[dict[str, Any]]:
    """What `jepa-vl eval` has left of this checkpoint, of the encoder's last layer."""
    path = workdir / f"eval_{step}_{branch}.json"
    if not path.is_file():
        return []
    try:
        results = json.loads(path.read_text())["results"]
        return [result for result in results if result["features"] == "encoder"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("--workdir", str(path), f"cannot be read: {error!r}") from error
