"""``jepa-vl eval``: the frozen features of a checkpoint under the registered protocols."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jepa_vl.cli import configs
from jepa_vl.cli.columns import columns
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

    names = args.name.split(",") if args.name else list(REGISTRY)
    for name in names:
        one_of("--name", name, REGISTRY)
    out = _out(args.out, workdir)
    from jepa_vl.training import checkpoint
    from jepa_vl.training.metrics import write_json

    trained, state, step = checkpoint.load(workdir.resolve(), step)
    config = configs.change(trained, overrides)
    images = Images(config, names)
    kinds = {"encoder": _encoder(config, state, images, branch, layers)}
    if args.floor:
        kinds["pixels"] = _pixels(images)
    for kind in kinds.values():  # reads the images, which may be fewer than were drawn
        images.look(kind)
    common = {"transform": TRANSFORM, "seed": config.seed, **images.describe()}
    results = _measure(config, names, kinds, common)
    meta = checkpoint.provenance(trained)
    page = {
        "workdir": workdir.resolve().name, "step": step, "branch": branch,
        "objective": trained.objective, "config_hash": config_hash(trained),
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
        raise ConfigError("--out", given, "is a folder; name the file")
    writable("--out", str(out.parent if out else workdir))
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

    def describe(self) -> dict[str, Any]:
        """Which images these are."""
        if self.reader is not None:
            return {**self.reader.describe(), "classes": self.classes}
        return self.views.describe() if self.views is not None else {}


def _encoder(config: Config, state: Any, read: Images, branch: str, layers: int) -> Kind:
    import jax

    from jepa_vl import objectives, sharding
    from jepa_vl.evaluators import features
    from jepa_vl.models.vit import ViT
    from jepa_vl.schema import MeshConfig

    objective = objectives.build(config)
    most = objective.encoder.depth if isinstance(objective.encoder, ViT) else 1
    if layers > most:
        raise ConfigError("--layers", layers, f"at most {most}, the blocks that can be read")
    weights = {"target": state.target, "context": objective.target_of(state.params)}[branch]
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    params = objective.encoder_params(weights, sharding.place(objective.load_frozen(), mesh))
    encode = features.make_encode(objective.encoder, mesh, layers)
    pooling = f"{POOLING}, {objective.encoder.FEATURES}"
    protocol = {"branch": branch, "layers": layers, "pooling": pooling}
    return Kind(read.readers(encode), params, protocol)


def _pixels(read: Images) -> Kind:
    from jepa_vl.evaluators import features

    readers = read.readers(lambda _, images: features.pixels(images), features.centred)
    return Kind(readers, None, {"pooling": "16 x 16 boxes, centred by the training mean"})


def _measure(
    config: Config, names: Sequence[str], kinds: dict[str, Kind], common: dict[str, Any]
) -> list[dict[str, Any]]:
    """One result for each kind of features and protocol, its whole protocol beside it."""
    from jepa_vl.evaluators.base import REGISTRY, read_by

    results = []
    for name, kind in kinds.items():
        for chosen in names:
            evaluator = REGISTRY[chosen](config, kind.read[read_by(chosen)])
            result = {"evaluator": chosen, "features": name, "scores": evaluator.run(kind.params)}
            protocol = {**common, **kind.protocol, **evaluator.protocol}
            results.append({**result, "protocol": protocol})
    return results


def _without_text(config: Config) -> Config:
    """For opening the images of a run that reads captions: labelled ones need not have any."""
    conditioner = dataclasses.replace(config.conditioner, kind="none")
    return dataclasses.replace(config, objective="ijepa", conditioner=conditioner)


def _table(results: list[dict[str, Any]]) -> list[str]:
    """Lines: the images, then one row a number with a column for each kind of features."""
    kinds = list(dict.fromkeys(result["features"] for result in results))
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for result in results:
        for score, value in result["scores"].items():
            rows.setdefault((result["evaluator"], score), {})[result["features"]] = value
    numbers = [
        (name, score, *(f"{values[kind]:.4g}" if kind in values else "" for kind in kinds))
        for (name, score), values in rows.items()
    ]
    of = results[0]["protocol"]
    there = [part for part in PARTS if part in of]
    images = [f"{part}: {of[part]['images']} images of {of[part]['name']}" for part in there]
    classes = [f"{of['classes']} classes"] if "classes" in of else []
    head = ", ".join([*images, *classes, f"seed {of['seed']}"])
    lines = [("protocol", "number", *kinds), *numbers]
    return [head, *columns(lines, tuple(range(2, 2 + len(kinds))))]
