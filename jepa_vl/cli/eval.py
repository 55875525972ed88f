"""``jepa-vl eval``: the frozen features of a checkpoint under the registered protocols."""

import argparse
import dataclasses
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
    """A kind of features: how they are read and of which parameters (evaluators.base).

    Attributes:
      read: LABELLED -> an Extract, where it is asked for; VIEWS -> a ViewsOf.
      params: what both are called with.
      protocol: how they work.
    """

    read: dict[str, Any]
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
    from jepa_vl.evaluators.base import LABELLED, VIEWS, read_by

    known = [name for name in REGISTRY if read_by(name) in (LABELLED, VIEWS)]
    names = args.name.split(",") if args.name else known
    for name in names:
        one_of("--name", name, known)
    out = _out(args.json, workdir)
    from jepa_vl.training import checkpoint
    from jepa_vl.training.checksum import tree_hash
    from jepa_vl.training.metrics import write_json

    trained, state, step = checkpoint.load(workdir.resolve(), step)
    config = configs.change(trained, overrides)
    # Of the images and of what the protocols draw; towers are those of the run's own seed.
    seed = config.seed if args.seed is None else whole("--seed", args.seed, 0)
    chosen = dataclasses.replace(config, seed=seed)
    images = Images(chosen, names)
    states = {"encoder": state}
    if args.floor and step:
        states["untrained"] = checkpoint.load(workdir.resolve(), 0)[1]
    kinds = _encoders(config, states, images, branch, layers)
    if args.floor:
        kinds["pixels"] = _pixels(images)
    for kind in kinds.values():  # reads the images, which may be fewer than were drawn
        images.look(kind)
    common = {"transform": TRANSFORM, "seed": seed, **images.describe()}
    results = _measure(chosen, names, kinds, common)
    meta = checkpoint.provenance(trained)
    page = {
        "workdir": workdir.resolve().name, "step": step, "branch": branch,
        "objective": trained.objective, "config_hash": config_hash(trained),
        "checkpoint_hash": tree_hash(state), "data_hash": images.data_hash(), "seed": seed,
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


class Images:
    """What the evaluators of some names read; labels are needed where one of them asks for them."""

    def __init__(self, config: Config, names: Sequence[str]):
        from jepa_vl.data import sources
        from jepa_vl.evaluators import base, features

        plain = _without_text(config)
        train, held_out = sources.open_sources(plain)
        self.classes, self.views, self.reader = len(train.classes), None, None
        wanted = {base.read_by(name) for name in names}
        if base.VIEWS in wanted:
            self.views = features.Views(plain, held_out)
        if base.LABELLED in wanted:
            self.reader = features.Reader(config, train, held_out)

    def readers(self, embed: Any, change: Any = lambda found: found) -> dict[str, Any]:
        """How features of ``embed(params, images)`` are read; labelled ones ``change`` then."""
        from jepa_vl.evaluators import base, features

        reader, views, out = self.reader, self.views, {}
        if reader is not None:
            out[base.LABELLED] = features.remember(
                lambda params: change(reader.read(lambda images: embed(params, images)))
            )
        if views is not None:
            out[base.VIEWS] = lambda params: views.read(lambda images: embed(params, images))
        return out

    def look(self, kind: Kind) -> None:
        """Reads the labelled images, so that :meth:`describe` knows those that can be read."""
        from jepa_vl.evaluators.base import LABELLED

        if LABELLED in kind.read:
            kind.read[LABELLED](kind.params)

    def data_hash(self) -> str:
        """16 hex digits: of the labelled images or, where none are read, of those of the views."""
        parts = [part for part in (self.reader, self.views) if part is not None]
        return parts[0].data_hash()

    def describe(self) -> dict[str, Any]:
        """Which images these are."""
        if self.reader is not None:
            return {**self.reader.describe(), "classes": self.classes}
        return self.views.describe() if self.views is not None else {}


def _encoders(
    config: Config, states: dict[str, Any], read: Images, branch: str, layers: int
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
    readers, kinds = read.readers(encode), {}
    for name, state in states.items():
        weights = {"target": state.target, "context": objective.target_of(state.params)}[branch]
        kinds[name] = Kind(readers, objective.encoder_params(weights, frozen), protocol)
    return kinds


def _pixels(read: Images) -> Kind:
    from jepa_vl.evaluators import features

    readers = read.readers(lambda _, images: features.pixels(images), features.centred)
    return Kind(readers, None, {"pooling": "16 x 16 boxes, centred by the training mean"})


def _measure(
    config: Config, names: Sequence[str], kinds: dict[str, Kind], common: dict[str, Any]
) -> list[dict[str, Any]]:
    """One result for each kind of features and task, its whole protocol beside it.

    The encoder's have the numbers of the other kinds as baselines.
    """
    from jepa_vl.evaluators.base import LABELLED, REGISTRY, majority, read_by
    from jepa_vl.evaluators.intervals import WORDS, intervals

    results = []
    for name, kind in kinds.items():
        for task in names:
            evaluator = REGISTRY[task](config, kind.read[read_by(task)])
            scores, hits, *_ = evaluator.measure(kind.params)
            result = {"task": task, "features": name, "metrics": scores, "baselines": {}}
            protocol = {**common, **kind.protocol, **evaluator.protocol}
            if read_by(task) == LABELLED:
                result["baselines"]["majority"] = majority(kind.read[LABELLED](kind.params))
                protocol["interval"] = WORDS
            images = [right.mean(axis=0) for right in hits.values()]
            ci = intervals(np.array(images)) if images else []
            result |= {"ci": dict(zip(hits, ci, strict=True))}
            result |= {"hits": {score: pack(right) for score, right in hits.items()}}
            results.append({**result, "protocol": protocol})
    for result in results[: len(names)]:
        result["baselines"] |= {
            other["features"]: {
                name: other["metrics"][name] for name in other["ci"] or other["metrics"]
            }
            for other in results[len(names) :]
            if other["task"] == result["task"]
        }
    return results


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
    there = [part for part in PARTS if part in of]
    images = [f"{part}: {of[part]['images']} images of {of[part]['name']}" for part in there]
    classes = [f"{of['classes']} classes"] if "classes" in of else []
    floor = results[0]["baselines"].get("majority")
    commonest = [] if floor is None else [f"most frequent class {floor:.4g}"]
    head = ", ".join([*images, *classes, f"seed {of['seed']}", *commonest])
    words = [f"({of['interval']})"] if "interval" in of else []
    lines = [("task", "number", *heads), *numbers]
    return [head, *columns(lines, tuple(range(2, 2 + len(heads)))), *words]
