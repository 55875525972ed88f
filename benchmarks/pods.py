"""Do the published sizes of TC-JEPA fit on pods, and how fast could they be? Compiled, never run.

    python benchmarks/pods.py --out benchmarks/pods.json

Goes on where it stopped; a case is one run of ``jepa-vl compile``. Needs the [tpu] extra, and some
minutes of CPU a case. ``--search`` has ``jepa-vl compile --search`` look for the best settings of
three sizes instead, ``--settings`` compiles one step with others. ``--report launch/pods.md``
writes the tables.
"""

import argparse
import functools
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl.cli import configs
from jepa_vl.cli.compile import DOES_NOT_FIT
from jepa_vl.data import embeddings
from jepa_vl.schema import TextConfig
from jepa_vl.training import flops

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "tcjepa_in1k.py"
SEARCHED, ON_SEARCHED = ("L/16", "H/14", "g/16"), ("v5e-64", "v6e-64")
SEARCH = ROOT / "benchmarks" / "results" / "pod_search.json"
SETTINGS = ROOT / "benchmarks" / "results" / "pod_settings.json"
LEVERS = ROOT / "benchmarks" / "results" / "pod_levers.json"
GIB = 2**30
ROOM = 0.15  # of a device's memory that a case is to leave
AGREES = 0.05  # share of the model's FLOPs by which the compiled step may differ
# Name -> argument of the recipe, overrides. The paper trains B, L and H; g is I-JEPA's.
SIZES = {
    "B/16": ("size=B", {}),
    "L/16": ("size=L", {}),
    "H/14": ("size=H14", {}),
    "g/16": ("size=L", {"encoder.variant": "g", "predictor.depth": "16"}),
}
TOPOLOGIES = ("v5e-64", "v5e-256", "v5p-128", "v6e-64")
OF_STEPS = ("network ms", "estimate: images/s", "MFU", "of cycles alone")
KINDS = ("all-gather", "reduce-scatter", "all-reduce")
# What is changed on v5e-64 with the best that the search found.
BEST = ("train.remat", "full")
OTHERS = (
    ("L/16", "train.gather=step"),
    ("L/16", "train.micro_batches=2"),
    ("L/16", "predictor.heads=6"),
    ("H/14", "predictor.heads=6"),
)
# T5-base, as its config.json describes it: shapes are all that is needed here.
T5_BASE = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072,
    "num_layers": 12, "num_heads": 12, "relative_attention_num_buckets": 32,
}  # fmt: skip


INTRO = """\
# TC-JEPA on pods, compiled ahead of time

What the compiler says of the training step of `configs/tcjepa_in1k.py` (8 captions of 64 tokens
an image, cached embeddings of T5-base) at a global batch of 2048, and the bounds by peaks.
**Nothing of it ran on a TPU.** jax {jax}, libtpu {libtpu}, `train.scan_layers=true`; a bound is the
largest of the three times at peak, as if all overlapped and nothing waited for data: no run reaches
it. Sizes B, L and H are the paper's; g/16 is I-JEPA's largest, with 16 layers of predictor and L's
length of training. Hours are of 600 epochs of ImageNet-1k, of H/14 300. Compiled FLOPs hold what is
computed again. Of collectives the bytes of results on each device are counted. Bold is what breaks
a rule: 15 % of a device's memory are left, compiled and model FLOPs differ by 5 % at most. The
estimate is the compiler's static count of cycles and after them the network at its peak, nothing
overlapping; "of cycles alone" is its MFU if communication cost nothing. A dash stands for what is
not known of a step that does not fit.

    python benchmarks/pods.py --out benchmarks/pods.json
    python benchmarks/pods.py --out benchmarks/pods.json --report launch/pods.md
"""
CAPTIONS = """\
What captions cost: model FLOPs of a step over those of I-JEPA with the same sizes. Packed: all of
an image's in 192 words (`text.packed`).
"""


FOUND = """
## What a search finds

`jepa-vl compile --search` from the same settings: what the backward pass keeps, then how many
devices share parameters (of data x fsdp), then twice the batch, each from the best so far by the
estimate. In bold the best at a global batch of 2048.

    python benchmarks/pods.py --search --out benchmarks/results/pod_search.json
"""


OF_A_STEP = """
## Other settings of a whole step

On v5e-64 with `train.remat=full`, the best of the search, and one more.

    python benchmarks/pods.py --settings --out benchmarks/results/pod_settings.json
"""


def text_folders(folder: Path) -> dict[str, dict[str, str]]:
    """Overrides for captions embedded ahead, and by T5 in each step."""
    tower, cache = folder / "t5", folder / "cache"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps(T5_BASE))
    config = TextConfig(kind="t5", path=str(tower), words=64)
    states = np.zeros((config.words, T5_BASE["d_model"]), np.float32)
    embeddings.write(cache, config, "{}", [("a caption", states)])
    return {
        "cached": {"text.kind": "cached", "text.path": str(cache)},
        "t5": {"text.kind": "t5", "text.path": str(tower)},
        "packed": {"text.kind": "t5", "text.path": str(tower), "text.packed": "192"},
    }


def ask(argument: str, overrides: dict[str, str], topology: str, *words: str) -> Any:
    """What ``jepa-vl compile`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [
            sys.executable, "-m", "jepa_vl", "compile", "--config", f"{RECIPE}:{argument}",
            "--topology", topology, "--json", str(out), "--config.data.path=unread",
            *(f"--config.{key}={value}" for key, value in overrides.items()), *words,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode not in (0, DOES_NOT_FIT):
            raise RuntimeError(done.stderr)
        return json.loads(out.read_text())


def compiled(argument: str, overrides: dict[str, str], topology: str) -> dict[str, Any]:
    """A step; with the next policy of recomputation where it does not fit."""
    for remat in ("dots", "full"):
        found = ask(argument, overrides | {"train.remat": remat}, topology) | {"remat": remat}
        if found["fits"]:
            break
    return found


def model_flops(argument: str, overrides: dict[str, str]) -> dict[str, int]:
    """Model FLOPs of a step by component and direction."""
    values = {"data.path": "unread", **overrides}
    pairs = [configs.Override(key, value) for key, value in values.items()]
    return flops.count(configs.load(f"{RECIPE}:{argument}", pairs)).by_component()


def extra(argument: str, overrides: dict[str, str], texts: dict[str, dict]) -> dict[str, float]:
    """What captions cost: FLOPs over those of I-JEPA, whose last predictor layer does less."""
    plain = {**overrides, "objective": "ijepa", "loss.regulariser": "off"}
    base = sum(model_flops(argument, plain).values())
    return {
        name: sum(model_flops(argument, overrides | text).values()) / base - 1
        for name, text in texts.items()
    }


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    head = (
        "size", "on", "remat", "fits", "GiB a device", "memory left", "state", "temporaries",
        "FLOPs, compiled / model", "all-gather, reduce-scatter, all-reduce GB",
        "compute, memory, network ms", "bound: images/s", "MFU", "chip-hours",
        *OF_STEPS[1:],
    )  # fmt: skip
    rows = [
        (*case.split(" on "), one["remat"], *_cells(one)) for case, one in found["cases"].items()
    ]
    captions = ("size", "cached embeddings", "T5-base in each step", "its captions packed")
    shares = [
        (size, *(f"+{share[name]:.1%}" for name in ("cached", "t5", "packed")))
        for size, share in found["extra_flops"].items()
    ]
    intro = INTRO.format(**found["versions"])
    return "\n".join([intro, *markdown(head, rows), "", CAPTIONS, *markdown(captions, shares), ""])


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def search_section(found: dict[str, Any]) -> str:
    """Of the report: all that searches tried, and the best of each."""
    head = ("size", "on", "batch", "remat", "data x fsdp", "fits", "GiB a device", *OF_STEPS)
    rows = []
    for case, tried in found["cases"].items():
        fitting = [t for t in tried if t.get("fits") and t["batch_size"] == tried[0]["batch_size"]]
        best = max(fitting, key=lambda t: t["estimate"]["mfu"], default=None)
        for one in tried:
            way = (*case.split(" on "), str(one["batch_size"]), one["remat"])
            if "refused" in one:
                rows.append((*way, str(one["fsdp"]), "refused", *("-",) * 5))
                continue
            network, images, mfu, alone = _step(one)
            rows.append((
                *way, f"{one['mesh']['data']} x {one['mesh']['fsdp']}", _fits(one), _total(one),
                network, images, _ruled(mfu, one is not best), alone,
            ))  # fmt: skip
    names = (f"{size} on {topology}" for topology in ON_SEARCHED for size in SEARCHED)
    missing = ", ".join(name for name in names if name not in found["cases"])
    lines = [
        FOUND,
        *markdown(head, rows),
        *(["", f"Not searched yet: {missing}."] if missing else []),
    ]
    return "\n".join([*lines, ""])


def settings_section(found: dict[str, Any]) -> str:
    """Of the report: one step with other settings."""
    rows = []
    for name, one in found["cases"].items():
        size, setting = name.split(", ")
        rows.append((size, f"`{setting}`", _total(one), *_step(one)))
    head = ("size", "setting", "GiB a device", *OF_STEPS)
    return "\n".join([OF_A_STEP, *markdown(head, rows), ""])


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    memory, bound = one["bytes_per_device"], one["bound"]
    state = sum(memory[name] for name in ("params", "target", "optimizer"))
    left = 1 - memory["total"] / one["hbm_per_device"]
    kept, temporaries = (f"{size / GIB:.2f}" for size in (state, memory["temporaries"]))
    room = _ruled(f"{left:.0%}", left >= ROOM)
    cells = (_fits(one), _total(one), room, kept, temporaries)
    if bound is None:
        return (*cells, *("-",) * 9)
    ratio = one["flops"]["compiler"] / one["flops"]["analytic"]
    kinds = (one["collectives"].get(kind, {"bytes": 0}) for kind in KINDS)
    gathered = ", ".join(f"{kind['bytes'] / 1e9:.2f}" for kind in kinds)
    peaks = ", ".join(f"{1e3 * value:.1f}" for value in one["seconds_at_peak"].values())
    hours = f"{bound['chip_hours']:,.0f}"
    agrees = _ruled(f"{ratio:.3f}", abs(ratio - 1) <= AGREES)
    return (*cells, agrees, gathered, peaks, *_speed(bound), hours, *_told(one["estimate"]))


def _fits(one: dict[str, Any]) -> str:
    return _ruled("yes" if one["fits"] else "no", one["fits"])


def _total(one: dict[str, Any]) -> str:
    return f"{one['bytes_per_device']['total'] / GIB:.2f}"


def _step(one: dict[str, Any]) -> tuple[str, str, str, str]:
    """What :data:`OF_STEPS` names; of what does not fit nothing is known."""
    peak = one["seconds_at_peak"]
    return (f"{1e3 * peak['network']:.1f}" if peak else "-", *_told(one["estimate"]))


def _ruled(cell: str, holds: bool) -> str:
    """Bold where a rule is broken, or what is to be seen."""
    return cell if holds else f"**{cell}**"


def _told(estimate: dict[str, float] | None) -> tuple[str, str, str]:
    """Of what does not fit, and of chips without a clock: nothing."""
    if estimate is None:
        return "-", "-", "-"
    return (*_speed(estimate), f"{estimate['mfu_of_cycles']:.2f}")


def _speed(told: dict[str, float]) -> tuple[str, str]:
    return f"{told['images_per_second']:,.0f}", f"{told['mfu']:.2f}"


def cases(args: argparse.Namespace, text: dict[str, str]) -> Iterator[tuple[str, Callable]]:
    """The name of each case that is asked for, and what compiles it."""
    if args.settings:
        for size, setting in OTHERS:
            argument, overrides = SIZES[size]
            name, _, value = setting.partition("=")
            values = overrides | text | dict([BEST, (name, value)])
            yield f"{size}, {setting}", functools.partial(ask, argument, values, "v5e-64")
        return
    sizes, on = (SEARCHED, ON_SEARCHED) if args.search else (tuple(SIZES), TOPOLOGIES)
    way, words = (ask, ["--search"]) if args.search else (compiled, [])
    for topology, size in itertools.product(args.on or on, sizes):
        argument, overrides = SIZES[size]
        compile_it = functools.partial(way, argument, overrides | text, topology, *words)
        yield f"{size} on {topology}", compile_it


def main() -> None:
    """Compiles what is not in the file yet."""
    parser = argparse.ArgumentParser(description="pods on paper")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, read and written")
    parser.add_argument("--search", action="store_true", help="look for the best settings")
    parser.add_argument("--settings", action="store_true", help="one step with others")
    parser.add_argument("--on", action="append", choices=TOPOLOGIES, help="these alone")
    parser.add_argument("--report", type=Path, help="Markdown file; nothing is compiled")
    args = parser.parse_args()
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    versions = {name: metadata.version(name) for name in ("jax", "libtpu")}
    found = {"versions": versions, "cases": {}, "extra_flops": {}, **found}
    if args.report:
        import levers  # which imports this

        text = table(found)
        sections = {SEARCH: search_section, SETTINGS: settings_section, LEVERS: levers.section}
        for path, section in sections.items():
            text += section(json.loads(path.read_text())) if path.exists() else ""
        args.report.write_text(text)
        return
    with tempfile.TemporaryDirectory() as folder:
        texts = text_folders(Path(folder))
        if args.search or args.settings:
            found.pop("extra_flops")
        for size, (argument, overrides) in SIZES.items():
            if "extra_flops" in found and found["extra_flops"].get(size, {}).keys() != texts.keys():
                found["extra_flops"][size] = extra(argument, overrides, texts)
                args.out.write_text(json.dumps(found, indent=1) + "\n")
        for case, compile_it in cases(args, texts["cached"]):
            if case in found["cases"]:
                continue
            found["cases"][case] = compile_it()
            args.out.write_text(json.dumps(found, indent=1) + "\n")
            print(case, "done", flush=True)


if __name__ == "__main__":
    main()
