"""Distances between predictions and targets, and the regularisers of TC-JEPA."""

import jax.numpy as jnp
import optax

from jepa_vl.models import fast
from jepa_vl.models.conditioner import Reading
from jepa_vl.models.conditioner.similarity import REGULARISERS
from jepa_vl.shapes import Array


def l2(prediction: Array, target: Array) -> Array:
    """Euclidean norm of each token's error, not its square (TC-JEPA Eq. 1): [..., D] -> [...]."""
    return fast.safe_norm(prediction - target)


def smooth_l1(prediction: Array, target: Array) -> Array:
    """Smooth L1 (beta = 1), mean over channels, as in I-JEPA's code: [..., D] -> [...]."""
    return jnp.mean(optax.huber_loss(prediction, target, delta=1.0), axis=-1)


def mse(prediction: Array, target: Array) -> Array:
    """Squared error, mean over channels: [..., D] -> [...]."""
    return jnp.mean(jnp.square(prediction - target), axis=-1)


DISTANCES = {"l2": l2, "smooth_l1": smooth_l1, "mse": mse}


def masked_mean(x: Array, valid: Array | None) -> Array:
    """Mean of x [...] where valid (bool, of x's shape); over everything if valid is None."""
    if valid is None:
        return jnp.mean(x)
    weight = jnp.broadcast_to(valid, x.shape).astype(x.dtype)
    return jnp.sum(x * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def row_mean(x: Array, valid: Array) -> Array:
    """Mean of each row where valid: [B, T], bool [B, T] -> [B]; 0 where nothing is valid."""
    weight = valid.astype(x.dtype)
    return jnp.sum(x * weight, axis=-1) / jnp.maximum(jnp.sum(weight, axis=-1), 1.0)


def joined(o: Array) -> Array:
    """[L, B, M, T, ...] -> [L, B, M T, ...], as layers compute a reading: no pass over memory."""
    return o.reshape(*o.shape[:2], -1, *o.shape[4:])


def sparsity_terms(
    reading: Reading,
    caption_mask: Array,
    token_valid: Array | None = None,
    regulariser: str = "paper",
) -> tuple[Array, Array]:
    """L_sparse and L_consistency of TC-JEPA, each an average over an image's captions.

    Sums over words (padding is 0 already), then means over layers, over context and target tokens
    of all block copies, over the captions that an image has (the 1 / N of the total), over images.

    With ``entropy`` L_sparse is the normalised entropy of p, in [0, 1]: 0 when a patch picks one
    word. L_consistency is the L1 distance of p to its mean over layers, in [0, 2]: layers must
    pick the same words. The distance of entropies would be 0 for layers that are equally sure of
    different words.

    Args:
      reading: similarity float32 [L, B, M, T, N, S].
      caption_mask: bool [B, N].
      token_valid: optional bool [B, M, T].
      regulariser: a name of ``similarity.REGULARISERS``.

    Returns:
      Two scalars. Images without captions contribute 0 and count in the mean.
    """
    o = joined(reading.similarity)
    token_valid = None if token_valid is None else token_valid.reshape(token_valid.shape[0], -1)
    deviation = fast.absolute(o - jnp.mean(o, axis=0, keepdims=True))
    captions = caption_mask.astype(o.dtype)
    share = captions / jnp.maximum(jnp.sum(captions, axis=-1, keepdims=True), 1.0)

    def average(x: Array) -> Array:
        per_token = jnp.einsum("lbrns,bn->br", x, share) / x.shape[0]
        return masked_mean(per_token, token_valid)

    return average(REGULARISERS[regulariser].density(o)), average(deviation)


def pairwise_mse(targets: Array, valid: Array, predictions: Array) -> Array:
    """Mean over width and valid tokens of (target - prediction)^2, for all pairs.

    Args:
      targets: [A, C, D]; valid: bool [A, C].
      predictions: [B, C, D].

    Returns:
      [A, B] float32.
    """
    weight = valid.astype(targets.dtype)
    own = jnp.sum(jnp.square(targets) * weight[..., None], axis=(1, 2))
    other = jnp.einsum("ac,bc->ab", weight, jnp.sum(jnp.square(predictions), axis=-1))
    cross = jnp.einsum("acd,bcd->ab", targets * weight[..., None], predictions)
    count = jnp.maximum(jnp.sum(weight, axis=1), 1.0) * targets.shape[-1]
    return (own[:, None] + other - 2.0 * cross) / count[:, None]
