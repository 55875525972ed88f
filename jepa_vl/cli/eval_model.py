"""``jepa-vl eval --model``: any image encoder that can be read, under the same evaluators.

One that is part of a model of ours serves what reads the text side too.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli.eval_card import Card
from jepa_vl.cli.eval_session import Request, Session
from jepa_vl.config import Config, defaults, resolve

OPTION = "--model"


def name_of(model: str) -> str:
    """What a card of this path is called after."""
    last = re.sub(r"^(hub|package|zoo):", "", model).rstrip("/").split("/")[-1]
    return re.sub(r"[^\w.-]+", "_", last) or "model"


def described(shape: Any) -> Config:
    """A configuration with this encoder; the data are the built-in scenes."""
    c = defaults()
    c.objective = "ijepa"  # which reads no text
    c.encoder.update(image_size=shape.side, patch_size=shape.patch, width=shape.width)
    c.encoder.update(depth=shape.depth, heads=shape.heads, mlp_width=shape.hidden)
    return resolve(c)


class ModelSession(Session):
    """Evaluates an encoder without a run; beside it the same architecture with random weights."""

    def __init__(self, request: Request):
        """Reads the encoder.

        Raises:
          ConfigError: there is none, or it does not fit; overrides that do not fit.
        """
        from jepa_vl import objectives, sharding
        from jepa_vl.evaluators import subject
        from jepa_vl.evaluators.base import JOINT, read_by
        from jepa_vl.models import intake
        from jepa_vl.training import whole

        self.request = request
        self.source = intake.open_source(request.model, OPTION, request.branch)
        config = described(self.source.shape)
        seed = config.seed
        joint = [task for task in request.tasks if read_by(task) == JOINT]
        self.model = whole.load(self.source, joint[0]) if joint else None
        if self.model is not None:
            config = whole.on_scenes(self.model.config)
        config = self._configure(config, seed)
        module = intake.build(self.source)
        self.params = intake.load(self.source, module)
        model = subject.Model(module, {})
        if self.model is not None:  # its towers are those of its own seed
            objective = objectives.build(config)
            frozen = sharding.place(objective.load_frozen(), self.mesh)
            model = subject.Model(module, frozen, objective)
        self._open(model)

    def card(self, tasks: Sequence[str]) -> Card:
        """Measures what the card has not yet."""
        from jepa_vl.training.checksum import tree_hash

        digest = tree_hash(self.params)
        encoder = self._subject("encoder", (self.params, self.model), digest)
        # An encoder does not tell which model it is a part of; the files do.
        own = digest if self.source.whole is None else self._fingerprint
        return self.measure(encoder, 0, tasks, own)

    @functools.cached_property
    def _fingerprint(self) -> str:
        from jepa_vl.pretrained import fingerprint

        return fingerprint(self.request.model, OPTION)

    def _networks(self, step: int) -> list[Any]:
        return [self.untrained]  # what it began with, files do not tell

    @functools.cached_property
    def untrained(self) -> Any:
        """The same architecture with random weights, drawn as a run of ours draws its own.

        The draw is another one but for what reads text too: there it is the run's.
        """
        import jax

        from jepa_vl.models import frozen_vit
        from jepa_vl.objectives.base import rescale_init
        from jepa_vl.training import whole
        from jepa_vl.training.checksum import tree_hash

        params = frozen_vit.untrained(self.source.shape, jax.random.key(0))
        if self.source.whole is not None:
            params = rescale_init(params, self.source.whole.config.train.init)
        model = None if self.model is None else whole.untrained(self.model)
        return self._subject("untrained", (params, model), tree_hash(params))

    def _facts(self, step: int, digest: str) -> dict[str, Any]:
        from jepa_vl.training.checkpoint import provenance

        meta, request = provenance(self.config), self.request
        return {
            "workdir": name_of(request.model), "model": request.model, "kind": self.source.kind,
            "fingerprint": self._fingerprint, "step": step,
            "branch": self.source.branch or "only", "layers": request.layers,
            "objective": self.source.kind, "checkpoint_hash": digest,
            **{key: meta[key] for key in ("config_hash", "git", "versions")},
        }  # fmt: skip

    def _subject(self, name: str, state: Any, digest: str) -> Any:
        from jepa_vl import sharding
        from jepa_vl.evaluators.subject import Weights

        params, model = state
        weights = Weights(sharding.place(params, self.mesh), self._joint(model), digest)
        return self._read_through(name, weights, self.source.branch or "only")

    def _joint(self, model: Any) -> Any:
        """(params, target) of a whole model, where a task reads it."""
        from jepa_vl import sharding

        if model is None:
            return None
        params, target = model.params, model.target
        if self.request.branch == "context":  # what the EMA follows takes its place
            target = self.bench.model.objective.target_of(params)
        return sharding.place((params, target), self.mesh)


def out_of(model: str) -> Path:
    """The card where none is named: in the folder that the command runs in."""
    return Path(f"eval_{name_of(model)}.json")
