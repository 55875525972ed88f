"""Attentive probes on frozen patch tokens: V-JEPA 2's grid of heads, all trained at once."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jepa_vl import sharding
from jepa_vl.config import Config
from jepa_vl.evaluators import adam, crops, features, heads, spread
from jepa_vl.evaluators.base import NETWORK, Measured, Measures, register
from jepa_vl.evaluators.fast import HELD
from jepa_vl.evaluators.linear import cosine, decide, held_tenth
from jepa_vl.evaluators.network import Network
from jepa_vl.models import attentive
from jepa_vl.models.attentive import Attentive
from jepa_vl.shapes import Array, PyTree

RATES = (5e-4, 1e-3, 1.5e-3, 2e-3)  # V-JEPA 2's configuration for ImageNet, as are those below
DECAYS = (0.008, 0.004, 0.002, 0.001, 0.0005)
START, EPOCHS, WARM_UP, BATCH, HEADS = 2e-4, 20, 5, 1024, 16


def rate(peak: float, progress: float) -> float:
    """From START up to the peak for 5 of 20 epochs, then a cosine to 0."""
    epoch = EPOCHS * progress
    if epoch < WARM_UP:
        return START + (peak - START) * epoch / WARM_UP
    return peak * cosine((epoch - WARM_UP) / (EPOCHS - WARM_UP))


def train(
    module: Attentive,
    views: Array,
    labels: Array,
    grid: list[tuple[float, float]],
    plan: heads.Plan,
    mesh: Mesh | None = None,
) -> PyTree:
    """Trains a probe for each learning rate and weight decay on the same batches.

    Args:
      module: of the probes.
      views: float32 [n, V, T, D], tokens of V crops an image.
      labels: int [n], in [0, C).
      grid: peak learning rate and weight decay of each probe; matrices alone decay.
      plan: of steps and batches; its factor is not used.
      mesh: devices that share each batch where they divide it; None: one.

    Returns:
      Parameters with the probes as leading axis.
    """
    first = attentive.start(module, views.shape[2], views.shape[3], plan.seed)
    many = jax.tree.map(lambda p: jnp.broadcast_to(p, (len(grid), *p.shape)), first)
    decays = jnp.array([decay for _, decay in grid], jnp.float32)

    def one(params: PyTree, moments: Any, speed: Array, decay: Array, x: Array, y: Array) -> tuple:
        def loss(params: PyTree) -> Array:
            said = jax.nn.log_softmax(attentive.apply(module, params, x))
            return -jnp.mean(jnp.take_along_axis(said, y[:, None], axis=1))

        every = jax.tree.map(lambda p: decay * (p.ndim > 1), params)
        return adam.update(params, jax.grad(loss)(params), moments, speed, every)

    def step(state: tuple, data: tuple, batch: tuple) -> tuple:
        rows, which, speeds = batch
        many, moments = state
        now, truth = spread.rows(data[0], rows, which), spread.rows(data[1], rows)
        mapped = jax.vmap(one, (0, 0, 0, 0, None, None))
        return mapped(many, moments, speeds, decays, now, truth)

    def parts() -> Iterator[tuple]:
        done = 0
        for rows, which in heads.batches(len(views), views.shape[1], plan):
            progress = (done + np.arange(len(rows))) / plan.steps
            speeds = [[rate(peak, p) for peak, _ in grid] for p in progress]
            yield rows, which, np.array(speeds, np.float32)
            done += len(rows)

    data = np.asarray(views, np.float32), np.asarray(labels, np.int32)
    return spread.scan(step, (many, jax.vmap(adam.start)(many)), data, parts(), mesh)[0]


def predict(
    module: Attentive, probes: PyTree, tokens: Array, batch: int, mesh: Mesh | None = None
) -> Array:
    """The likeliest class by each probe: float32 [m, T, D] -> int [probes, m].

    ``batch`` images at a time, or the next multiple of the mesh's devices.
    """
    every = jax.vmap(lambda p, x: attentive.apply(module, p, x).argmax(-1), (0, None))
    devices = spread.over(mesh)
    say, batch = features.over(devices, every), sharding.round_up(batch, devices)

    def parts() -> Iterator[Array]:
        for start in range(0, len(tokens), batch):
            part = tokens[start : start + batch]
            whole = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
            yield np.asarray(say(probes, whole))[:, : len(part)]

    return np.concatenate(list(parts()), axis=1)


class Probes(Measures):
    """20 probes; which of them counts, a tenth of the training part decides."""

    reads: ClassVar[str] = NETWORK
    blocks: ClassVar[int]

    def __init__(self, config: Config, network: Network):
        """Reads ``eval.crops``, ``eval.probe_steps`` and ``eval.probe_batch``."""
        self.config, self.network = config, network
        self.grid = list(itertools.product(RATES, DECAYS))
        e = config.eval
        steps = f"{EPOCHS} epochs" + (f", at most {e.probe_steps} steps" if e.probe_steps else "")
        self.protocol: dict[str, Any] = {
            "recipe": "V-JEPA 2's attentive probe, without AutoAugment and random erasing",
            "head": f"{self.blocks} blocks of self-attention, one of cross-attention with one "
            f"query, {HEADS} heads or as many as divide the width of tokens",
            "optimiser": "AdamW, matrices decay", "learning_rates": list(RATES),
            "weight_decays": list(DECAYS), "heads": len(self.grid), "steps": steps,
            "schedule": f"from {START} up for {WARM_UP} of {EPOCHS} epochs, cosine to 0",
            "batch": e.probe_batch or BATCH, "layers": 1, "pooling": "none: tokens of all patches",
            "chosen_on": f"{HELD:.0%} of the training part, stratified; probes see the rest",
            **crops.describe(config),
        }  # fmt: skip

    def measure(self, params: PyTree) -> Measured:
        """``accuracy`` of the probe that was chosen, ``accuracy_best_on_test`` of the best one.

        Raises:
          ConfigError: no labelled image, no class with two, or more tokens than memory.
        """
        reader, e = self.network.labelled, self.config.eval
        count = [len(indices) for indices in reader.indices]
        self.network.check_memory(count[0] * (1 + max(1, e.crops)) + count[1])
        found = crops.read(self.network, lambda x: self.network.tokens(params, x))
        self.protocol |= reader.describe()  # those that could be read
        return self.judge(found)

    def judge(self, found: crops.Cropped) -> Measured:
        """The numbers of tokens that are there."""
        e, centres = self.config.eval, found.centres
        names, labels = np.unique(centres.train_labels, return_inverse=True)
        held = held_tenth(labels, self.config.seed)
        views, seen = found.views[~held], labels[~held]
        batch = min(len(views), e.probe_batch or BATCH)
        steps = EPOCHS * (len(views) // batch)
        steps = min(steps, e.probe_steps or steps)
        plan = heads.Plan(steps, batch, cosine, False, 0.0, self.config.seed)
        module = Attentive(len(names), self.blocks, math.gcd(HEADS, views.shape[-1]))
        mesh = self.network.mesh
        probes = train(module, views, seen, self.grid, plan, mesh)
        inner = predict(module, probes, centres.train[held], e.batch_size, mesh)
        outer = names[predict(module, probes, centres.held_out, e.batch_size, mesh)]
        settings = [{"learning_rate": r, "weight_decay": d} for r, d in self.grid]
        return decide(inner == labels[held], outer == centres.held_out_labels, settings, centres)


@register("attentive")
class FourBlocks(Probes):
    """V-JEPA 2's: three blocks of self-attention, one of cross-attention."""

    blocks = 3


@register("attentive_one")
class OneBlock(Probes):
    """One block of cross-attention."""

    blocks = 0
