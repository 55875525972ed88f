"""An encoder on its way out, what a format is, and how foreign names are given."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jepa_vl import tree
from jepa_vl.config import Config, ConfigError
from jepa_vl.models import tensors, vit, weights
from jepa_vl.models.layers import sincos_table
from jepa_vl.shapes import Array

WEIGHTS = "model.safetensors"
# Where a train state holds the image encoder; that of the contrastive control and the cross-modal
# JEPA is called image.
PLACES = {"target": ("target/", "target/image/"), "context": ("params/encoder/", "params/image/")}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The ViT of a run.

    Attributes:
      config: resolved, of the run.
      params: float32 arrays by name, as in ``block_0/attn/q/kernel``.
      facts: of the checkpoint, for the card: step, branch, config_hash, git, data, ...
    """

    config: Config
    params: dict[str, Array]
    facts: dict[str, Any]

    def module(self) -> vit.ViT:
        """In float32, whatever it was trained in."""
        return vit.build(self.config.encoder)

    def nested(self) -> dict[str, Any]:
        """The parameters as the module takes them."""
        return nested(self.params)

    def position(self) -> Array:
        """The table of positions, float32 [T, D]."""
        c = self.config.encoder
        return self.params.get("position", sincos_table(c.width, c.grid))

    def features(self, images: Array) -> Array:
        """What every export must give: uint8 [n, H, W, 3] -> float32 [n, T, D], on the CPU."""
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            apply = jax.jit(lambda p, x: self.module().apply({"params": p}, x))
            return np.asarray(apply(self.nested(), images))


class Format(NamedTuple):
    """One way out.

    Attributes:
      about: one line for the card.
      needs: packages beside our own that :attr:`write` and the check import.
      library: packages of the check whose versions the card tells.
      write: puts the files into an empty folder.
      load: Python source that reads the folder as its users would, without this package. It sees
        ``folder`` and uint8 ``images`` [n, H, W, 3], and leaves ``features``, float32 [n, T, D].
      extra: of our own package, that brings what it needs.
    """

    about: str
    needs: tuple[str, ...]
    library: tuple[str, ...]
    write: Callable[[Encoder, Path], None]
    load: str
    extra: str = "export"


def nested(flat: dict[str, Array]) -> dict[str, Any]:
    """``{"a/b": x}`` as ``{"a": {"b": x}}``."""
    out: dict[str, Any] = {}
    for name, x in flat.items():
        *parents, leaf = name.split("/")
        inside = out
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[leaf] = x
    return out


def find(shapes: dict[str, tuple], config: Config, branch: str) -> str:
    """How the names of the encoder's parameters begin in a train state.

    Args:
      shapes: of all arrays of the state, by name.
      config: resolved.
      branch: target or context.

    Raises:
      ConfigError: the state holds no such encoder.
    """
    side = config.encoder.image_size
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    like = tree.flatten(weights.expected(vit.build(config.encoder), images))
    wanted = {name: tuple(leaf.shape) for name, leaf in like.items()}
    for place in PLACES[branch]:
        names = (name for name in shapes if name.startswith(place))
        if {name.removeprefix(place): shapes[name] for name in names} == wanted:
            return place
    rule = (
        f"its run has no {branch} image encoder that was trained (TI-JEPA's is a frozen tower and "
        "a crosser, which no other library has)"
    )
    raise ConfigError("objective", config.objective, rule)


class Row(NamedTuple):
    """One foreign tensor: its name, ours (several are joined along axis 0), and what changes."""

    foreign: str
    ours: tuple[str, ...]
    change: Callable[[Array], Array] = weights.plain


def dense(foreign: str, *ours: str) -> Iterable[Row]:
    """Rows of a linear map: kernels [in, out] -> weight [out, in], and biases."""
    yield Row(f"{foreign}.weight", tuple(f"{name}/kernel" for name in ours), np.transpose)
    yield Row(f"{foreign}.bias", tuple(f"{name}/bias" for name in ours))


def norm(foreign: str, ours: str) -> Iterable[Row]:
    """Rows of a LayerNorm."""
    yield Row(f"{foreign}.weight", (f"{ours}/scale",))
    yield Row(f"{foreign}.bias", (f"{ours}/bias",))


def patches(foreign: str) -> Iterable[Row]:
    """Rows of the patch embedding: [p, p, 3, D] -> [D, 3, p, p], and its bias."""
    yield Row(f"{foreign}.weight", ("patch_kernel",), lambda x: x.transpose(3, 2, 0, 1))
    yield Row(f"{foreign}.bias", ("patch_bias",))


def rename(params: dict[str, Array], rows: Sequence[Row]) -> dict[str, Array]:
    """Our parameters under foreign names.

    Raises:
      ValueError: a parameter has no row, or more than one: the table is wrong.
    """
    used = [name for row in rows for name in row.ours]
    if sorted(used) != sorted(params):
        odd = sorted(set(used) ^ params.keys()) or "one twice"
        raise ValueError(f"the table of names does not fit the parameters: {odd}")
    return {
        row.foreign: np.concatenate([row.change(params[name]) for name in row.ours]) for row in rows
    }


def write_weights(encoder: Encoder, folder: Path, rows: Iterable[Row]) -> None:
    """The encoder and its position table under foreign names, for a library of torch's."""
    renamed = rename({**encoder.params, "position": encoder.position()}, [*rows])
    tensors.write(folder / WEIGHTS, renamed, {"format": "pt"}, "--out")


def write_json(path: Path, value: Any) -> None:
    """A small file of a folder that nobody reads yet."""
    path.write_text(json.dumps(value, indent=2) + "\n")
