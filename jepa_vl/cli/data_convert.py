"""``jepa-vl data convert``: any source as ArrayRecord shards."""

import argparse
import dataclasses
from collections.abc import Sequence

from jepa_vl.cli import configs
from jepa_vl.cli.train import writable
from jepa_vl.config import Config, ConfigError


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Writes the shards and prints how training reads them.

    Raises:
      ConfigError: a bad configuration or data, or ``--out`` holds something else.
    """
    config = configs.load(args.config, overrides)
    if not args.out:
        raise ConfigError("--out", "", "give DIR: folder of the shards")
    out = writable("--out", args.out)
    from jepa_vl.data import convert, sources

    train, held_out = sources.open_sources(_as_they_are(config))
    parts = {"train": train, "val": held_out}
    convert.convert(parts, out, config.data.caption_keys, config.data.label_key)
    print(f"--config.data.kind=array_record --config.data.path={out / 'train'}", *_resets(config))
    return 0


def _as_they_are(config: Config) -> Config:
    """For opening the images with their own captions; there need not be any."""
    conditioner = dataclasses.replace(config.conditioner, kind="none")
    return dataclasses.replace(config, objective="ijepa", conditioner=conditioner)


def _resets(config: Config) -> list[str]:
    """Flags that take back what the configuration says of the source that was converted."""
    said = {
        "data.mixture": config.data.mixture,
        "data.name": config.data.name,
        "data.split": config.data.split,
        "eval.path": config.eval.path,
        "eval.split": config.eval.split,
    }
    return [f"--config.{key}=" for key, value in said.items() if value]
