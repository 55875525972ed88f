"""The real training step on one batch again and again: what benchmarks of the step do."""

from typing import Any

import jax
import numpy as np

from jepa_vl import objectives, sharding
from jepa_vl.config import Config
from jepa_vl.training import state as train_state
from jepa_vl.training.health import to_device
from jepa_vl.training.step import make_step


def make_batch(config: Config) -> dict[str, Any]:
    """Random images, words and different patches, in the shapes of a batch; always the same."""
    rng, batch, tokens = np.random.default_rng(0), {}, config.encoder.grid**2
    for name, x in train_state.batch_spec(config).items():
        if name.endswith("_idx"):
            drawn = rng.random((*x.shape[:-1], tokens)).argsort(axis=-1)[..., : x.shape[-1]]
            batch[name] = np.sort(drawn, axis=-1).astype(x.dtype)
        elif name == "image":
            batch[name] = rng.integers(0, 256, x.shape, np.uint8)
        elif x.dtype == bool:
            batch[name] = np.ones(x.shape, bool)
        else:
            batch[name] = rng.normal(size=x.shape).astype(x.dtype)
    return batch


class Stepper:
    """A train state on all devices, and the step that moves it on."""

    def __init__(self, config: Config):
        """Allocates the state; compiles with the first step."""
        self.mesh, objective = sharding.make_mesh(config.mesh), objectives.build(config)
        spec = train_state.batch_spec(config)
        like = train_state.abstract(config, objective, spec, self.mesh)
        self.state = train_state.create(config, objective, spec, self.mesh)
        self._step = make_step(config, objective, self.mesh, like)
        self._batch = to_device(make_batch(config), self.mesh)

    def program(self) -> Any:
        """The compiled step, for what the compiler says of it."""
        with jax.set_mesh(self.mesh):
            return self._step.lower(self.state, {}, self._batch).compile()

    def step(self) -> None:
        """One step, waited for."""
        with jax.set_mesh(self.mesh):
            self.state, _ = self._step(self.state, {}, self._batch)
        jax.block_until_ready(self.state.step)
