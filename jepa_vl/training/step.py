"""One training step for all objectives: loss and gradient -> good? -> AdamW -> EMA -> metrics."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jepa_vl import sharding
from jepa_vl.config import Config
from jepa_vl.objectives import Objective
from jepa_vl.objectives.base import Batch
from jepa_vl.shapes import Array, PyTree
from jepa_vl.training import mup, schedules, spikes
from jepa_vl.training.state import TrainState, batch_spec
from jepa_vl.training.update import update

COUNTS = ("bad_steps", "spikes", "bad_in_a_row")

Metrics = dict[str, Array]
Step = Callable[[TrainState, PyTree, Batch], tuple[TrainState, Metrics]]


def gradients(
    config: Config, objective: Objective, state: TrainState, frozen: PyTree, batch: Batch
) -> tuple[PyTree, Metrics]:
    """Mean gradient and metrics over the step's micro-batches."""
    rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
    ramp = schedules.at(config, state.step).ramp

    def gather(params: PyTree) -> PyTree:
        if config.train.gather == "layer":
            return params
        return sharding.all_whole(params, config.train.dtype)

    params, back = jax.vjp(gather, state.params)
    target = gather(state.target)

    def one(part: Batch, key: Array) -> tuple[PyTree, Metrics]:
        def loss(params: PyTree) -> tuple[Array, Metrics]:
            value, metrics, _ = objective.loss(params, target, frozen, part, key, ramp)
            return value, metrics

        grads, metrics = jax.grad(loss, has_aux=True)(params)
        return back(grads)[0], metrics

    parts = config.train.micro_batches
    if parts == 1:
        return one(batch, rng)

    # Strided parts: a contiguous split would move images between devices.
    split = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch
    )
    keys = jax.random.split(rng, parts)
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], split), keys[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total: PyTree, part: tuple[Batch, Array]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, one(*part)), None

    total, _ = jax.lax.scan(add, zeros, (split, keys))
    return jax.tree.map(lambda x: x / parts, total)


def make_step(
    config: Config, objective: Objective, mesh: Mesh, like: TrainState, lr_scale: float = 1.0
) -> Step:
    """Compiles lazily to ``(state, frozen, batch) -> (state, metrics)``; the state is donated.

    Args:
      config: resolved.
      objective: any.
      mesh: devices.
      like: abstract state, for its shardings.
      lr_scale: of the learning rate's schedule.

    A step whose loss or gradients are not finite, or whose loss is a spike (``train.spike_z``),
    leaves params, target and moments as they were; the step number goes on.
    """
    rates = mup.rates(config, like.params, batch_spec(config))

    def step(state: TrainState, frozen: PyTree, batch: Batch) -> tuple[TrainState, Metrics]:
        now = schedules.at(config, state.step)
        now = now._replace(lr=now.lr * lr_scale)
        grads, metrics = gradients(config, objective, state, frozen, batch)
        norm, loss = optax.tree.norm(grads), metrics["loss"]
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        z = spikes.score(loss, state.recent)
        spike = finite & (z > (config.train.spike_z or jnp.inf))
        good = finite & ~spike

        params, target, moments = update(config, objective, state, grads, good, now, rates)
        state = TrainState(
            step=state.step + 1,
            params=params,
            target=target,
            opt_state=moments,
            bad_steps=state.bad_steps + jnp.where(finite, 0, 1),
            spikes=state.spikes + spike,
            bad_in_a_row=jnp.where(good, 0, state.bad_in_a_row + 1),
            recent=spikes.remember(loss, state.recent),
        )
        metrics |= {"grad_norm": norm, "lr": now.lr, "weight_decay": now.weight_decay}
        metrics |= {"ema_momentum": now.momentum, "ramp": now.ramp, "loss_z": z}
        metrics |= {name: getattr(state, name) for name in COUNTS}
        return state, metrics

    shardings = jax.tree.map(lambda x: x.sharding, like)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, None, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
