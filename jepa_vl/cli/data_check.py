"""``jepa-vl data check``: what a data set holds, and whether it can feed a run."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jepa_vl.cli import configs, outputs, shares
from jepa_vl.cli.columns import columns
from jepa_vl.cli.numbers import positive, whole
from jepa_vl.config import Config, ConfigError

TELL_EVERY = 10_000  # images
OFTEN_CUT = 0.1  # share of captions
WANTING = 1
BAR = 40  # characters


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Prints tables and warnings, and writes the same as JSON.

    Returns:
      0; 1: some images cannot be read, or were left out of the index.

    Raises:
      ConfigError: a bad configuration or option, or data that cannot be opened.
    """
    config = configs.load(args.config, overrides)
    limit = None if args.limit is None else whole("--limit", args.limit, 1)
    hosts = 1 if args.hosts is None else whole("--hosts", args.hosts, 1)
    if config.train.batch_size % hosts:
        rule = f"a divisor of train.batch_size = {config.train.batch_size}"
        raise ConfigError("--hosts", args.hosts, rule)
    step = None if args.step_seconds is None else positive("--step-seconds", args.step_seconds)
    out = outputs.json_file(args)
    from jepa_vl.data import faults, sources, survey

    train, held_out = sources.open_sources(config)
    surveys = {
        name: survey.Survey(config, group)
        for name, group in survey.groups(train, held_out, limit).items()
    }
    for name, found in surveys.items():
        found.run(_teller(name, len(found.group.indices)))
    page = {
        "data": train.name,
        "fingerprint": train.fingerprint,
        "mixture": shares.measures(config, train),
        "groups": {name: found.summary() for name, found in surveys.items()},
        "left_out": [fault.message for fault in faults.left_out(train)],
        "in_common": survey.overlaps(surveys),
        "shards": survey.shards(train),
        "hosts": hosts,
        "speed": {
            "image_size": config.encoder.image_size, **survey.speed([*surveys.values()]),
        },
        "need": {},
    }  # fmt: skip
    if step is not None and len(page["speed"]) > 1:
        page["need"] = _need(config, hosts, step, page["speed"]["worker_images_per_second"])
    page["warnings"] = _warnings(config, page)
    print("\n".join(_text(config, train, page)))
    outputs.write(out, page)
    unreadable = any(group["unreadable"] for group in page["groups"].values())
    return WANTING if unreadable or page["left_out"] else 0


def _teller(name: str, total: int) -> Callable[[int], object]:
    def tell(done: int) -> None:
        if done % TELL_EVERY == 0:
            print(f"{name}: {done:,} of {total:,}", file=sys.stderr)

    return tell


def _need(config: Config, hosts: int, step: float, rate: float) -> dict[str, Any]:
    """What a host must prepare a second, and how many workers of the measured speed that takes."""
    wanted = config.train.batch_size / hosts / step
    return {
        "step_seconds": step,
        "images_per_second_a_host": wanted,
        "workers": math.ceil(wanted / rate),
        "configured_workers": config.data.workers,
        "input_bound_by": wanted / rate / max(config.data.workers, 1),
    }


def _warnings(config: Config, page: dict[str, Any]) -> list[str]:
    found = []
    for name, group in page["groups"].items():
        for cause, seen in group["unreadable"].items():
            keys = ", ".join(seen["examples"])
            found.append(f"{name}: {seen['count']:,} unreadable, {cause}: {keys}")
        tokens = group.get("tokens", {})
        if tokens.get("cut", 0) > OFTEN_CUT * group["captions"]:
            share = tokens["cut"] / group["captions"]
            found.append(f"{name}: {share:.1%} of the captions are cut at text.words = "
                         f"{config.text.words}")  # fmt: skip
    if page["left_out"]:
        count, first = len(page["left_out"]), page["left_out"][0]
        found.append(f"{count:,} damaged samples are left out of the index, first: {first}")
    for pair in page["in_common"]:
        both, keys = " and ".join(pair["groups"]), " = ".join(pair["example"])
        found.append(f"{both} have {pair['images']:,} images in common ({keys})")
    if page["shards"] is not None and page["shards"] < page["hosts"]:
        found.append(
            f"{page['shards']} shards for {page['hosts']} hosts: any host reads any record, but "
            "several read each file at once; write more shards if the storage is slow at that"
        )
    need = page["need"]
    if need and need["input_bound_by"] > 1:
        found.append(
            f"input-bound by {need['input_bound_by']:.1f}x: set data.workers={need['workers']}"
        )
    return found


def _text(config: Config, train: Any, page: dict[str, Any]) -> list[str]:
    groups, lines = page["groups"], [f"{train.name}", ""]
    lines += [*mixed, ""] if (mixed := shares.table(config, train)) else []
    rows = [("", *groups), *_rows(list(groups.values()))]
    lines += columns(rows, right=range(1, len(groups) + 1))
    for name, group in groups.items():
        if "tokens" in group and group["captions"]:
            lines += ["", f"tokens a caption, {name}", *_bars(group["tokens"])]
    speed, need = page["speed"], page["need"]
    lines += ["", "shards: " + ("no" if page["shards"] is None else f"{page['shards']:,}")]
    lines[-1] += f"; hosts: {page['hosts']}"
    if len(speed) > 1:
        lines += [
            f"decoding and cropping to {speed['image_size']} px: "
            f"{speed['decode_images_per_second']:,.0f} images a second and core",
            f"a worker (reading, masks and tokens too): {speed['worker_images_per_second']:,.0f} "
            f"images a second, {speed['read_share']:.0%} of its time for reading",
        ]
    if need:
        lines.append(
            f"steps of {need['step_seconds']:g} s take {need['images_per_second_a_host']:,.0f} "
            f"images a second and host: {need['workers']} workers of this speed "
            f"(data.workers = {need['configured_workers']})"
        )
    lines += [""] * bool(page["warnings"]) + [f"warning: {text}" for text in page["warnings"]]
    return lines


def _rows(groups: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    def row(title: str, cell: Callable[[dict[str, Any]], str]) -> tuple[str, ...]:
        return (title, *map(cell, groups))

    def of_captions(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda group: _share(group[name], group["captions"])

    rows = [
        row("images", lambda g: f"{g['images']:,}"),
        row("looked at", lambda g: _share(g["checked"], g["images"])),
        row("unreadable", lambda g: f"{sum(x['count'] for x in g['unreadable'].values()):,}"),
        row("duplicates, byte for byte", lambda g: f"{g['duplicate_images']['count']:,}"),
        row("width, pixels (min median max)", lambda g: _middle(g["width"])),
        row("height", lambda g: _middle(g["height"])),
        row("smaller than image_size", lambda g: f"{g['smaller_than_image_size']:,}"),
        row("formats", lambda g: ", ".join(f"{n:,} {kind}" for kind, n in g["formats"].items())),
        row("labelled (classes)", lambda g: f"{g['labelled']:,} ({g['classes']})"),
        row("captions", lambda g: f"{g['captions']:,}"),
        row("captions an image (min median max)", lambda g: _middle(g["captions_an_image"])),
        row("images without a caption", lambda g: f"{g['images_without_caption']:,}"),
        row("captions of fewer than 2 words", of_captions("near_empty_captions")),
        row("captions said before", of_captions("repeated_captions")),
    ]
    if all("tokens" in group for group in groups):
        limit = groups[0]["tokens"]["words"]
        rows.append(row("tokens a caption (min median max)", lambda g: _middle(g["tokens"])))
        rows.append(
            row(f"cut at {limit} tokens", lambda g: _share(g["tokens"]["cut"], g["captions"]))
        )
    return rows


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else f"{part:,}"


def _middle(found: dict[str, Any]) -> str:
    return " ".join(f"{found[key]:g}" for key in ("min", "median", "max")) if "min" in found else ""


def _bars(tokens: dict[str, Any]) -> list[str]:
    """The histogram; a line marks where captions are cut."""
    most, limit = max(count for *_, count in tokens["histogram"]), tokens["words"]
    rows = []
    for first, last, count in tokens["histogram"]:
        span = str(first) if first == last else f"{first}-{last}"
        beyond = "cut" if first > limit else "cut in part" if last > limit else ""
        rows.append((span, f"{count:,}", "#" * math.ceil(BAR * count / most), beyond))
    return columns(rows, right=(0, 1))
