"""StableHLO of the whole encoder, normalisation of pixels included, by jax.export."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax import export

from jepa_vl.export.base import WEIGHTS, Encoder, Format, nested
from jepa_vl.models import tensors
from jepa_vl.shapes import Array

PROGRAM = "encoder.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
LOAD = """\
from pathlib import Path

import numpy as np
from jax import export
from safetensors.numpy import load_file

weights = load_file(f"{folder}/model.safetensors")
encoder = export.deserialize(Path(folder, "encoder.stablehlo").read_bytes())
assert encoder.platforms == ("cpu", "cuda", "tpu")
features = np.asarray(encoder.call(weights, images))
one = np.asarray(encoder.call(weights, images[:1]))  # any number of images
assert one.shape == (1, *features.shape[1:])
"""


def write(encoder: Encoder, folder: Path) -> None:
    """The program, and the weights that it takes as its first argument: {name: array}.

    They are no constants of it, as a program may not be larger than 2 GiB.
    """
    side = encoder.config.encoder.image_size
    (batch,) = export.symbolic_shape("b")
    like = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in encoder.params.items()}
    images = jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8)

    def apply(params: dict[str, Array], images: Array) -> Array:
        features: Array = encoder.module().apply({"params": nested(params)}, images)
        return features

    # Products of float32 are float32 on every platform; GPUs and TPUs round more by default.
    with jax.default_matmul_precision("highest"), _file_names_alone():
        program = export.export(jax.jit(apply), platforms=PLATFORMS)(like, images)
    (folder / PROGRAM).write_bytes(program.serialize())
    tensors.write(folder / WEIGHTS, encoder.params, {"format": "np"}, "--out")


@contextlib.contextmanager
def _file_names_alone() -> Iterator[None]:
    """Operations tell the line they come from; without the folders of this machine."""
    before = jax.config.jax_hlo_source_file_canonicalization_regex  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
    try:
        yield
    finally:
        jax.config.update("jax_hlo_source_file_canonicalization_regex", before)


FORMAT = Format(
    about=f"A StableHLO program for {', '.join(PLATFORMS)}, any batch, its weights beside it",
    needs=("flatbuffers",),
    library=("jax",),
    write=write,
    load=LOAD,
)
