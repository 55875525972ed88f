"""What leaves the modules of a model while it runs, without a change to the model."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models.conditioner.word_attention import WordAttention
from jepa_vl.models.layers import Attention
from jepa_vl.models.stack import in_place
from jepa_vl.shapes import Array

Seen = dict[tuple[type, str], Array]


@contextlib.contextmanager
def watch() -> Iterator[Seen]:
    """Notes the output of each module that is called: (class of the outermost, path) -> array.

    Of several calls the last one counts; of several outputs the first. To be used inside the
    function that is traced, with layers that are neither looped over nor recomputed. Attention
    adds its ``logits``, before the softmax, masks and biases left out.
    """
    seen: Seen = {}
    outermost: list[type] = []

    def note(run: Any, args: tuple, kwargs: dict[str, Any], call: Any) -> Any:
        module = call.module
        if call.method_name != "__call__":
            return run(*args, **kwargs)
        top = not module.path
        if top:
            outermost.append(type(module))
        out = run(*args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        if outermost and hasattr(first, "shape"):
            place = "/".join(module.path)
            seen[outermost[-1], place] = first
            if isinstance(module, Attention | WordAttention):
                seen[outermost[-1], f"{place}/logits"] = _logits(module, seen, outermost[-1], place)
        if top:
            outermost.pop()
        return out

    with nn.intercept_methods(note), in_place():
        yield seen


def _logits(module: Attention | WordAttention, seen: Seen, top: type, place: str) -> Array:
    """[B, heads, queries, keys] float32."""
    q, k = seen[top, f"{place}/q"], seen[top, f"{place}/k"]
    heads = module.heads if isinstance(module, Attention) else 1
    scaled = isinstance(module, Attention) or module.scale_logits
    q, k = (x.reshape(len(x), -1, heads, x.shape[-1] // heads) for x in (q, k))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32)
    return logits * q.shape[-1] ** -0.5 if scaled else logits
