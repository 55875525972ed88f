"""The coordinate check of muP: how activations grow with width in the first steps of training.

Where a parametrisation transfers, each layer moves by as much whatever the width: the slope of
log change over log width is 0 (arXiv 2203.03466, section 2 and appendix D.1). Where it does not,
it grows or fades by a power of the width.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_vl import objectives, sharding
from jepa_vl.config import Config, ConfigError
from jepa_vl.data import pipeline, sources
from jepa_vl.models.predictor import Predictor
from jepa_vl.models.vit import ViT
from jepa_vl.models.watch import watch
from jepa_vl.schema import MeshConfig, MupConfig
from jepa_vl.shapes import Array, PyTree
from jepa_vl.training import state as train_state
from jepa_vl.training.health import to_device
from jepa_vl.training.step import make_step

WATCHED = ("ijepa", "tcjepa")
TOWERS = {ViT: "encoder", Predictor: "predictor"}
SHOWN = ("attn", "mlp", "logits", "norm", "embed", "project")  # beside blocks and conditioners


class Sizes(NamedTuple):
    """Of the layers of one model, by step 0 (untrained) to the last.

    Attributes:
      size: mean absolute activation, float64 [steps + 1] by name of a layer.
      change: mean absolute difference from the untrained model, on the same images.
    """

    size: dict[str, Array]
    change: dict[str, Array]


class Slope(NamedTuple):
    """Of log y over log width, by least squares, and its standard error."""

    slope: float
    error: float


def at_width(config: Config, width: int) -> Config:
    """The model with another encoder width, and a predictor that keeps its share of it.

    So do the heads, whose width stays, as text towers do. Not resolved anew.

    Raises:
      ConfigError: the width gives no whole numbers.
    """
    e, p = config.encoder, config.predictor

    def share(name: str, value: int, multiple: int) -> int:
        if width * value % (e.width * multiple):
            rule = f"{name} = {value} x WIDTH / {e.width} must be a multiple of {multiple}"
            raise ConfigError("--widths", width, rule)
        return width * value // e.width

    replace = dataclasses.replace
    encoder = replace(
        e,
        variant="",
        width=share("encoder.width", e.width, 4),
        heads=share("encoder.heads", e.heads, 1),
        mlp_width=share("encoder.mlp_width", e.mlp_width, 1),
    )
    predictor = replace(
        p,
        width=share("predictor.width", p.width, 4),
        heads=share("predictor.heads", p.heads, 1),
    )
    return replace(config, encoder=encoder, predictor=predictor)


def standard(config: Config) -> Config:
    """Without muP."""
    return dataclasses.replace(config, mup=MupConfig())


def with_mup(config: Config, base: Config) -> Config:
    """With muP, from a narrow model on."""
    m = dataclasses.replace(
        config.mup, base_width=base.encoder.width, base_predictor_width=base.predictor.width
    )
    return dataclasses.replace(config, mup=m)


def measure(config: Config, steps: int) -> Sizes:
    """Trains one batch for some steps at a constant learning rate, and looks at each of them.

    Raises:
      ConfigError: another objective, or data that cannot be read.
    """
    if config.objective not in WATCHED:
        raise ConfigError("objective", config.objective, f"one of {', '.join(WATCHED)}")
    replace = dataclasses.replace
    lr = config.optim.lr
    config = replace(
        config,
        optim=replace(config.optim, start_lr=lr, final_lr=lr),
        train=replace(config.train, scan_layers=False, remat="none"),
        data=replace(config.data, workers=0),
    )
    objective, spec = objectives.build(config), train_state.batch_spec(config)
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    state = train_state.create(config, objective, spec, mesh)
    like = train_state.abstract(config, objective, spec, mesh)
    step = make_step(config, objective, mesh, like)
    frozen = sharding.place(objective.load_frozen(), mesh)
    with pipeline.make_batches(config, sources.open_sources(config)[0], 0) as stream:
        batch = to_device(next(stream), mesh)

    @jax.jit
    def look(params: PyTree, target: PyTree) -> dict[str, Array]:
        with watch() as seen:
            objective.loss(params, target, frozen, batch, jax.random.key(0), jnp.float32(1.0))
        found = {f"{TOWERS.get(top, '')}/{place}": x for (top, place), x in seen.items()}
        return {name: x for name, x in found.items() if _shown(name)}

    @jax.jit
    def compare(now: dict[str, Array], first: dict[str, Array]) -> PyTree:
        def mean(x: Array) -> Array:
            return jnp.mean(jnp.abs(x.astype(jnp.float32)))

        return jax.tree.map(lambda x, y: (mean(x), mean(x - y)), now, first)

    rows = []
    with jax.set_mesh(mesh):
        first = look(state.params, state.target)
        for i in range(steps + 1):
            rows.append(jax.device_get(compare(look(state.params, state.target), first)))
            if i < steps:
                state, _ = step(state, frozen, batch)
    size, change = (
        {name: np.array([float(row[name][k]) for row in rows]) for name in sorted(first)}
        for k in (0, 1)
    )
    return Sizes(size, change)


def _shown(name: str) -> bool:
    tower, _, place = name.partition("/")
    last = place.rpartition("/")[2]
    return bool(tower) and (
        last in SHOWN or ("/" not in place and last.startswith(("block_", "conditioner_")))
    )


def slope(widths: Sequence[int], values: Sequence[float]) -> Slope:
    """Of log values over log widths; nan where one of them is 0 or not finite."""
    x, y = np.log(np.asarray(widths, float)), np.asarray(values, float)
    if len(x) < 2 or not (np.isfinite(y) & (y > 0)).all():
        return Slope(float("nan"), float("nan"))
    x, y = x - x.mean(), np.log(y)
    steep = float(x @ y / (x @ x))
    rest = y - y.mean() - steep * x
    error = float(np.sqrt(rest @ rest / max(len(x) - 2, 1) / (x @ x)))
    return Slope(steep, error)
