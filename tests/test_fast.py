"""The fast forms equal the textbook ones, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jepa_vl.models import fast


def rand(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_dense_equals_matmul_in_value_and_both_gradients():
    x, kernel = rand(2, 5, 8), rand(8, 3, seed=1)
    weight = rand(2, 5, 3, seed=2)

    def total(product):
        return lambda x, k: jnp.sum(product(x, k) * weight)

    ours = jax.grad(total(fast.dense), argnums=(0, 1))(x, kernel)
    plain = jax.grad(total(jnp.matmul), argnums=(0, 1))(x, kernel)
    np.testing.assert_allclose(fast.dense(x, kernel), x @ kernel, rtol=1e-6)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_gelu_is_the_exact_one_and_not_its_tanh_approximation():
    x = jnp.linspace(-6, 6, 401)
    np.testing.assert_allclose(fast.gelu(x), jax.nn.gelu(x, approximate=False), atol=2e-6)
    assert float(jnp.max(jnp.abs(fast.gelu(x) - jax.nn.gelu(x, approximate=True)))) > 1e-4
    exact = jax.vmap(jax.grad(lambda v: jax.nn.gelu(v, approximate=False)))(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(fast.gelu))(x), exact, atol=2e-6)


def test_maximum_gives_a_ties_whole_gradient_to_the_first():
    x = jnp.array([[1.0, 5.0], [3.0, 5.0], [3.0, 2.0]])  # [N = 3, P = 2]
    grad = jax.grad(lambda v: jnp.sum(fast.max_first(v) * jnp.array([10.0, 20.0])))(x)
    np.testing.assert_array_equal(grad, [[0, 20], [10, 0], [0, 0]])


def test_maximum_has_the_gradient_of_max_where_there_are_no_ties():
    check_grads(fast.max_first, (rand(2, 3, 4, 5),), order=1, modes=["rev"], eps=1e-3, rtol=1e-2)


@pytest.mark.parametrize("function", [fast.safe_norm, lambda x: fast.absolute(x).sum(-1)])
def test_gradients_at_zero_are_zero_and_not_nan(function):
    grad = jax.grad(lambda x: jnp.sum(function(x)))(jnp.zeros((2, 3)))
    np.testing.assert_array_equal(grad, np.zeros((2, 3)))
