"""Where pretrained files lie, and what names them: folders in Hugging Face's layout."""

import functools
import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from jepa_vl.config import ConfigError, one_of

HUB, PACKAGE, ZOO = "hub:", "package:", "zoo:"
SHIPPED = Path(__file__).with_name("zoo")  # small models that come with this package
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What the hub is asked for beside the weights; a model has some of them.
EXTRAS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
    "spiece.model", "preprocessor_config.json",
)  # fmt: skip
CONTENT = ("*.json", "*.safetensors", "*.model", "*.txt")  # what a fingerprint covers
# Of a checkpoint of ours: its manifest names the files that its arrays lie in.
RUN_CONTENT = ("meta/metadata", "state/manifest.ocdbt")
CHECKPOINTS = "checkpoints"  # what makes a folder the workdir of a run of ours
FILES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".ckpt")  # of weights alone
META = "meta.json"  # of a folder of cached embeddings


def find(path: str, key: str) -> Path:
    """The folder, or the one file of weights, that a configuration names.

    A ``model.safetensors`` beside a config.json stands for their folder.

    Args:
      path: as for :func:`locate`, or a file of one of :data:`FILES`.
      key: configuration key of the path, for errors.

    Raises:
      ConfigError: see :func:`locate`.
    """
    file = Path(os.path.expanduser(path))
    if path.startswith((HUB, PACKAGE, ZOO)) or not path.endswith(FILES) or os.path.isdir(file):
        return locate(path, key)
    if not os.path.isfile(file):
        raise ConfigError(key, path, "no such file")
    beside = file.name == WEIGHTS and (file.parent / "config.json").is_file()
    return (file.parent if beside else file).resolve()


@functools.lru_cache
def locate(path: str, key: str, weights: bool = True) -> Path:
    """The folder that a configuration names.

    Args:
      path: a folder; ``package:NAME`` for the weights that an installed Python package brings
        along; ``hub:OWNER/MODEL`` for a model of the Hugging Face hub, downloaded into its cache;
        ``zoo:NAME`` for one that is shipped.
      key: configuration key of the path, for errors.
      weights: False: config.json is enough, nothing else is downloaded.

    Raises:
      ConfigError: no such folder or package, or the hub cannot be reached.
    """
    if path.startswith(HUB):
        return _from_hub(path, key, weights)
    if path.startswith(PACKAGE):
        return _from_package(path, key)
    if path.startswith(ZOO):
        names = sorted(file.parent.name for file in SHIPPED.glob("*/config.json"))
        one_of(key, path, [f"{ZOO}{name}" for name in names])
        return SHIPPED / path.removeprefix(ZOO)
    folder = Path(os.path.expanduser(path))
    if not os.path.isdir(folder):  # also where the name is longer than any may be
        rule = f"no such folder (a model of the hub is spelled {HUB}OWNER/MODEL)"
        raise ConfigError(key, path, rule)
    return folder.resolve()


def _from_package(path: str, key: str) -> Path:
    """The one folder inside a package that holds a config.json beside weights."""
    try:
        spec = importlib.util.find_spec(path.removeprefix(PACKAGE))
    except (ImportError, ValueError):
        spec = None
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    if not roots:
        raise ConfigError(key, path, "no such Python package is installed")
    found = sorted(
        config.parent
        for root in roots
        for config in root.rglob("config.json")
        if any((config.parent / name).is_file() for name in (WEIGHTS, INDEX))
    )
    if len(found) != 1:
        rule = f"must hold one folder with config.json and {WEIGHTS}, has {len(found)}"
        raise ConfigError(key, path, rule)
    return found[0]


def _from_hub(path: str, key: str, weights: bool) -> Path:
    """Downloads what is needed; what lies in the hub's cache is not asked for again."""
    from transformers.utils.hub import cached_file

    name = path.removeprefix(HUB)

    def ask(file: str, needed: bool) -> str | None:
        return cached_file(name, file, _raise_exceptions_for_missing_entries=needed)

    try:
        config = ask("config.json", True)
        if config is None:  # that file alone raises no error when it is absent
            raise OSError("no config.json")
        if not weights:
            return Path(config).parent
        index = None if ask(WEIGHTS, False) else ask(INDEX, True)
        shards = json.loads(Path(index).read_text())["weight_map"].values() if index else ()
        for shard in sorted(set(shards)):
            ask(shard, True)
        for extra in EXTRAS:
            ask(extra, False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        rule = f"cannot be had from the hub ({reason}); offline, give a folder"
        raise ConfigError(key, path, rule) from error
    return Path(config).parent


def read_json(folder: Path, name: str, key: str) -> dict[str, Any]:
    """A JSON file of a pretrained folder.

    Raises:
      ConfigError: it is absent or broken.
    """
    try:
        return json.loads((folder / name).read_text())
    except FileNotFoundError:
        raise ConfigError(key, str(folder), f"holds no {name}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(key, str(folder / name), f"cannot be read: {error}") from error


def is_run(folder: Path) -> bool:
    """Is the folder the workdir of a run of ours?"""
    return (folder / CHECKPOINTS).is_dir()


def newest_checkpoint(workdir: Path, where: tuple[str, str]) -> Path:
    """Folder of the newest finished checkpoint of a run of ours.

    Args:
      workdir: of the run.
      where: configuration key and path, for errors.

    Raises:
      ConfigError: there is none.
    """
    steps = [p for p in (workdir / CHECKPOINTS).glob("*") if p.name.isdigit()]
    if not steps:
        raise ConfigError(*where, "holds no finished checkpoint; train first")
    return max(steps, key=lambda p: int(p.name))


@functools.lru_cache
def fingerprint(path: str, key: str) -> str:
    """16 hex digits of the bytes of weights, configuration and tokenizer, wherever they lie.

    Of a run of ours: of what tells its newest checkpoint from any other.

    Raises:
      ConfigError: see :func:`find`.
    """
    folder = find(path, key)
    if folder.is_file():
        return _digest(folder)[:16]
    run = is_run(folder)
    folder = newest_checkpoint(folder, (key, path)) if run else folder
    digest = hashlib.sha256()
    for file in sorted({f for p in (RUN_CONTENT if run else CONTENT) for f in folder.glob(p)}):
        digest.update(f"{file.name}/{_digest(file)}\n".encode())
    return digest.hexdigest()[:16]


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
