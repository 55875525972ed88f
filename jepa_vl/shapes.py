"""The glossary of dimension letters, and the check of shapes at module boundaries.

======  =====================================================================
letter  meaning
======  =====================================================================
B       images in a batch (global on the host side, sharded on the mesh)
H, W    image height and width, in pixels
G       patches along one side of the image (grid)
T       tokens of a sequence; the full image has T = G * G
K       visible (context) tokens of an image
M       target blocks of an image
C       tokens of one target block
D       width of the encoder
P       width of the predictor
N       captions of an image
S       words (tokens) of a caption
E       width of a word embedding
L       layers
h, d    attention heads and their width
F       hidden width of an MLP
======  =====================================================================
"""

from typing import Any

# numpy.ndarray on the host, jax.Array on the device; this module imports neither.
Array = Any
PyTree = Any


def check_shape(name: str, array: Array, spec: str, **sizes: int) -> dict[str, int]:
    """Checks an array against a string of dimension letters.

    Args:
      name: how the array is called in the error.
      array: anything with a ``shape``.
      spec: letters separated by blanks, e.g. ``"B K D"``; an integer stands for itself, ``_`` for
        any size.
      **sizes: sizes already known, e.g. ``B=8``.

    Returns:
      The sizes, completed by those that this array fixes.

    Raises:
      ValueError: the rank or a size differs.
    """
    letters = spec.split()
    shape = tuple(array.shape)
    if len(shape) != len(letters):
        raise ValueError(f"{name}: expected [{spec}], got shape {shape}")
    for letter, size in zip(letters, shape, strict=True):
        if letter == "_":
            continue
        expected = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
        if size != expected:
            raise ValueError(
                f"{name}: expected [{spec}] with {letter} = {expected}, got shape {shape}"
            )
    return sizes
