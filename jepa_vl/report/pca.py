"""Features of patches as colours: their first three principal components."""

import math
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from jepa_vl import report, sharding
from jepa_vl.evaluators import features
from jepa_vl.report import TITLE, figures
from jepa_vl.report.page import Section
from jepa_vl.schema import MeshConfig
from jepa_vl.shapes import Array, check_shape

IMAGES, COLUMNS = 8, 4
ENDS = (1, 99)  # percentiles that become the ends of a colour
TEXT = """\
The first three principal components of the target encoder's features of all patches of these \
images, as red, green and blue: patches of like colour have like features, in one image and from \
one image to another. The components hold {shares} of the variance. Colours by themselves mean \
nothing, and a network that was never trained has patterns too, of place above all: look whether \
objects part from the ground, and whether like things in different images are of like colour."""


def sections(run: Any) -> list[Section]:
    """One section; none where features are no grid of patches, or fewer than three numbers.

    Args:
      run: a ``pictures.Loaded``.
    """
    batches = run.read(run.held_out, run.spread(IMAGES))
    encoder, mesh = run.objective.encoder, sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    encode = features.over(mesh, lambda params, x: features.last(encoder, params, x, 1))
    weights = run.objective.encoder_params(run.target, run.frozen)
    patches = features.pooled(
        encode, weights, [b["image"] for b in batches], [b["valid"] for b in batches]
    )
    if math.isqrt(patches.shape[1]) ** 2 != patches.shape[1] or patches.shape[2] < 3:
        return []
    colours, shares = components(patches)
    images = np.concatenate([batch["image"][batch["valid"]] for batch in batches])
    note = "Held-out images, and below each the components of its patches' features."
    text = TEXT.format(shares=", ".join(f"{share:.0%}" for share in shares))
    picture = figures.to_png(figure(images, colours)), note
    return [Section("Patch features as colours", text, [picture])]


def components(patches: Array) -> tuple[Array, Array]:
    """Patches as colours, one basis for all images.

    Args:
      patches: [R, T, D] float, T a square, D at least 3.

    Returns:
      float64 [R, G, G, 3] in 0..1, and the share of the variance that each component holds, [3].
    """
    sizes = check_shape("patches", patches, "R T D")
    grid = math.isqrt(sizes["T"])
    x = np.asarray(patches, np.float64).reshape(-1, sizes["D"])
    x = x - x.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)
    basis = vectors[:, :-4:-1]
    basis = basis * np.sign(basis[np.abs(basis).argmax(0), range(3)])  # the same ones every time
    found = x @ basis
    low, high = np.percentile(found, ENDS, axis=0)
    colours = np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)
    shares = values[:-4:-1] / max(values.sum(), 1e-12)
    return colours.reshape(sizes["R"], grid, grid, 3), shares


def figure(images: Array, colours: Array) -> Figure:
    """Rows of images, and the colours of their patches below each row.

    Args:
      images: [R, H, W, 3] uint8.
      colours: [R, G, G, 3] float in 0..1.
    """
    count = check_shape("images", images, "R H W 3")["R"]
    check_shape("colours", colours, "R G G 3", R=count)
    columns = min(COLUMNS, count)
    rows = 2 * math.ceil(count / columns)
    fig, axes = report.panels(rows * columns, columns, 2.0, 2.05)
    for i, ax in enumerate(axes):
        row, column = divmod(i, columns)
        shown = row // 2 * columns + column
        if shown < count:
            report.show(ax, (colours if row % 2 else images)[shown])
        else:
            ax.set_axis_off()
        if not column:
            ax.set_ylabel("features" if row % 2 else "image", **TITLE)
    return fig
