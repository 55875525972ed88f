"""Plain formulas in the form that compiles to fast code; each equals its textbook version.

Measured on XLA:CPU: autodiff's weight gradient makes a physical transpose of each cotangent, and
``jax.nn.gelu`` evaluates both branches of erfc. ``jnp.max`` splits its gradient among ties.
"""

import math

import jax
import jax.numpy as jnp

from jepa_vl.shapes import Array


@jax.custom_vjp
def dense(x: Array, kernel: Array) -> Array:
    """``x @ kernel`` whose weight gradient is one contraction over all tokens.

    Args:
      x: [..., I].
      kernel: [I, O], of the same dtype.

    Returns:
      [..., O].
    """
    return jnp.matmul(x, kernel)


def _dense_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.matmul(x, kernel), (x, kernel)


def _dense_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    tokens, cotangents = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return jnp.matmul(grad, kernel.T), jax.lax.dot_general(
        tokens, cotangents, (((0,), (0,)), ((), ()))
    )


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact GELU, x Phi(x), by erf. Not the tanh approximation that ``jax.nn.gelu`` defaults to."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _gelu_backward(x: Array, grad: Array) -> tuple[Array]:
    cumulative = 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
    return (grad * (cumulative + x * density),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.custom_vjp
def max_first(x: Array) -> Array:
    """Maximum over axis -2; a tie gives the whole gradient to the first, as ``torch.max(dim)``."""
    return jnp.max(x, axis=-2)


def _max_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.max(x, axis=-2), (jnp.argmax(x, axis=-2), jnp.zeros((x.shape[-2], 0)))


def _max_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array]:
    winner, shape = residuals
    candidates = jnp.arange(shape.shape[0])[:, None]
    return (jnp.where(winner[..., None, :] == candidates, grad[..., None, :], 0),)


max_first.defvjp(_max_forward, _max_backward)


def safe_norm(x: Array, eps: float = 1e-12) -> Array:
    """Euclidean norm over the last axis, [..., X] -> [...]; its gradient at 0 is 0 and not NaN."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1) + eps)


@jax.custom_jvp
def absolute(x: Array) -> Array:
    """``|x|`` with derivative 0 at 0, as in torch; that of ``jnp.abs`` is 1 there."""
    return jnp.abs(x)


absolute.defjvp(lambda primals, tangents: (jnp.abs(primals[0]), jnp.sign(primals[0]) * tangents[0]))
