"""One evaluation: what was asked for, and the measuring of checkpoints under it."""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl import __version__
from jepa_vl.cli import configs
from jepa_vl.cli.eval_card import Card
from jepa_vl.config import Config, ConfigError, one_of
from jepa_vl.kinds import KINDS, MIXTURE
from jepa_vl.schema import DataConfig

# Of the data keys of a run, what holds for any data.
KEPT = ("workers", "prefetch", "threads", "decoder", "crop_scale", "crop_ratio", "max_pixels")


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
      step: of the checkpoint; None: the newest.
      floor: cheap: the untrained network and pixels for tasks of pooled features; all; none.
      seed: of the images and of protocols; None: the run's.
      data: KIND:PATH; None: that of the run.
      out: the card; None: in the workdir.
      again: measure what the card has already.
      cached: keep pooled features in the cache.
      model: in place of a run: an encoder by itself.
    """

    workdir: Path
    step: int | None
    branch: str
    layers: int
    tasks: tuple[str, ...]
    floor: str
    seed: int | None
    data: str | None
    overrides: tuple[configs.Override, ...]
    out: Path | None
    again: bool
    cached: bool
    model: str = ""

    def card(self, step: int) -> Path:
        """Where the card of a checkpoint lies."""
        of_layers = f"_{self.layers}layers" if self.layers > 1 else ""
        return self.out or self.workdir / f"eval_{step}_{self.branch}{of_layers}.json"


def with_data(config: Config, text: str) -> Config:
    """A run's configuration with other data; of the run's own keys those stay that suit any.

    Raises:
      ConfigError: it is not KIND:PATH, or there is no such kind.
    """
    kind, _, path = text.partition(":")
    one_of("--data", kind, [name for name in KINDS if name != MIXTURE])
    if (kind == "shapes_world") == bool(path):
        need = "lies nowhere: --data shapes_world" if path else "needs a folder: KIND:PATH"
        raise ConfigError("--data", text, f"kind {kind!r} {need}")
    kept = {name: getattr(config.data, name) for name in KEPT}
    data = DataConfig(kind=kind, path=path, **kept)
    images = dataclasses.replace(config.eval, path="", split="")
    return dataclasses.replace(config, data=data, eval=images)


class Session:
    """Evaluates checkpoints of one run: what they share is built and compiled once."""

    def __init__(self, trained: Config, request: Request):
        """Opens nothing yet but the objective.

        Raises:
          ConfigError: overrides that do not fit, or more layers than there are.
        """
        from jepa_vl import objectives, sharding
        from jepa_vl.evaluators import subject

        self.trained, self.request = trained, request
        config = self._configure(trained, trained.seed)
        # Towers are those of the run's own seed.
        self.objective = objectives.build(config)
        self.frozen = sharding.place(self.objective.load_frozen(), self.mesh)
        self._open(subject.Model(self.objective.encoder, self.frozen, self.objective))

    def _configure(self, config: Config, seed: int) -> Config:
        """The configuration as it was asked for; ``seed``: unless another one was asked for.

        That of the images, and of what the protocols draw, becomes :attr:`config`.
        """
        from jepa_vl.evaluators import subject

        request = self.request
        config = config if request.data is None else with_data(config, request.data)
        config = configs.change(config, request.overrides)
        self.mesh = subject.local_mesh()
        config = subject.for_devices(config, self.mesh)
        chosen = seed if request.seed is None else request.seed
        self.config = dataclasses.replace(config, seed=chosen)
        return config

    def _open(self, model: Any) -> None:
        """What reads the images through a model."""
        from jepa_vl.evaluators import subject

        self.images = subject.Images(self.config)
        layers = self.request.layers
        self.bench = subject.Bench(self.config, model, self.images, self.mesh, layers)

    def _read_through(self, name: str, weights: Any, branch: str) -> Any:
        """One kind of features of the model."""
        from jepa_vl.evaluators.cache import Cache

        cache = Cache() if self.request.cached else None
        subject = self.bench.subject(name, weights, cache)
        subject.protocol = {"branch": branch, **subject.protocol}
        return subject

    def evaluate(self, state: Any, step: int, tasks: Sequence[str]) -> Card:
        """Measures a checkpoint; what its card has already is not measured again.

        The card is written after each number, so that what is interrupted goes on.
        """
        from jepa_vl.training.checksum import tree_hash

        digest = tree_hash(state)
        return self.measure(self._subject("encoder", state, digest), step, tasks, digest)

    def measure(self, encoder: Any, step: int, tasks: Sequence[str], digest: str) -> Card:
        """As :meth:`evaluate`, of features and the hash of their weights."""
        request = self.request
        card = Card(request.card(step), self._facts(step, digest))
        for task in tasks:
            for subject in [encoder, *self._floors(task, step)]:
                key = self._key(task, subject.name)
                if request.again or not card.has(key):
                    card.put(self._result(task, subject, digest) | {"key": key})
        card.finish()
        return card

    def _facts(self, step: int, digest: str) -> dict[str, Any]:
        """What a card says of the checkpoint."""
        from jepa_vl.training.checkpoint import provenance

        trained, request = self.trained, self.request
        meta = provenance(trained)
        return {
            "workdir": request.workdir.resolve().name, "step": step, "branch": request.branch,
            "layers": request.layers, "objective": trained.objective, "checkpoint_hash": digest,
            **{key: meta[key] for key in ("config_hash", "git", "versions")},
        }  # fmt: skip

    def _subject(self, name: str, state: Any, digest: str) -> Any:
        from jepa_vl import sharding
        from jepa_vl.evaluators.base import JOINT, read_by
        from jepa_vl.evaluators.subject import Weights

        branch, followed = self.request.branch, self.objective.target_of(state.params)
        target = {"target": state.target, "context": followed}[branch]
        encoder = sharding.place(self.objective.encoder_params(target, self.frozen), self.mesh)
        text = any(read_by(task) == JOINT for task in self.request.tasks)
        whole = sharding.place((state.params, target), self.mesh) if text else None
        return self._read_through(name, Weights(encoder, whole, f"{digest} {branch}"), branch)

    def _floors(self, task: str, step: int) -> list[Any]:
        """What a number of the encoder stands beside."""
        from jepa_vl.evaluators.base import LABELLED, read_by

        wanted = self.request.floor
        if wanted == "none" or (wanted == "cheap" and read_by(task) != LABELLED):
            return []
        floors = [*self._networks(step), self.pixels]
        return [floor for floor in floors if floor.serves(task)]

    def _networks(self, step: int) -> list[Any]:
        """The state that training began with, and random weights where these were given to it."""
        begun = [self.start] if step > 0 and self.start is not None else []
        return [*begun, self.untrained] if self.trained.init_from else begun

    @functools.cached_property
    def start(self) -> Any:
        """The state that training began with: untrained, but of a run with ``init_from``.

        None where the files that this run began from are no longer there.
        """
        from jepa_vl.training import checkpoint
        from jepa_vl.training.checksum import tree_hash

        try:
            state = checkpoint.load(self.request.workdir.resolve(), 0)[1]
        except ConfigError as error:
            if error.key != "init_from":
                raise
            print(f"without the network that training began with: {error}", file=sys.stderr)
            return None
        name = "start" if self.trained.init_from else "untrained"
        return self._subject(name, state, tree_hash(state))

    @functools.cached_property
    def untrained(self) -> Any:
        """Random weights of the run's own seed, where it was given others to begin with."""
        from jepa_vl.training import state as train_state
        from jepa_vl.training.checksum import tree_hash

        state = train_state.untrained(self.trained, self.objective)
        return self._subject("untrained", state, tree_hash(state))

    @functools.cached_property
    def pixels(self) -> Any:
        """Raw pixels."""
        from jepa_vl.evaluators import subject

        return subject.pixels(self.config, self.images, self.mesh)

    def _key(self, task: str, features: str) -> str:
        """Names all that a result depends on beside the checkpoint."""
        config, request = self.config, self.request
        told = {
            "task": task, "features": features, "branch": request.branch, "seed": config.seed,
            "layers": request.layers, "data": dataclasses.asdict(config.data),
            "eval": dataclasses.asdict(config.eval), "size": config.encoder.image_size,
            "version": __version__,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def _result(self, task: str, subject: Any, digest: str) -> dict[str, Any]:
        """One number or more of an evaluator, their whole protocol beside them."""
        from jepa_vl.evaluators.base import read_by
        from jepa_vl.evaluators.intervals import WORDS, intervals
        from jepa_vl.evaluators.results import pack

        found, protocol = subject.measure(task)
        images = [right.mean(axis=0) for right in found.hits.values()]
        ends = intervals(np.array(images)) if images else []
        if images:
            protocol["interval"] = WORDS
        return {
            "task": task, "features": subject.name, "metrics": dict(found.scores),
            "ci": {**dict(zip(found.hits, ends, strict=True)), **found.ci},
            "baselines": {name: dict(scores) for name, scores in found.baselines.items()},
            "hits": {score: pack(right) for score, right in found.hits.items()},
            "protocol": protocol, "data_hash": self.images.data_hash(read_by(task)),
            "checkpoint_hash": digest, "seed": self.config.seed,
        }  # fmt: skip
