"""AdamW and the EMA of the target: all that a step changes, each leaf in its own place."""

import jax
import jax.numpy as jnp
import optax

from jepa_vl import tree
from jepa_vl.config import Config
from jepa_vl.objectives import Objective
from jepa_vl.shapes import Array, PyTree
from jepa_vl.training.schedules import Schedule
from jepa_vl.training.state import TrainState

# I-JEPA's rule: no decay on biases and 1-D tensors. Its mask token is 3-D there, hence decayed. And
# none on learned positions, as usual.
NO_DECAY = r"((^|/)(bias|scale|patch_bias)|^(encoder|image)/position)$"

Updated = tuple[PyTree, PyTree, optax.ScaleByAdamState]


def update(
    config: Config,
    objective: Objective,
    state: TrainState,
    grads: PyTree,
    good: Array,
    now: Schedule,
    rates: PyTree,
) -> Updated:
    """Params, target and moments after a step; as they were where the step is not good.

    Moments as ``optax.scale_by_adam`` computes them, decay decoupled (arXiv 1711.05101), both
    times the learning rate; then ``target = m target + (1 - m) params``.

    Args:
      config: resolved.
      objective: says which parameters the target follows.
      state: before the step.
      grads: shaped as its params, float32.
      good: bool scalar.
      now: what the schedules say.
      rates: of the learning rate for each parameter, shaped as params; see ``mup.rates``.

    What follows reads new values after the choice between new and old, and factors stand where
    quotients could: else XLA:CPU computes new values once for each of their readers, out of old
    ones that are overwritten beside them, and copies the whole state first.
    """

    def settle(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

    o, moments = config.optim, state.opt_state
    mu = settle(optax.tree.update_moment(grads, moments.mu, o.b1, 1), moments.mu)
    nu = settle(optax.tree.update_moment_per_elem_norm(grads, moments.nu, o.b2, 2), moments.nu)
    count = jnp.asarray(optax.safe_increment(moments.count))
    first, second = (1.0 / (1.0 - b**count) for b in (o.b1, o.b2))

    def move(p: Array, m: Array, v: Array, rate: float, decayed: bool) -> Array:
        direction = m * first / (jnp.sqrt(v * second) + o.eps)
        direction = direction if rate == 1 else rate * direction
        return p - now.lr * (direction + (now.weight_decay * p if decayed else 0.0))

    decayed = tree.mask(state.params, f"^(?!.*{NO_DECAY})")
    moved = jax.tree.map(move, state.params, mu, nu, rates, decayed)
    params = settle(moved, state.params)
    m = now.momentum
    target = jax.tree.map(
        lambda t, p: jnp.where(good, m * t + (1.0 - m) * p, t),
        state.target, objective.target_of(params),
    )  # fmt: skip
    count = jnp.where(good, count, moments.count)
    return params, target, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)
