"""What is measured of the features while a run goes on."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from jepa_vl.config import Config, ConfigError
from jepa_vl.data.faults import Log
from jepa_vl.evaluators.features import Encode
from jepa_vl.evaluators.knn import OnlineKnn
from jepa_vl.evaluators.subject import (
    Bench,
    Images,
    Model,
    Parts,
    Weights,
    for_devices,
    tasks_of,
)
from jepa_vl.training.checkpoint import SCORE
from jepa_vl.training.state import TrainState


def check(config: Config) -> None:
    """Refuses what could only fail when the first evaluation is due.

    Raises:
      ConfigError: ``eval.tasks`` names no evaluator.
    """
    tasks_of(config.eval.tasks, "eval.tasks")


class Online:
    """The kNN that each run has, where there are labels, and the evaluators of ``eval.tasks``.

    Both see the target encoder, tasks with a text side the whole objective.
    """

    def __init__(
        self,
        config: Config,
        model: Model,
        mesh: Mesh,
        encode: Encode,
        parts: Parts,
        log: Log,
        say: Callable[[str], None],
    ):
        """Reads the labelled images, which stay in memory.

        Args:
          config: resolved.
          model: the objective, its encoder and frozen weights.
          mesh: of the run.
          encode: of ``features.make_encode``, shared with what else evaluates.
          parts: training and held-out source.
          log: lists images that cannot be used.
          say: tells people.

        Raises:
          ConfigError: no labelled image can be read, or a task cannot be served.
        """
        config = for_devices(config, mesh)
        self.model, self.tasks, self.say = model, config.eval.tasks, say
        images = Images(config, parts, log)
        try:
            self.knn: OnlineKnn | None = OnlineKnn(config, encode, *parts, log)
            images.reader = self.knn.reader
        except ConfigError as error:
            if error.key != "data.label_key":
                raise
            self.knn = None
            say(f"no kNN evaluation: {error}")
        self.bench = Bench(config, model, images, mesh, encode=encode)
        subject = self.bench.subject("encoder", Weights(None, None, ""))
        for task in self.tasks:
            subject.evaluator(task)

    def describe(self) -> dict[str, Any] | None:
        """The labelled images; None: there are none."""
        return None if self.knn is None else self.knn.reader.describe()

    def tested(self) -> int:
        """Images that the kNN classifies."""
        return 0 if self.knn is None else self.knn.reader.tested()

    def run(self, state: TrainState, step: int) -> dict[str, float]:
        """Accuracy of the kNN and, by ``eval/TASK/NUMBER``, what the tasks found.

        Raises:
          ConfigError: the data or the objective cannot serve a task.
        """
        out: dict[str, float] = {}
        encoder = self.model.objective.encoder_params(state.target, self.model.frozen)
        if self.knn is not None:
            out[SCORE] = self.knn.run(encoder)["knn"]
            if step == 0:
                out["knn/pixels"] = self.knn.pixels()["knn"]
            self.say(f"step {step}: kNN of the target encoder {out[SCORE]:.3f}")
        weights = Weights(encoder, (state.params, state.target), f"step {step}")
        subject = self.bench.subject("encoder", weights)
        for task in self.tasks:
            found, _ = subject.measure(task)
            out |= {f"eval/{task}/{name}": value for name, value in found.scores.items()}
        return out
