"""How many images a second does each evaluator take, and what does it cost beside the features?

Command:    python benchmarks/evaluators.py --out RESULT.json
Needs:      nothing beyond the package; a CPU will do.

An untrained encoder and drawn scenes, or the data of ``--config`` as it is. Arms, which take turns:
"forward", the encoder on images in memory; "features", the same with images read, decoded and
cropped, as evaluators do; then each task of --tasks. A task of pooled features ("labelled" in
`jepa-vl eval`) finds them in memory, so that its time is its own; the others read images
themselves. "s": seconds of all images of both parts; "of_features": over one pass of "features".
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import measure
import numpy as np

from jepa_vl import objectives, sharding
from jepa_vl.cli import configs
from jepa_vl.config import Config
from jepa_vl.evaluators import subject
from jepa_vl.evaluators.base import LABELLED, read_by
from jepa_vl.training import state as train_state

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.py"


def timed(work: Callable[[], Any]) -> measure.Sample:
    """What one call takes."""
    return dict(zip(("s", "cpu_s"), measure.timed(work), strict=True))


class Bench:
    """An untrained encoder, and the labelled images of a configuration."""

    def __init__(self, config: Config):
        """Reads which images there are."""
        mesh = subject.local_mesh()
        self.config = subject.for_devices(config, mesh)
        objective = objectives.build(self.config)
        state = train_state.untrained(self.config, objective)
        frozen = objective.load_frozen()
        model = subject.Model(objective.encoder, frozen, objective)
        self.images = subject.Images(self.config)
        self.bench = subject.Bench(self.config, model, self.images, mesh)
        encoder = sharding.place(objective.encoder_params(state.target, frozen), mesh)
        whole = sharding.place((state.params, state.target), mesh)
        self.weights = subject.Weights(encoder, whole, "untrained")
        self.known = self.subject()

    def subject(self) -> Any:
        """The encoder, none of its features computed yet."""
        return self.bench.subject("untrained", self.weights)

    def counts(self) -> list[int]:
        """Labelled images of both parts."""
        return [len(indices) for indices in self.images.reader.indices]

    def forward(self) -> None:
        """The encoder alone, as many images as both parts have."""
        size, side = self.config.eval.batch_size, self.config.encoder.image_size
        images = np.zeros((size, side, side, 3), np.uint8)
        for _ in range(-(-sum(self.counts()) // size)):
            found = self.bench.encode(self.weights.encoder, images)
        jax.block_until_ready(found)

    def features(self) -> None:
        """Features of all images."""
        self.images.reader.read(lambda x: self.bench.encode(self.weights.encoder, x))

    def task(self, name: str) -> None:
        """One evaluator; pooled features are in memory, all else is read anew."""
        of = self.known if read_by(name) == LABELLED else self.subject()
        of.measure(name)


def make_config(args: argparse.Namespace) -> Config:
    """The configuration whose data are read."""
    config = configs.load(args.config, [configs.Override(*word) for word in args.set])
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, tasks=()))


def pair(text: str) -> tuple[str, str]:
    """KEY=VALUE.

    Raises:
      argparse.ArgumentTypeError: there is no "=".
    """
    key, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: KEY=VALUE")
    return key, value


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--config", default=str(CONFIG), help="default: the quickstart")
    parser.add_argument("--set", type=pair, action="append", default=[], help="KEY=VALUE of it")
    parser.add_argument("--tasks", default="knn,fewshot,fast,mae_lars,lidar")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="", help="JSON file; empty: printed")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Measures and writes JSON."""
    args = parse(argv)
    tasks = subject.tasks_of(args.tasks.split(","), "--tasks")
    bench = Bench(make_config(args))
    arms: dict[str, Callable[[], Any]] = {"forward": bench.forward, "features": bench.features}
    arms |= {name: lambda name=name: bench.task(name) for name in tasks}
    for work in arms.values():  # compiles
        work()
    sampled = {name: (lambda work=work: timed(work)) for name, work in arms.items()}
    found = measure.interleave(sampled, args.repeats)
    train, held_out = bench.counts()
    told = measure.summaries(found)
    for row in told.values():
        row["of_features"] = measure.ratio(row["s"], told["features"]["s"])
        row["images_per_second"] = (train + held_out) / row["s"]["median"]
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "machine": measure.machine("jax", "jaxlib", "grain"),
        "settings": {"config": Path(args.config).name, "set": dict(args.set)},
        "images": {"train": train, "held_out": held_out},
        "arms": told,
    }
    measure.write(result, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
