"""Terms against collapse, for any objective: they keep the features of different images apart.

Which features: the mean over an image's tokens of what the encoder computes *before* its final
LayerNorm (``vit.encode_with_stream``). That norm gives every token the same spread over channels,
whether images differ or not. Tokens one by one would not do: the position code alone makes them
differ.

Scale is free before the norm, so ``variance`` can be satisfied by growth alone; ``covariance``,
``rank`` and ``sigreg`` also see a loss of dimensions. All are functions of means over the batch:
under jit with a sharded batch these are means over all devices.
"""

import jax
import jax.numpy as jnp

from jepa_vl.schema import AntiCollapseConfig
from jepa_vl.shapes import Array

STD_TARGET, VARIANCE_EPS = 1.0, 1e-4  # VICReg's gamma and epsilon
SLICES, KNOTS, RANGE = 256, 17, 5.0  # LeJEPA's random directions; points of integration on +-5


def _covariance(features: Array) -> Array:
    """[B, D] -> [D, D], unbiased."""
    centred = features - jnp.mean(features, axis=0)
    return jnp.einsum("bi,bj->ij", centred, centred) / max(len(features) - 1, 1)


def variance(features: Array, rng: Array) -> Array:
    """Mean over channels of max(0, 1 - standard deviation) (VICReg, arXiv 2105.04906, Eq. 1)."""
    del rng
    centred = features - jnp.mean(features, axis=0)
    second = jnp.sum(jnp.square(centred), axis=0) / max(len(features) - 1, 1)
    return jnp.mean(jax.nn.relu(STD_TARGET - jnp.sqrt(second + VARIANCE_EPS)))


def covariance(features: Array, rng: Array) -> Array:
    """Sum of squared off-diagonal covariances over D (VICReg, Eq. 3)."""
    del rng
    matrix = _covariance(features)
    others = 1.0 - jnp.eye(len(matrix))
    return jnp.sum(jnp.square(matrix * others)) / len(matrix)


def rank(features: Array, rng: Array) -> Array:
    """tr(C^2) / tr(C)^2: 1 / D for isotropic features, 1 for features on a line.

    Its inverse is an effective rank (the participation ratio); blind to scale.
    """
    del rng
    matrix = _covariance(features)
    # C is symmetric: tr(C^2) is the sum of its squares.
    return jnp.sum(jnp.square(matrix)) / jnp.maximum(jnp.square(jnp.trace(matrix)), 1e-12)


def sigreg(features: Array, rng: Array) -> Array:
    """Sketched isotropic Gaussian regularisation (LeJEPA, arXiv 2511.08544).

    Mean over random directions of the Epps-Pulley statistic of the projections,
    B * integral of |phi_B(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt, with phi_B the empirical
    characteristic function. Directions are new at each step, and the same on all devices.
    """
    directions = jax.random.normal(rng, (features.shape[-1], SLICES))
    directions = directions / jnp.linalg.norm(directions, axis=0)
    return jnp.mean(epps_pulley(features @ directions))


def epps_pulley(samples: Array) -> Array:
    """The statistic for each column against N(0, 1), by the trapezoid rule: [B, X] -> [X]."""
    t = jnp.linspace(-RANGE, RANGE, KNOTS)
    gauss = jnp.exp(-0.5 * jnp.square(t))
    angles = samples[..., None] * t
    real, imaginary = jnp.mean(jnp.cos(angles), axis=0), jnp.mean(jnp.sin(angles), axis=0)
    distance = jnp.square(real - gauss) + jnp.square(imaginary)
    return len(samples) * jnp.trapezoid(distance * gauss, t, axis=-1)


TERMS = {"variance": variance, "covariance": covariance, "rank": rank, "sigreg": sigreg}


def penalty(
    config: AntiCollapseConfig, stream: Array, valid: Array | None, rng: Array
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of the terms whose weight is not 0.

    Args:
      config: the weights.
      stream: [B, T, D] float32, tokens of an encoder before its final LayerNorm.
      valid: optional bool [B, T], False for padding.
      rng: key of this step.

    Returns:
      A scalar to add to the loss, and the terms by name, without their weights.
    """
    weights = {name: getattr(config, name) for name in TERMS if getattr(config, name)}
    if not weights:
        return jnp.zeros(()), {}
    weight = jnp.ones(stream.shape[:2]) if valid is None else valid.astype(stream.dtype)
    pooled = jnp.einsum("btd,bt->bd", stream, weight) / jnp.sum(weight, axis=1, keepdims=True)
    terms = {name: TERMS[name](pooled, rng) for name in weights}
    total = sum((weights[name] * term for name, term in terms.items()), jnp.zeros(()))
    return total, {f"anticollapse/{name}": term for name, term in terms.items()}
