"""Many linear heads at once on features that are there: one scan over steps, one map over heads."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jepa_vl.evaluators import spread
from jepa_vl.shapes import Array

INIT_STD = 0.01
MOMENTUM = 0.9  # of SGD and of LARS
TRUST = 0.001  # of LARS (You et al. 2017, arXiv 1708.03888), as MAE and MoCo v3 set it
BN_MOMENTUM = 0.1  # share of a batch in the running statistics, torch's default
PART = 256  # steps whose batches are laid out at a time


class Heads(NamedTuple):
    """What sets heads apart, a number each: float32 or bool [H].

    Attributes:
      rate: peak learning rate.
      decay: L2 on the matrix (not on the bias), added to the gradient.
      normed: does a batch normalisation without parameters of its own come first?
    """

    rate: Array
    decay: Array
    normed: Array

    @classmethod
    def grid(cls, rates: Sequence[float], decays: Sequence[float], normed: Sequence[bool]) -> Any:
        """All combinations; the last one varies fastest."""
        axes = np.array(rates, np.float32), np.array(decays, np.float32), np.array(normed, bool)
        return cls(*(column.ravel() for column in np.meshgrid(*axes, indexing="ij")))


class Trained(NamedTuple):
    """Heads with the running statistics of their batch normalisation.

    Attributes:
      weight: float32 [H, X, C]; bias: float32 [H, C].
      mean, variance: float32 [X].
    """

    weight: Array
    bias: Array
    mean: Array
    variance: Array


@dataclasses.dataclass(frozen=True)
class Plan:
    """How heads are trained.

    Attributes:
      steps: of all.
      batch: images a step, at most as many as there are.
      factor: progress in [0, 1) -> what each learning rate is multiplied with.
      lars: LARS on matrices; False: SGD.
      eps: of the batch normalisation.
      seed: of the start, the order and the choice of views.
    """

    steps: int
    batch: int
    factor: Callable[[float], float]
    lars: bool
    eps: float
    seed: int


def batches(count: int, views: int, plan: Plan) -> Iterator[tuple[Array, Array]]:
    """Which image and which of its views stands where, PART steps at a time: int32 [steps, B] each.

    An epoch is a permutation; what is left of it after the last whole batch is left out.
    """
    rng, rows = np.random.default_rng(plan.seed), np.zeros(0, np.int64)
    for start in range(0, plan.steps, PART):
        shape = min(PART, plan.steps - start), plan.batch
        while len(rows) < shape[0] * shape[1]:
            order = rng.permutation(count)
            rows = np.concatenate([rows, order[: count // plan.batch * plan.batch]])
        now, rows = rows[: shape[0] * shape[1]], rows[shape[0] * shape[1] :]
        yield now.reshape(shape).astype(np.int32), rng.integers(views, size=shape, dtype=np.int32)


def start(heads: Heads, width: int, classes: int, seed: int) -> Trained:
    """All heads begin with the same matrix, N(0, 0.01), and bias 0."""
    one = INIT_STD * np.random.default_rng(seed).normal(size=(width, classes))
    weight = np.broadcast_to(one.astype(np.float32), (len(heads.rate), width, classes))
    bias = np.zeros((len(heads.rate), classes), np.float32)
    return Trained(weight, bias, np.zeros(width, np.float32), np.ones(width, np.float32))


def _loss(weight: Array, bias: Array, x: Array, labels: Array) -> Array:
    logits = x @ weight + bias
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))


def train(
    x: Array,
    labels: Array,
    first: Trained,
    heads: Heads,
    plan: Plan,
    mesh: Mesh | None = None,
) -> Trained:
    """Trains all heads on the same batches.

    Args:
      x: float32 [n, V, X], features of V views an image.
      labels: int [n], in [0, C).
      first: see :func:`start`.
      heads: their settings.
      plan: at most n images a batch.
      mesh: devices that share each batch where they divide it; None: one.

    Returns:
      The heads after the last step.
    """

    def update(p: Array, g: Array, speed: Array, rate: Array, decay: Array) -> tuple[Array, Array]:
        g = g + decay * p
        if plan.lars and p.ndim > 1:
            size, change = jnp.linalg.norm(p), jnp.linalg.norm(g)
            known = (size > 0) & (change > 0)
            g = g * jnp.where(known, TRUST * size / jnp.where(known, change, 1.0), 1.0)
        speed = MOMENTUM * speed + g
        return p - rate * speed, speed

    def one_head(state: tuple, head: Heads, both: tuple, labels: Array, factor: Array) -> tuple:
        weight, bias, speeds = state
        chosen = jnp.where(head.normed, both[1], both[0])
        grads = jax.grad(_loss, (0, 1))(weight, bias, chosen, labels)
        rate = head.rate * factor
        weight, fast = update(weight, grads[0], speeds[0], rate, head.decay)
        bias, slow = update(bias, grads[1], speeds[1], rate, jnp.float32(0))
        return weight, bias, (fast, slow)

    def step(state: tuple, data: tuple, batch: tuple) -> tuple:
        held, mean, variance = state
        rows, views, factor = batch
        now, truth = spread.rows(data[0], rows, views), spread.rows(data[1], rows)
        centre, width = now.mean(axis=0), now.var(axis=0)
        both = now, (now - centre) * jax.lax.rsqrt(width + plan.eps)
        unbiased = width * (len(rows) / max(1, len(rows) - 1))  # as torch's running variance
        mean = (1 - BN_MOMENTUM) * mean + BN_MOMENTUM * centre
        variance = (1 - BN_MOMENTUM) * variance + BN_MOMENTUM * unbiased
        every = jax.vmap(one_head, (0, 0, None, None, None))
        return every(held, heads, both, truth, factor), mean, variance

    def parts() -> Iterator[tuple]:
        done = 0
        for rows, views in batches(len(x), x.shape[1], plan):
            progress = (done + np.arange(len(rows))) / plan.steps
            yield rows, views, np.array([plan.factor(p) for p in progress], np.float32)
            done += len(rows)

    still = np.zeros_like(first.weight), np.zeros_like(first.bias)
    state = (first.weight, first.bias, still), first.mean, first.variance
    data = np.asarray(x, np.float32), np.asarray(labels, np.int32)
    (weight, bias, _), mean, variance = spread.scan(step, state, data, parts(), mesh)
    return Trained(weight, bias, mean, variance)


def predict(trained: Trained, heads: Heads, x: Array, eps: float) -> Array:
    """The likeliest class by each head, float32 [m, X] -> int [H, m].

    Batch normalisation uses the running statistics. A head that diverged says class 0.
    """
    normed = (x - trained.mean) / np.sqrt(trained.variance + eps)
    both = zip(trained.weight, trained.bias, heads.normed, strict=True)
    found = [(normed if n else x) @ w + b for w, b, n in both]
    return np.stack([np.argmax(np.nan_to_num(logits), axis=1) for logits in found])
