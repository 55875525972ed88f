"""The loop around the step: data, logs, diagnostics, evaluation, checkpoints, a good end."""

import json
from pathlib import Path
from typing import Any

import jax

from jepa_vl import objectives, sharding, tree
from jepa_vl.config import Config, ConfigError, config_hash
from jepa_vl.data import faults, pipeline, sources
from jepa_vl.evaluators import features, progress
from jepa_vl.evaluators.subject import Model
from jepa_vl.training import ahead, compile_cache, data_health, distributed, flops, online, result
from jepa_vl.training import state as train_state
from jepa_vl.training.checkpoint import SCORE, provenance
from jepa_vl.training.console import SILENT, Reporter
from jepa_vl.training.events import Events
from jepa_vl.training.goodput import Clock
from jepa_vl.training.guard import Guard, Verdict
from jepa_vl.training.health import Health, to_device
from jepa_vl.training.keeper import Keeper
from jepa_vl.training.lock import Lock
from jepa_vl.training.metrics import MetricsWriter, write_json
from jepa_vl.training.online import Online
from jepa_vl.training.profiling import Profiler, Window
from jepa_vl.training.proof import NoProof, Proof
from jepa_vl.training.rows import LateRows
from jepa_vl.training.signals import SharedStop, Stop
from jepa_vl.training.speed import Speed
from jepa_vl.training.step import Metrics, make_step
from jepa_vl.training.watchdog import Watchdog
from jepa_vl.training.weights_biases import Tracker

DONE, FAILED, PREEMPTED, STOPPED = 0, 1, 3, 4
REWIND = -1  # no exit code: the steps go on from an earlier checkpoint
STATUS = {DONE: "done", PREEMPTED: "preempted"}


class Run:
    """One training run in one workdir."""

    def __init__(self, config: Config, workdir: Path, lock: Lock):
        """Opens data and workdir and checks that they fit; :meth:`begin` does what costs time.

        Raises:
          ConfigError: bad data, a mesh or masks that do not fit, a workdir of another run, or one
            in which another process trains.
        """
        self.config, self.workdir, self.total = config, workdir, config.train.steps
        self.clock = Clock()
        self.train_source, self.held_out = sources.open_sources(config)
        self.mesh = sharding.make_mesh(config.mesh)
        sharding.check_batch(config.train, self.mesh)
        compile_cache.enable(config.train.compile_cache)
        online.check(config)
        self.tracker = Tracker(config.log.wandb if distributed.leads() else "", workdir)
        self.objective = objectives.build(config)
        self.spec = train_state.batch_spec(config)
        self.data, self.meta = pipeline.describe(config, self.train_source), provenance(config)
        self.part = distributed.data_part(self.mesh)
        distributed.require_same("configuration", self.meta["config_hash"])
        workdir.mkdir(parents=True, exist_ok=True)
        distributed.require_shared(workdir)
        unlocked = lock.take() if distributed.leads() else ""
        self.keeper = Keeper(config, workdir, self.clock, self.data, self.meta)
        self.start = self.done = self.keeper.start
        distributed.require_same("step to go on from", self.start)
        progress = config.log.progress if distributed.leads() else SILENT
        self.reporter = Reporter(progress, self.total, self.start)
        self.events = Events(workdir, self.reporter.say)
        if unlocked:
            self.reporter.say(f"warning: {unlocked}")

    def begin(self) -> None:
        """Restores or creates the state and opens what :meth:`train` writes to.

        Raises:
          ConfigError: the checkpoint does not fit, or images cannot be read.
        """
        config, objective, mesh = self.config, self.objective, self.mesh
        self._take_state()
        spent = self.keeper.meta.get("spent", {})
        self.compiles_before = spent.get("compiles", 0)
        listed = distributed.list_of_bad_samples(self.workdir)
        before = spent.get("bad_samples", {}) if distributed.leads() else {}
        self.faults = faults.Log(config.data.max_bad_share, listed, before)
        for source in (self.train_source, self.held_out):
            self.faults.check_index(source)
        self.frozen = sharding.place(objective.load_frozen(), mesh)
        if self.keeper.batch_before != config.train.batch_size:
            self.state = self.keeper.change_batch(self.state)
            self.save(self.start)
            self.keeper.insist(lambda: self.save(self.start), self.start)
        self.compiled = ahead.compile_step(self.step, self.state, self.frozen, self.spec, mesh)
        self._greet()
        if distributed.leads():
            write_json(self.workdir / "config.json", self.meta | {"began": self.clock.began})
        encode = features.make_encode(objective.encoder, mesh)
        held_out, log = self.held_out, self.faults
        self.health = Health(config, objective, self.frozen, mesh, held_out, encode, log)
        self.of_data = self._look_at_data()
        parts = self.train_source, held_out
        model = Model(objective.encoder, self.frozen, objective)
        self.online = Online(config, model, mesh, encode, parts, log, self.reporter.say)
        read = self.online.describe()
        distributed.require_same("images for evaluation", [self.health.indices(), read])
        self.tracker.start(self.meta["config"], self.reporter.say)
        self._open_writer(self.start or -1)
        self.guard, self.verdict = Guard(config, self.keeper, self.events), Verdict()

    def _take_state(self) -> None:
        """Of the checkpoint to go on from, or a new one; and the step that continues it."""
        config, objective, mesh = self.config, self.objective, self.mesh
        like = train_state.abstract(config, objective, self.spec, mesh)
        if self.start:
            self.state = self.keeper.restore(like)
            self.start = self.done = self.keeper.start
        else:
            self.state = train_state.create(
                config, objective, self.spec, mesh, self.keeper.began_from, like
            )
        self.step = make_step(config, objective, mesh, like, self.keeper.course.lr_scale)

    def _open_writer(self, newest: int) -> None:
        """``newest``: step of the last row that stays."""
        self.writer: MetricsWriter = distributed.NoWriter()
        if distributed.leads():
            told = self.config.log.tensorboard, self.reporter.say, self.tracker.write
            self.writer = MetricsWriter(self.workdir, newest, *told)

    def is_over(self) -> bool:
        """Was the last step done, and result.json written, by an earlier process?"""
        path = self.workdir / "result.json"
        if self.start < self.total or not path.exists():
            return False
        return json.loads(path.read_text())["status"] == STATUS[DONE]

    def _greet(self) -> None:
        self.keeper.speak(self.reporter.say)
        self.reporter.say(
            f"{self.config.objective} on {self.train_source.name} "
            f"({len(self.train_source)} images), {tree.count(self.state.params) / 1e6:.2f} M "
            f"parameters, mesh {dict(self.mesh.shape)}, workdir {self.workdir}"
        )
        if self.frozen:
            self.reporter.say(
                f"{tree.count(self.frozen) / 1e6:.2f} M frozen parameters beside them"
            )
        if self.start:
            self.reporter.say(f"resumed from the checkpoint of step {self.start}")
        absent = len(faults.left_out(self.train_source))
        if absent:
            self.reporter.say(f"warning: {absent} bad samples left out; see {self.faults.path}")
        excess = sharding.replicated_excess(self.state, self.mesh)
        if excess:
            self.reporter.say(f"warning: {excess}")

    def _look_at_data(self) -> dict[str, float]:
        """What the training images are like, in all processes as process 0 found it."""
        with self.clock.part("init"):
            found = data_health.measure(self.config, self.train_source)
        self.reporter.say(data_health.told(found, self.config))
        return distributed.as_first(found)

    def seconds(self) -> float:
        """Wall-clock of the run, earlier processes included."""
        return self.clock.running()

    def compiles(self) -> int:
        """Compilations of the step by the process that made the last one."""
        return self.step._cache_size() or self.compiles_before

    def examine(self, step: int) -> dict[str, Any]:
        """Diagnostics and evaluation, where they are due after this many steps."""
        out: dict[str, Any] = {}
        if step % self.config.log.diagnostics_every == 0 or step == self.total:
            out |= self.health.run(self.state) | self.of_data
        if step % self.config.eval.every == 0 or step == self.total:
            out |= self.online.run(self.state, step)
        return out

    def save(self, step: int, score: float | None = None) -> None:
        """Writes the checkpoint of a step in the background; ``score``: of the online kNN."""
        distributed.share_counts(self.faults)
        spent = {"seconds": self.seconds(), "compiles": self.compiles()}
        spent |= {"goodput": self.clock.to_save(), "bad_samples": dict(self.faults.total())}
        with self.clock.part("checkpoint"):
            self.keeper.save(self.state, step, spent, score)

    def _examine(self, step: int) -> dict[str, Any]:
        """As :meth:`examine`; the time of the step itself is not the evaluation's."""
        c = self.config
        if step == self.total or not step % c.log.diagnostics_every or not step % c.eval.every:
            self._wait()
        with self.clock.part("evaluation"):
            return self.examine(step)

    def _next(self, stream: pipeline.TrainStream, rows: LateRows) -> pipeline.Batch:
        """The next batch; where the data ends the run, what was trained is saved first.

        Not among several processes: the others, which have theirs, are a step further.
        """
        try:
            return next(stream)
        except ConfigError:
            rows.write()
            if distributed.alone():
                if self.done > self.start:
                    self.save(self.done)
                    self.keeper.insist(lambda: self.save(self.done), self.done)
                self.keeper.close()
            raise

    def _wait(self) -> None:
        """Returns when the newest step is done."""
        with self.clock.part("step"):
            jax.block_until_ready(self.state.step)

    def _measure(self) -> LateRows:
        """Opens what turns steps into rows; the first window of their speed begins here."""

        def count() -> int:
            return flops.count(self.config).total

        speed = Speed(self.config, self.spec, self.mesh, self.clock, self.start, count)
        return LateRows(self.writer, self.reporter, self.clock, speed)

    def train(self, stop: Stop, profile: Window | None = None, proof: bool = False) -> int:
        """Runs the steps that remain; returns the exit code.

        Args:
          stop: asks to save and leave.
          profile: traces these steps.
          proof: writes proof.jsonl.

        Raises:
          ConfigError: the data ends the run, or no checkpoint can be written.
        """
        watchdog = Watchdog(self.config.train.watchdog_minutes)
        with watchdog, progress.heard_by(watchdog.working):
            if distributed.first_says(not self.writer.rows):
                found = self._examine(0)
                row = self.writer.write(0, found)
                if row:
                    self.reporter.step(0, row)
                self.guard.diagnosed(0, found)
            while True:
                code = self._go_on(stop, profile, proof, watchdog)
                if code != REWIND:
                    return code
                self._rewind()

    def _go_on(self, stop: Stop, profile: Window | None, proof: bool, watchdog: Watchdog) -> int:
        """Steps from ``start`` on, to the end, to a rewind, or until asked to leave."""
        config, clock, previous = self.config, self.clock, None
        rows = self._measure()
        profiler = Profiler(self.workdir, profile, clock, self.reporter.say, self._wait)
        skipped = self.keeper.course.skipped
        stream = pipeline.make_batches(
            config, self.train_source, self.start + skipped, *self.part, log=self.faults
        )
        prove = (Proof if proof else NoProof)(self.workdir, config, self.start, skipped, self.part)
        with stream, profiler:
            for step in range(self.start + 1, self.total + 1):
                first = step == self.start + 1
                with profiler.around(step):
                    with clock.part("init" if first else "data_wait"):
                        batch = self._next(stream, rows)
                        prove.batch(batch)
                        batch = to_device(batch, self.mesh)
                    with clock.part("compile" if first else "step"), jax.set_mesh(self.mesh):
                        self.compiled.result()
                        self.state, metrics = self.step(self.state, self.frozen, batch)
                clock.enter("other")
                self.done = step
                rows.write()  # that of the step before, while this one runs
                logged = step % config.log.every == 0 or step in (1, self.total)
                more = self.faults.metrics() if logged else {}
                found = self._examine(step)
                rows.hold(step, metrics if logged else {}, more | found)
                prove.step(step, self.state)
                verdict = self.guard.diagnosed(step, found)
                # One step late, so that no step waits for its own metrics; but for the last one.
                if (previous and self._gave_up(previous)) or (
                    step == self.total and self._gave_up(metrics)
                ):
                    verdict = self.guard.skipped(step)
                self.verdict, previous = verdict, metrics
                watchdog.alive()
                self.keeper.check(step)
                if verdict.back is not None:
                    return REWIND
                leaving = stop.reached(step) or verdict.ends
                best = SCORE in found and config.checkpoint.keep_best > 0
                if self.keeper.due(step) or best or leaving or verdict.keep:
                    self._wait()
                    rows.write()
                    self.save(step, found.get(SCORE))
                if verdict.keep:
                    self.keeper.pin(step)
                if verdict.ends:
                    return STOPPED
                if leaving and step < self.total:
                    return PREEMPTED
        return DONE

    def _gave_up(self, metrics: Metrics) -> bool:
        with self.clock.part("step"):
            return jax.device_get(metrics["bad_in_a_row"]) >= self.config.train.max_bad_steps

    def _rewind(self) -> None:
        """Returns to the last good checkpoint; the images that follow those seen come next."""
        keeper, failed = self.keeper, self.done
        back = keeper.return_to(self.verdict.back or 0)
        keeper.course = keeper.course.rewound(failed, back, self.verdict.lr_scale)
        self.clock.rewind(keeper.meta.get("spent", {}))
        self.writer.close()
        self.start = self.done = back
        self._take_state()
        self._open_writer(back)
        self.guard = Guard(self.config, keeper, self.events)
        course = keeper.course
        self.events.tell(
            failed,
            "rewind",
            f"rewind {course.rewinds} of {self.config.train.max_rewinds}: back to step {back}, the "
            f"data goes on {course.skipped} batches ahead, learning rate x {course.lr_scale:g}",
            **vars(course),
            back=back,
        )

    def finish(self, code: int) -> None:
        """Waits for the last checkpoint and leaves result.json, the contract for scripts.

        Raises:
          ConfigError: it cannot be written.
        """
        with self.clock.part("checkpoint"):
            self.keeper.insist(lambda: self.save(self.done), self.done)
            best = self.keeper.best()
            self.keeper.close()
        distributed.share_counts(self.faults)
        writer, c = self.writer, self.config
        out = {
            "status": STATUS.get(code, self.verdict.status),
            "objective": c.objective,
            "data": self.train_source.name,
            "seed": c.seed,
            "config_hash": config_hash(c),
            "steps": self.done,
            "seconds": self.seconds(),
            "compiles": self.compiles(),
            "goodput": self.clock.summary(),
            "images_per_second": writer.speed(),
            "devices": self.mesh.size,
            "device_kind": self.mesh.devices.flat[0].device_kind,
            "bad_steps": writer.last("bad_steps") or 0,
            "bad_samples": dict(self.faults.total()),
            "rewinds": self.keeper.course.rewinds,
            **result.measured(writer, c.eval.k, len(self.train_source.classes)),
            "best": result.best(best, writer, self.online.tested()),
        }
        writer.close()
        if distributed.leads():
            write_json(self.workdir / "result.json", out)
        self.reporter.close()
        self.tracker.close(code, out)
        result.summarise(self.reporter, out, self.workdir, c.init_from)


def train(config: Config, workdir: Path, profile: Window | None = None, proof: bool = False) -> int:
    """Trains to ``train.steps``, resuming by itself from the newest checkpoint of the workdir.

    Args:
      config: resolved.
      workdir: of the run; made if it is not there.
      profile: steps to trace; a file in the workdir asks for others, see :mod:`.profiling`.
      proof: writes hashes of what each step sees and makes, see :mod:`.proof`.

    Returns:
      The exit code: 0 done, 3 preempted and saved, 4 diverged or collapsed.

    Raises:
      ConfigError: see :class:`Run`.
    """
    with Stop() if distributed.alone() else SharedStop() as stop, Lock(workdir) as lock:
        run = Run(config, workdir, lock)
        if run.is_over():
            run.keeper.close()
            run.reporter.end(f"{workdir}: done already at step {run.start}; nothing to do")
            return DONE
        try:
            run.begin()
            code = run.train(stop, profile, proof)
            run.finish(code)
        finally:
            run.reporter.close()
            run.tracker.close(FAILED)  # has no effect where the run was finished
    return code
