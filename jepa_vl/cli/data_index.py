"""``jepa-vl data index``: the index of tar shards, made ahead of a run."""

import argparse
import time
from collections.abc import Sequence

from jepa_vl.cli import configs
from jepa_vl.config import ConfigError
from jepa_vl.data import sources, storage, tar_index

SHOWN = 20  # faults of an index


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Makes the index of the training part and of a held-out one that is given, and prints them.

    Raises:
      ConfigError: a bad configuration, or data of another kind or that cannot be read.
    """
    config = configs.load(args.config, overrides)
    if config.data.kind != "tar":
        raise ConfigError("data.kind", config.data.kind, "tar; others need no index")
    for place in sources.places(config):
        began = time.monotonic()
        root, names = storage.expand(place.path), (config.data.caption_keys, config.data.label_key)
        _tell(tar_index.open_index(root, *names, place.key), time.monotonic() - began)
    return 0


def _tell(index: tar_index.TarIndex, seconds: float) -> None:
    stored = index.folder or "nowhere: the cache folder cannot be written"
    print(
        f"{index.root}: {len(index.shards)} shards, {len(index.keys)} images, "
        f"{index.captioned} with captions, {len(index.classes)} classes, {seconds:.1f} s, {stored}"
    )
    for fault in index.faults[:SHOWN]:
        print(f"  {fault.cause}: {fault.message}")
    if len(index.faults) > SHOWN:
        print(f"  and {len(index.faults) - SHOWN} more")
