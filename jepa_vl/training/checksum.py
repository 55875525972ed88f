"""Checksums of arrays: the same on any mesh, so that a checkpoint can tell whether it is whole.

Orbax stores none: bytes that flip on a disk come back as other weights, silently. These are sums
of mixed 32-bit words, computed where the arrays live; a flipped bit changes them, an attacker could
forge them.
"""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from jepa_vl import tree
from jepa_vl.shapes import Array, PyTree

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_HOST_PART = 2**20  # elements that are mixed at a time on a host


def _mix(x: Array) -> Array:
    """A bijection of 32-bit words that spreads each bit (Murmur3's finaliser)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@jax.jit  # leaf by leaf: a state has hundreds, of a few shapes
def _sums(x: Array) -> Array:
    """uint32 [2]: of an array of any shape, of 8 to 32 bits an element."""
    x = jnp.atleast_1d(x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x)
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):  # without a reshape, which would move sharded arrays
        along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        place = place * jnp.uint32(size % 2**32) + along
    first = _mix(words + _mix(place + jnp.uint32(0x9E3779B9)))
    second = _mix(words ^ _mix(place ^ jnp.uint32(0x7F4A7C15)))

    def add(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return a[0] + b[0], a[1] + b[1]

    # Both in one pass, and row by row before all: XLA:CPU shares out rows among its threads, a sum
    # to one number it does not; three times faster there.
    zeros = jnp.uint32(0), jnp.uint32(0)
    rows = jax.lax.reduce((first, second), zeros, add, tuple(range(1, x.ndim)))
    return jnp.stack(jax.lax.reduce(jax.lax.optimization_barrier(rows), zeros, add, (0,)))


def checksums(state: PyTree) -> dict[str, str]:
    """16 hex digits for each array of a pytree, by its name; equal on every mesh."""
    out = {}
    for name, x in tree.flatten(state).items():
        # One after the other: hundreds of sums over devices in flight can starve the threads of
        # XLA's CPU devices, each waiting for partners that wait for a thread.
        a, b = jax.device_get(_sums(x))
        out[name] = f"{int(a):08x}{int(b):08x}"
    return out


def on_host(x: np.ndarray) -> str:
    """The checksum of one numpy array, the same digits as :func:`checksums` gives it.

    Written without jax, so that reading a checkpoint compiles nothing for its hundreds of shapes,
    and so that a fault of the one is not a fault of both.
    """
    words = np.ascontiguousarray(x).reshape(-1).view(f"u{x.dtype.itemsize}")
    sums = np.zeros(2, np.uint32)
    for start in range(0, words.size, _HOST_PART):
        part = words[start : start + _HOST_PART].astype(np.uint32)
        place = np.arange(start, start + part.size, dtype=np.uint64).astype(np.uint32)
        first = _mix_on_host(part + _mix_on_host(place + np.uint32(0x9E3779B9)))
        second = _mix_on_host(part ^ _mix_on_host(place ^ np.uint32(0x7F4A7C15)))
        sums += np.array([first.sum(dtype=np.uint32), second.sum(dtype=np.uint32)])
    return "".join(f"{int(value):08x}" for value in sums)


def _mix_on_host(x: np.ndarray) -> np.ndarray:
    """As :func:`_mix`, of uint32 [n]."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def tree_hash(weights: PyTree) -> str:
    """16 hex digits of a pytree of arrays, the same on every mesh."""
    told = json.dumps(checksums(weights), sort_keys=True).encode()
    return hashlib.blake2b(told, digest_size=8).hexdigest()


def differing(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """Names of the arrays that are not what they were, or not there; empty: all are whole."""
    return [name for name, value in wanted.items() if found.get(name) != value]
