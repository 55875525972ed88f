"""Does the best learning rate of a narrow model hold for a wide one? muP beside the standard.

Command:    python studies/lr_transfer.py --out docs/studies/mup
Hardware:   one CPU core, 2 GB of memory; docs/studies/mup.md says for how long.

TC-JEPAs of several widths predict the features of one teacher that never moves, the model that the
package ships. That is a fixed task, whose loss may be compared between widths and learning rates; a
JEPA's loss against its own EMA target may not. Each image is seen once, so the loss is of unseen
images. Where OUT holds what was measured with the same options, it is not measured again.
"""

import argparse
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jepa_vl import objectives, report, sharding
from jepa_vl.cli import outputs
from jepa_vl.config import Config, defaults, resolve
from jepa_vl.data import pipeline, sources
from jepa_vl.methods import METHODS, Method
from jepa_vl.models import intake
from jepa_vl.objectives.base import Batch, as_targets, pick_blocks, register
from jepa_vl.objectives.tcjepa import TCJepa
from jepa_vl.report.figures import to_png
from jepa_vl.schema import MeshConfig
from jepa_vl.shapes import Array, PyTree
from jepa_vl.training import coords, mup
from jepa_vl.training import state as train_state
from jepa_vl.training.health import to_device
from jepa_vl.training.step import make_step

TEACHER, STUDENT = "zoo:tcjepa-shapes", "taught"
KINDS = ("standard", "muP")
LAST = 20  # steps whose mean loss counts


class Taught(TCJepa):
    """TC-JEPA whose targets are those of a frozen teacher, of the teacher's width."""

    def __init__(self, config: Config):
        """The predictor gives features of the teacher's width."""
        super().__init__(config)
        self.predictor = self.predictor.clone(out_width=teacher().width)

    def targets(self, target: PyTree, frozen: PyTree, batch: Batch) -> Array:
        """See :class:`TCJepa`; the EMA of the student's encoder is not asked."""
        del target, frozen
        return pick_blocks(batch["taught"], batch["tgt_idx"])


def enter() -> None:
    """Makes the students known to the house; they are no method of its own."""
    METHODS[STUDENT] = Method(distance="l2", conditioned=True, reads_text=True, text_frozen="no")
    register(STUDENT)(Taught)


class Teacher(NamedTuple):
    """``look(images, uint8 [B, H, W, 3])`` gives features to predict, float32 [B, T, width]."""

    width: int
    look: Callable[[Array], Array]


@functools.cache
def teacher() -> Teacher:
    """The model of :data:`TEACHER`."""
    source = intake.open_source(TEACHER, "TEACHER", "target")
    module = intake.build(source)
    params = intake.load(source, module)
    look = jax.jit(lambda images: as_targets(module.apply({"params": params}, images)))
    return Teacher(source.shape.width, look)


def narrow(width: int, steps: int) -> Config:
    """The model that the others are wider than."""
    c = defaults()
    c.objective, c.train.init = STUDENT, "fan_in"
    c.encoder.update(image_size=64, patch_size=8, width=width, depth=3, heads=width // 16)
    c.predictor.update(width=width // 2, depth=2, heads=width // 16)
    c.conditioner.update(scale_logits=True, mlp_ratio=2.0)
    c.loss.regulariser = "off"
    c.masks.context_tokens = 24
    c.text.update(width=32, captions=1, words=16, depth=0, heads=2, vocabulary=512)
    c.train.update(steps=steps, batch_size=16)
    # The rate of the schedule is 1: it is an argument of the step instead.
    c.optim.update(lr=1.0, start_lr=0.01, final_lr=0.01, warmup_steps=steps // 10)
    c.optim.update(b2=0.95, weight_decay=0.0, final_weight_decay=0.0)
    c.data.update(workers=0, train_size=steps * 16 * 2)
    return resolve(c)


def feed(config: Config, mesh: Any, seed: int) -> list[Batch]:
    """All batches of a run."""
    config = dataclasses.replace(config, seed=seed)
    with pipeline.make_batches(config, sources.open_sources(config)[0], 0) as stream:
        batches = [to_device(next(stream), mesh) for _ in range(config.train.steps)]
    # Every run sees the same: the teacher looks at them once.
    return [batch | {"taught": teacher().look(batch["image"])} for batch in batches]


class Model:
    """One width of one kind; its step is compiled once for all seeds and learning rates."""

    def __init__(self, config: Config, mesh: Any):
        """Draws the state that all runs begin with, but for their parameters."""
        self.config, self.mesh, self.objective = config, mesh, objectives.build(config)
        spec = train_state.batch_spec(config)
        self.like = train_state.abstract(config, self.objective, spec, mesh)
        self.first = train_state.create(config, self.objective, spec, mesh)
        self._start, self._step = jax.jit(self._drawn), jax.jit(self._stepped)

    def _drawn(self, rng: Array, batch: Batch) -> PyTree:
        return mup.start(self.config, self.objective.init(rng, batch), batch)

    def _stepped(self, state: Any, batch: Batch, rate: Array) -> Any:
        step = make_step(self.config, self.objective, self.mesh, self.like, rate)
        return step(state, {}, batch)

    def loss(self, rate: float, seed: int, batches: list[Batch]) -> float | None:
        """Mean of the last steps at a peak learning rate; None where a step was not finite."""
        params, last = self._start(jax.random.key(seed), batches[0]), []
        state = dataclasses.replace(self.first, params=params)
        for batch in batches:
            state, metrics = self._step(state, batch, rate)
            last = [*last, metrics["loss"]][-LAST:]
        mean = float(np.mean([float(loss) for loss in last]))
        return mean if int(state.bad_steps) == 0 and np.isfinite(mean) else None


def run(page: dict[str, Any], file: Path) -> None:
    """Fills ``loss`` [kind][width][rate], a number a seed, and writes it after each rate."""
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    widths, steps = page["widths"], page["steps"]
    base = narrow(widths[0], steps)
    with jax.set_mesh(mesh):
        batches = [feed(base, mesh, seed) for seed in range(page["seeds"])]
        for width, kind in itertools.product(widths, KINDS):
            rows = page["loss"].setdefault(kind, {}).setdefault(str(width), {})
            if width == widths[0] and kind == "muP":  # nothing is wider yet
                rows |= page["loss"]["standard"][str(width)]
            wide = coords.at_width(base, width)
            config = coords.with_mup(wide, base) if kind == "muP" else coords.standard(wide)
            left = [rate for rate in page["rates"] if str(rate) not in rows]
            if not left:
                continue
            model = Model(config, mesh)
            for rate in left:
                rows[str(rate)] = [model.loss(rate, i, x) for i, x in enumerate(batches)]
                print(width, kind, rate, *rows[str(rate)], flush=True)
                file.write_text(json.dumps(page, indent=1) + "\n")


def best(page: dict[str, Any], kind: str, width: int) -> float:
    """The learning rate of least mean loss, by a parabola through its neighbours, in logarithms."""
    x = np.log(page["rates"])
    y = means(page, kind, width)
    i = int(np.argmin(y))
    if not 0 < i < len(x) - 1 or not np.isfinite(y[i - 1 : i + 2]).all():
        return float(np.exp(x[i]))
    a, b, _ = np.polyfit(x[i - 1 : i + 2], y[i - 1 : i + 2], 2)
    return float(np.exp(-b / (2 * a)))


def losses(page: dict[str, Any], kind: str, width: int) -> Array:
    """Loss, float64 [rates, seeds]; inf where a step was not finite."""
    rows = page["loss"][kind][str(width)]
    found = np.array([rows[str(rate)] for rate in page["rates"]], np.float64)
    return np.where(np.isnan(found), np.inf, found)


def means(page: dict[str, Any], kind: str, width: int) -> Array:
    """Mean loss over seeds, float64 [rates]."""
    return losses(page, kind, width).mean(axis=1)


def judged(page: dict[str, Any]) -> dict[str, Any]:
    """Of each kind: best rates by width, and what the narrow model's best rate costs the widest.

    ``drift`` is the power of the width by which the best rate moves; ``regret`` the loss of the
    widest model at the grid's rate that is best for the narrow one, over its own least loss.
    """
    found: dict[str, Any] = {}
    widths = page["widths"]
    for kind in KINDS:
        rates = [best(page, kind, width) for width in widths]
        slope = coords.slope(widths, rates)
        wide = means(page, kind, widths[-1])
        kept = wide[int(np.argmin(means(page, kind, widths[0])))]
        found[kind] = {
            "best": dict(zip(map(str, widths), rates, strict=True)),
            "drift": slope.slope,
            "drift_error": slope.error,
            "regret": float(kept / wide.min() - 1),
            "least": float(wide.min()),
        }
    return found


def figure(page: dict[str, Any]) -> bytes:
    """Loss over learning rate, a panel a kind, a line a width; dots are seeds."""
    fig, axes = report.panels(2, 2, 4.4, 3.4)
    x = page["rates"]
    for ax, kind in zip(axes, KINDS, strict=True):
        for colour, width in zip(report.COLOURS, page["widths"], strict=False):
            rows = losses(page, kind, width)
            ax.plot(x, rows.mean(axis=1), color=colour, label=f"width {width}")
            ax.plot(x, rows, ".", color=colour, ms=4)
            ax.axvline(page["judged"][kind]["best"][str(width)], color=colour, ls=":", lw=1)
        ax.set_xscale("log")
        ax.set_title(kind, loc="left", **report.TITLE)
        ax.set_xlabel("peak learning rate (dotted: best)", **report.NORMAL)
        ax.set_ylabel(f"loss, mean of the last {LAST} steps", **report.NORMAL)
        ax.tick_params(labelsize=8, which="both")
        ax.grid(alpha=0.25)
        ax.legend(fontsize=8, frameon=False)
    ends = np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set_ylim(ends[:, 0].min(), ends[:, 1].max())
    return to_png(fig)


def numbers(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A list with commas between its members."""
    return lambda text: [kind(x) for x in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study and writes lr_transfer.json and lr_transfer.png."""
    parser = argparse.ArgumentParser(description="muP beside the standard parametrisation")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--widths", default=[32, 64, 128], type=numbers(int))
    rates = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064]
    parser.add_argument("--rates", default=rates, type=numbers(float))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args(argv)
    file = args.out / "lr_transfer.json"
    page = {"widths": args.widths, "rates": args.rates, "steps": args.steps, "seeds": args.seeds}
    before = json.loads(file.read_text()) if file.is_file() else {"loss": {}}
    same = all(before.get(name) == value for name, value in page.items())
    page["loss"] = before["loss"] if same else {}
    enter()
    args.out.mkdir(parents=True, exist_ok=True)
    run(page, file)
    page["judged"] = judged(page)
    outputs.write(file, page)
    (args.out / "lr_transfer.png").write_bytes(figure(page))
    print(json.dumps(page["judged"], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
