"""``jepa-vl eval``: the frozen features of a checkpoint under the registered protocols."""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jepa_vl.cli import configs
from jepa_vl.cli.columns import columns
from jepa_vl.cli.eval_compare import interval, pack
from jepa_vl.cli.numbers import whole
from jepa_vl.cli.train import writable
from jepa_vl.config import Config, ConfigError, config_hash, one_of

BRANCHES = ("target", "context")
PARTS = ("train", "held_out")
POOLING = "mean over all patches"
TRANSFORM = "short side to image_size, centre square, no augmentation"


class Kind(NamedTuple):
    """A kind of features: an Extract and its parameters (evaluators.base), and how it works."""

    extract: Any
    params: Any
    protocol: dict[str, Any]


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Prints a table and writes the same numbers as JSON.

    Raises:
      ConfigError: no such checkpoint, branch or protocol; data without labels, or too few.
    """
    workdir = Path(args.workdir).expanduser()
    if not workdir.is_dir():
        raise ConfigError("--workdir", args.workdir, "no such folder")
    step = None if args.step is None else whole("--step", args.step, 0)
    layers = 1 if args.layers is None else whole("--layers", args.layers, 1)
    branch = args.branch or BRANCHES[0]
    one_of("--branch", branch, BRANCHES)
    from jepa_vl.evaluators import REGISTRY

    names = args.name.split(",") if args.name else list(REGISTRY)
    for name in names:
        one_of("--name", name, REGISTRY)
    out = _out(args.json, workdir)
    from jepa_vl.training import checkpoint
    from jepa_vl.training.metrics import write_json

    trained, state, step = checkpoint.load(workdir.resolve(), step)
    config = configs.change(trained, overrides)
    # Of the images and of what the protocols draw; towers are those of the run's own seed.
    seed = config.seed if args.seed is None else whole("--seed", args.seed, 0)
    chosen = dataclasses.replace(config, seed=seed)
    reader, classes = _reader(chosen)
    states = {"encoder": state}
    if args.floor and step:
        states["untrained"] = checkpoint.load(workdir.resolve(), 0)[1]
    kinds = _encoders(config, states, reader, branch, layers)
    if args.floor:
        kinds["pixels"] = _pixels(reader)
    for kind in kinds.values():  # reads the images, which may be fewer than were drawn
        kind.extract(kind.params)
    common = {"transform": TRANSFORM, "seed": seed, **reader.describe(), "classes": classes}
    results = _measure(chosen, names, kinds, common)
    meta = checkpoint.provenance(trained)
    page = {
        "workdir": workdir.resolve().name, "step": step, "branch": branch,
        "objective": trained.objective, "config_hash": config_hash(trained),
        "checkpoint_hash": _checkpoint_hash(state), "data_hash": reader.data_hash(), "seed": seed,
        "git": meta["git"], "versions": meta["versions"], "results": results,
    }  # fmt: skip
    of_layers = f"_{layers}layers" if layers > 1 else ""
    out = out or workdir / f"eval_{step}_{branch}{of_layers}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, page)
    print(f"step {step}, {branch} encoder", *_table(results), out, sep="\n")
    return 0


def _out(given: str | None, workdir: Path) -> Path | None:
    """The file that was asked for; None: one in the workdir, whose name is not known yet."""
    out = Path(given).expanduser() if given else None
    if out is not None and out.is_dir():
        raise ConfigError("--json", given, "is a folder; name the file")
    writable("--json", str(out.parent if out else workdir))
    return out


def _reader(config: Config) -> tuple[Any, int]:
    """The labelled images, and how many classes they have."""
    from jepa_vl.data import sources
    from jepa_vl.evaluators import features

    train, held_out = sources.open_sources(_without_text(config))
    return features.Reader(config, train, held_out), len(train.classes)


def _encoders(
    config: Config, states: dict[str, Any], reader: Any, branch: str, layers: int
) -> dict[str, Kind]:
    """The encoder of each state, compiled once."""
    import jax

    from jepa_vl import objectives, sharding
    from jepa_vl.evaluators import features
    from jepa_vl.models.vit import ViT
    from jepa_vl.schema import MeshConfig

    objective = objectives.build(config)
    most = objective.encoder.depth if isinstance(objective.encoder, ViT) else 1
    if layers > most:
        raise ConfigError("--layers", layers, f"at most {most}, the blocks that can be read")
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    frozen = sharding.place(objective.load_frozen(), mesh)
    encode = features.make_encode(objective.encoder, mesh, layers)
    pooling = f"{POOLING}, {objective.encoder.FEATURES}"
    protocol = {"branch": branch, "layers": layers, "pooling": pooling}
    kinds = {}
    for name, state in states.items():
        weights = {"target": state.target, "context": objective.target_of(state.params)}[branch]
        extract = features.remember(lambda p: reader.read(lambda images: encode(p, images)))
        kinds[name] = Kind(extract, objective.encoder_params(weights, frozen), protocol)
    return kinds


def _pixels(reader: Any) -> Kind:
    from jepa_vl.evaluators import features

    extract = features.remember(lambda _: features.centred(reader.read(features.pixels)))
    return Kind(extract, None, {"pooling": "16 x 16 boxes, centred by the training mean"})


def _measure(
    config: Config, names: Sequence[str], kinds: dict[str, Kind], common: dict[str, Any]
) -> list[dict[str, Any]]:
    """One result for each kind of features and task, its whole protocol beside it.

    The encoder's have the numbers of the other kinds as baselines.
    """
    from jepa_vl.evaluators import REGISTRY
    from jepa_vl.evaluators.base import majority
    from jepa_vl.evaluators.intervals import WORDS, intervals

    results = []
    for name, kind in kinds.items():
        commonest = {"majority": majority(kind.extract(kind.params))}
        for task in names:
            evaluator = REGISTRY[task](config, kind.extract)
            scores, hits = evaluator.measure(kind.params)
            ci = intervals(np.array([right.mean(axis=0) for right in hits.values()]))
            result = {"task": task, "features": name, "metrics": scores}
            result |= {"ci": dict(zip(hits, ci, strict=True)), "baselines": dict(commonest)}
            result |= {"hits": {score: pack(right) for score, right in hits.items()}}
            protocol = {**kind.protocol, **evaluator.protocol, **common, "interval": WORDS}
            results.append({**result, "protocol": protocol})
    for result in results[: len(names)]:
        result["baselines"] |= {
            other["features"]: {score: other["metrics"][score] for score in other["ci"]}
            for other in results[len(names) :]
            if other["task"] == result["task"]
        }
    return results


def _checkpoint_hash(state: Any) -> str:
    """16 hex digits of the checksums of all arrays, as the checkpoint has them."""
    from jepa_vl.training.checkpoint import FIELDS
    from jepa_vl.training.checksum import checksums

    found = checksums({name: getattr(state, name) for name in FIELDS})
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _without_text(config: Config) -> Config:
    """For opening the images of a run that reads captions: labelled ones need not have any."""
    conditioner = dataclasses.replace(config.conditioner, kind="none")
    return dataclasses.replace(config, objective="ijepa", conditioner=conditioner)


def _table(results: list[dict[str, Any]]) -> list[str]:
    """Lines: the images, then one row a number with a column for each kind of features."""
    kinds = list(dict.fromkeys(result["features"] for result in results))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        for score, value in result["metrics"].items():
            cells = rows.setdefault((result["task"], score), {})
            cells[result["features"]] = f"{value:.4g}"
            if result["features"] == kinds[0] and score in result["ci"]:
                cells["interval"] = interval(*result["ci"][score])
    heads = [kinds[0], "interval", *kinds[1:]]
    numbers = [
        (name, score, *(cells.get(head, "") for head in heads))
        for (name, score), cells in rows.items()
    ]
    of = results[0]["protocol"]
    images = [f"{part}: {of[part]['images']} images of {of[part]['name']}" for part in PARTS]
    floor = f"most frequent class {results[0]['baselines']['majority']:.4g}"
    head = ", ".join([*images, f"{of['classes']} classes, seed {of['seed']}", floor])
    lines = [("task", "number", *heads), *numbers]
    return [head, *columns(lines, tuple(range(2, 2 + len(heads)))), f"({of['interval']})"]
