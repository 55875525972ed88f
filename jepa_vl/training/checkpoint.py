"""Checkpoints: one atomic {state, data, meta} a step, written in the background by Orbax."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from jepa_vl import tree, versions
from jepa_vl.config import Config, ConfigError, config_hash, resolve, to_dict
from jepa_vl.schema import CheckpointConfig
from jepa_vl.training.checksum import checksums, differing
from jepa_vl.training.metrics import write_json
from jepa_vl.training.state import TrainState

# Named handlers: without them a manager that has saved nothing yet knows no item's metadata.
HANDLERS = {
    "state": ocp.StandardCheckpointHandler,
    "data": ocp.JsonCheckpointHandler,
    "meta": ocp.JsonCheckpointHandler,
}
FOLDER = "checkpoints"  # of the workdir
UNREADABLE = "the checkpoint of step {} cannot be read"
PINS = "pinned.json"  # steps whose checkpoints stay
SCORE = "knn/target"  # name in metrics.jsonl
ASIDE = "damaged"  # folder of the workdir where damaged checkpoints lie
FIELDS = TrainState.__dataclass_fields__


def provenance(config: Config) -> dict[str, Any]:
    """The meta item: resolved configuration with its hash, commit and library versions."""
    return {
        "config": to_dict(config),
        "config_hash": config_hash(config),
        "git": versions.git_commit(),
        "versions": versions.installed(),
    }


class Damaged(Exception):
    """A checkpoint that cannot be read, or is not what was written; says what is wrong with it."""


class Checkpoints:
    """The checkpoints of one workdir. A kill at any moment leaves the previous ones whole."""

    def __init__(
        self, workdir: Path, keep: CheckpointConfig | None = None, read_only: bool = False
    ):
        """Opens ``workdir/checkpoints``.

        Args:
          workdir: of the run.
          keep: which of them stay when a newer one is whole; None: where none will be saved.
          read_only: touch nothing; the run that owns the folder may be saving right now.
        """
        self.folder = workdir.resolve() / FOLDER
        self._pins, self._saving = _Pinned(workdir / PINS), False
        absl.logging.set_verbosity(absl.logging.FATAL)  # pages of tracebacks of what is raised too
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_kept(keep or CheckpointConfig(), self._pins),
            best_fn=_score,  # or scores are not written at all
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=True,
            create=not read_only,
        )
        handlers = {name: handler() for name, handler in HANDLERS.items()}
        self._manager = ocp.CheckpointManager(self.folder, item_handlers=handlers, options=options)

    def latest(self) -> int | None:
        """Step of the newest finished checkpoint."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all finished checkpoints, the newest last."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        step: int,
        data: dict[str, Any],
        meta: dict[str, Any],
        score: float | None = None,
    ) -> None:
        """Starts a save; arrays are copied before this returns. A step that exists is left alone.

        Args:
          state: of the step; data, meta: the other items.
          step: its number.
          score: of the online evaluation, by which the best are kept; None: it was not due.

        Raises:
          Exception: of many kinds, also for a save before this one, which failed since.
        """
        if step in self._manager.all_steps():
            return
        arrays = {name: getattr(state, name) for name in FIELDS}
        meta = meta | {"checksums": checksums(arrays)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),  # pyright: ignore[reportCallIssue]
            data=ocp.args.JsonSave(data),  # pyright: ignore[reportCallIssue]
            meta=ocp.args.JsonSave(meta),  # pyright: ignore[reportCallIssue]
        )
        metrics = None if score is None else {SCORE: score}
        if not self._manager.save(step, args=items, metrics=metrics):
            raise RuntimeError(f"Orbax refused to save step {step}")
        self._saving = True

    def check(self) -> bool:
        """Has the save in the background ended since this was last asked? Waits for nothing.

        Raises:
          Exception: it has failed.
        """
        if not self._saving or self._manager.is_saving_in_progress():
            return False
        self.wait()
        return True

    def best(self) -> tuple[int, float] | None:
        """Step and score of the best checkpoint that is here, the latest of equals."""
        found = {step: self._manager.metrics(step) for step in self.steps()}
        scored = [(told[SCORE], step) for step, told in found.items() if told]
        if not scored:
            return None
        score, step = max(scored)
        return step, score

    def pin(self, step: int) -> None:
        """From now on a checkpoint is never deleted for its age."""
        self._pins.steps.add(step)
        if jax.process_index() == 0:
            write_json(self.folder.with_name(PINS), sorted(self._pins.steps))

    def delete_after(self, step: int) -> None:
        """Deletes all of later steps."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def describe(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The data and meta items of a step.

        Raises:
          Damaged: they cannot be read.
        """
        items = ocp.args.Composite(data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        with reading(UNREADABLE.format(step)):
            found = self._manager.restore(step, args=items)
            return found["data"], found["meta"]

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, on the devices that ``like`` names.

        Args:
          step: of a finished checkpoint.
          like: abstract state with shardings.

        Raises:
          ConfigError: names, shapes or dtypes differ from this configuration's; lists which.
          Damaged: arrays cannot be read, or are not those that were written.
        """
        arrays = {name: getattr(like, name) for name in FIELDS}
        with reading(UNREADABLE.format(step)):
            stored = self._manager.item_metadata(step)["state"]
        problems = tree.diff(arrays, stored.tree if hasattr(stored, "tree") else stored)
        if problems:
            rule = "the checkpoint does not fit this configuration:\n  " + "\n  ".join(
                problems[:20]
            )
            raise ConfigError("workdir", str(self.folder / str(step)), rule)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(arrays),  # pyright: ignore[reportCallIssue]
        )
        with reading(UNREADABLE.format(step)):
            found = self._manager.restore(step, args=items)["state"]
        wanted = self.describe(step)[1].get("checksums", {})  # older ones have none
        other = differing(wanted, checksums(found))
        if other:
            raise Damaged(
                f"the checkpoint of step {step} is damaged: {len(other)} of {len(wanted)} arrays "
                f"are not what was written: {', '.join(other[:3])}"
            )
        return TrainState(**found)

    def set_aside(self, step: int) -> Path:
        """Moves a damaged checkpoint out of the way of later ones; the manager must be reopened."""
        self.close()
        folder = self.folder.with_name(ASIDE)
        folder.mkdir(exist_ok=True)
        place = folder / f"{step}.{len(list(folder.iterdir()))}"
        (self.folder / str(step)).rename(place)
        return place

    def wait(self) -> None:
        """Returns when the save in the background is done; its errors are raised here."""
        self._saving = False
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the manager."""
        self._manager.close()


def _score(metrics: dict[str, float]) -> float:
    return metrics[SCORE]


class _Pinned(policies.PreservationPolicy):
    """Keeps the steps that a file of the workdir lists."""

    def __init__(self, path: Path):
        self.steps: set[int] = set(json.loads(path.read_text()) if path.exists() else ())

    def should_preserve(
        self, checkpoints: Sequence[policies.PolicyCheckpointInfo], **_: Any
    ) -> Sequence[bool]:
        return [found.step in self.steps for found in checkpoints]


def _kept(keep: CheckpointConfig, pins: _Pinned) -> policies.PreservationPolicy:
    """Which checkpoints stay when a newer one is whole."""
    kept: list[policies.PreservationPolicy] = [policies.LatestN(keep.keep_last), pins]
    if keep.keep_every:
        kept.append(policies.EveryNSteps(keep.keep_every))
    if keep.keep_best:
        best = policies.BestN(
            get_metric_fn=_score, n=keep.keep_best, keep_checkpoints_without_metrics=False
        )
        kept.append(best)
    return policies.AnyPreservationPolicy(kept)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """What Orbax raises for files that are cut, gone or no longer its own is Damaged: ``what``."""
    try:
        yield
    except Exception as error:  # of many kinds, TensorStore's own among them
        lines = str(error).strip().splitlines()
        raise Damaged(f"{what}: {type(error).__name__}: {lines[0] if lines else ''}") from error


def load(workdir: Path, step: int | None = None) -> tuple[Config, TrainState, int]:
    """Configuration and state of a checkpoint of a run, on one device.

    Args:
      workdir: of the run.
      step: of the checkpoint; None: the newest; 0: the state that training began with, which is
        made again where no checkpoint of it exists.

    Raises:
      ConfigError: the folder holds no checkpoint, or none of this step, or it is damaged.
    """
    from jepa_vl import objectives, sharding
    from jepa_vl.schema import MeshConfig
    from jepa_vl.training import state as train_state

    if not (workdir / FOLDER).is_dir():
        raise ConfigError("workdir", str(workdir), "holds no checkpoint; train first")
    checkpoints = Checkpoints(workdir, read_only=True)
    steps = checkpoints.steps()
    if not steps:
        raise ConfigError("workdir", str(workdir), "holds no finished checkpoint; train first")
    step = steps[-1] if step is None else step
    if step not in (0, *steps):
        rule = f"{workdir} has checkpoints of steps {', '.join(map(str, steps))}"
        raise ConfigError("step", step, f"{rule}, and step 0 is made again")
    try:
        config = resolve(checkpoints.describe(step if step in steps else steps[-1])[1]["config"])
        objective, spec = objectives.build(config), train_state.batch_spec(config)
        mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
        if step in steps:
            like = train_state.abstract(config, objective, spec, mesh)
            state = checkpoints.restore(step, like)
        else:
            state = train_state.create(config, objective, spec, mesh)
    except Damaged as error:
        rule = f"{error}; there are those of steps {', '.join(map(str, steps))}"
        raise ConfigError("workdir", str(workdir), rule) from error
    finally:
        checkpoints.close()
    return config, state, step
