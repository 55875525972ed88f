"""Checksums of arrays: the same on any mesh, so that a checkpoint can tell whether it is whole.

Orbax stores none: bytes that flip on a disk come back as other weights, silently. These are sums
of mixed 32-bit words, computed where the arrays live; a flipped bit changes them, an attacker could
forge them.
"""

import jax
import jax.numpy as jnp

from jepa_vl import tree
from jepa_vl.shapes import Array, PyTree

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def _mix(x: Array) -> Array:
    """A bijection of 32-bit words that spreads each bit (Murmur3's finaliser)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@jax.jit  # leaf by leaf: a state has hundreds, of a few shapes
def _sums(x: Array) -> Array:
    """uint32 [2]: of an array of any shape, of 8 to 32 bits an element."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):  # without a reshape, which would move sharded arrays
        along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        place = place * jnp.uint32(size % 2**32) + along
    first = _mix(words + _mix(place + jnp.uint32(0x9E3779B9)))
    second = _mix(words ^ _mix(place ^ jnp.uint32(0x7F4A7C15)))
    return jnp.stack([jnp.sum(first, dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32)])


def checksums(state: PyTree) -> dict[str, str]:
    """16 hex digits for each array of a pytree, by its name; equal on every mesh."""
    found = jax.device_get(jax.tree.map(_sums, state))
    return {name: f"{int(a):08x}{int(b):08x}" for name, (a, b) in tree.flatten(found).items()}


def differing(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """Names of the arrays that are not what they were, or not there; empty: all are whole."""
    return [name for name, value in wanted.items() if found.get(name) != value]
