"""Folders that hold an encoder: of transformers, of timm, our own exports, our own runs."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jepa_vl import tree
from jepa_vl.config import Config, ConfigError, resolve
from jepa_vl.models import frozen_vit, runs
from jepa_vl.models.frozen_vit import PREPROCESSOR, VitShape
from jepa_vl.models.intake.names import OURS, TIMM
from jepa_vl.models.intake.source import Named, Part, Source, Told, Whole, of_timm
from jepa_vl.models.layers import sincos_table
from jepa_vl.models.weights import Tensors, read_safetensors
from jepa_vl.pretrained import read_json
from jepa_vl.shapes import Array

CONFIG = "config.json"
PARTS = ("predictor", "text", "to_image", "to_text", "head")  # that runs train beside the encoder
STATE = ("params", "target")  # of a train state, what a model is
# Places in a state, a name that must be there (empty: none) -> arrays below the first that fits.
Read = Callable[[Sequence[str], str], dict[str, Array]]
# timm's name -> heads; that of vit_base_patch16_gap_224 is a trap.
HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16, "giant": 16}
SIXTEEN = "vit_base_patch16_gap_224"
NAME = re.compile(rf"vit_({'|'.join(HEADS)})_patch\d+(?:_gap|_dinov2)?(?:_\d+)?")


def read(folder: Path, where: tuple[str, str], branch: str) -> Source:
    """The encoder of a folder with a config.json.

    Raises:
      ConfigError: no such file, or of a kind that is not covered.
    """
    config = read_json(folder, CONFIG, where[0])
    if not isinstance(config, dict):
        raise ConfigError(*where, f"its {CONFIG} is no object")
    try:
        if "architecture" in config:
            return _timm(folder, config, where)
        if "model_type" in config:
            return _transformers(folder, config, where)
        if "mlp_width" in config:
            return _ours(folder, config, where)
        if "objective" in config:
            return _whole(folder, config, where, branch)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        rule = f"its {CONFIG} lacks or distorts {error}"
        raise ConfigError(*where, rule) from None
    rule = f"its {CONFIG} is none of transformers (model_type), timm (architecture) or ours"
    raise ConfigError(*where, rule)


def _transformers(folder: Path, config: dict[str, Any], where: tuple[str, str]) -> Source:
    there = (folder / PREPROCESSOR).is_file()
    pixels = read_json(folder, PREPROCESSOR, where[0]) if there else {}
    shape = frozen_vit.read_shape(config, pixels, where)
    part = Part(lambda: read_safetensors(folder, where[0]), frozen_vit.RULES)
    return Source(where, f"{config['model_type']} of transformers", "", shape, part)


def _timm(folder: Path, config: dict[str, Any], where: tuple[str, str]) -> Source:
    name, arguments = config["architecture"], config.get("model_args") or {}
    size = NAME.fullmatch(name)
    heads = arguments.get("num_heads")
    if size is None:
        rule = f"its architecture {name!r} is not covered; covered: vit_SIZE_patchN and its like"
        raise ConfigError(*where, rule)
    if heads is None:
        heads = 16 if name == SIXTEEN else HEADS[size[1]]
    pixels = config.get("pretrained_cfg") or config
    told = Told(int(heads))
    if "mean" in pixels and "std" in pixels:
        told = Told(int(heads), tuple(pixels["mean"]), tuple(pixels["std"]))
    tensors: Named = dict(read_safetensors(folder, where[0]))
    part = Part(tensors.items, TIMM)
    return Source(where, f"{name} of timm", "", of_timm(tensors, told, where), part)


def _ours(folder: Path, config: dict[str, Any], where: tuple[str, str]) -> Source:
    """What ``jepa-vl export --format safetensors`` wrote."""
    shape = VitShape(
        grid=config["image_size"] // config["patch_size"],
        patch=config["patch_size"],
        width=config["width"],
        depth=config["depth"],
        heads=config["heads"],
        hidden=config["mlp_width"],
        eps=config["eps"],
        cls=0,
        layer_scale=False,
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
    )
    part = Part(lambda: read_safetensors(folder, where[0]), OURS)
    return Source(where, "an export of ours", str(config.get("branch", "")), shape, part)


def _whole(folder: Path, told: dict[str, Any], where: tuple[str, str], branch: str) -> Source:
    """What ``jepa-vl export --part whole`` wrote: parameters and target of a train state."""
    named: Named = dict(read_safetensors(folder, where[0]))

    def read(places: Sequence[str], mark: str) -> dict[str, Array]:
        for place in places:
            found = {n.removeprefix(f"{place}/"): n for n in named if n.startswith(f"{place}/")}
            if found and (not mark or mark in found):
                return {name: named[full]() for name, full in found.items()}
        rule = f"holds no {' or '.join(places)}" + (f" with {mark}" if mark else "")
        raise ConfigError(*where, rule)

    return _of_state("a model of ours", where, branch, resolve(told), read)


def of_run(workdir: Path, where: tuple[str, str], branch: str) -> Source:
    """The newest checkpoint of a run of ours.

    Raises:
      ConfigError: it has none, or its run trained no image encoder.
    """

    def read(places: Sequence[str], mark: str) -> dict[str, Array]:
        return tree.flatten(runs.arrays(workdir, places, mark, where))

    return _of_state("a run of ours", where, branch, runs.read_config(workdir, where), read)


def _of_state(kind: str, where: tuple[str, str], branch: str, config: Config, read: Read) -> Source:
    """The parts of a train state, read when they are asked for."""
    shape = frozen_vit.shape_of(config.encoder)

    def encoder() -> Tensors:
        found = read(runs.BRANCHES[branch], runs.MARK)
        fixed = sincos_table(shape.width, shape.grid)  # in no checkpoint
        return [(name, lambda x=x: x) for name, x in ({"position": fixed} | found).items()]

    def other(name: str) -> Part:
        ema = (f"target/{name}",) if branch == "target" else ()

        def tensors() -> Tensors:
            found = read((*ema, f"params/{name}"), "")
            return [(name, lambda x=x: x) for name, x in found.items()]

        return Part(tensors, OURS)

    def arrays() -> dict[str, Array]:
        return {f"{top}/{n}": x for top in STATE for n, x in read((top,), "").items()}

    parts = {name: other(name) for name in PARTS}
    whole = Whole(config, arrays)
    return Source(where, kind, branch, shape, Part(encoder, OURS), parts, whole)
