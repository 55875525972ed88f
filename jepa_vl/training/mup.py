"""muP: a learning rate and an initialisation that were tuned on a narrow model hold for a wide one.

The rules are those of Yang and Hu (arXiv 2203.03466, Table 3, Adam): where fan-in grows by r and
fan-out by s over the model of ``mup.base_width``, a matrix has 1 / r of the learning rate, and the
deviation of its start is that at the base times r^-1/2 min(1, (s / r)^1/2). That is one form for
hidden matrices (s = r), readouts (s = 1: 1 / r) and inputs (r = 1: as it is), by the spectral
condition (arXiv 2310.17813, Eq. 4). Biases, norms, positions, embeddings and the mask token keep
both. No factor enters the forward pass, so what is trained leaves as any other model does.

Attention stays as it is, with 1 / sqrt(d), d the width of a head: Wortsman et al.'s simple variant
(arXiv 2309.14322), not the 1 / d of muP. Heads of one width, as in ViT-Ti to L, need neither. Where
they widen, the coordinate check was the judge: over the first steps the change of logits falls like
d^-1/2 with 1 / d and is all but flat with 1 / sqrt(d). The conditioner's one head, whose logits the
paper does not scale, is given the same through start and learning rate of its queries.

Weight decay forgets as fast at all widths, by lr x weight_decay a step without these factors, as
the decay of the authors' own MuAdamW does. The EMA has no width.
"""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax

from jepa_vl import objectives, tree
from jepa_vl.config import Config
from jepa_vl.objectives.base import Batch
from jepa_vl.schema import MupConfig
from jepa_vl.shapes import PyTree

CONDITIONER = r"(^|/)conditioner_\w+/q/kernel$"


class Scale(NamedTuple):
    """Factors on a parameter's deviation at the start, and on its learning rate."""

    start: float = 1.0
    lr: float = 1.0


def base(config: Config) -> Config:
    """The narrow model; not resolved. It has one head: the shapes of parameters know none."""
    m, e = config.mup, config.encoder
    hidden = max(1, round(e.mlp_width * m.base_width / e.width))
    predictor = m.base_predictor_width or config.predictor.width
    replace = dataclasses.replace
    return replace(
        config,
        encoder=replace(e, width=m.base_width, mlp_width=hidden, heads=1),
        predictor=replace(config.predictor, width=predictor, heads=1),
        text=replace(config.text, width=m.base_text_width or config.text.width, heads=1),
        mup=MupConfig(),
    )


def scales(config: Config, params: PyTree, batch: Batch) -> PyTree:
    """A :class:`Scale` for each parameter, all 1 without ``mup.base_width``.

    Args:
      config: resolved.
      params: their shapes at least.
      batch: likewise.
    """
    if not config.mup.base_width:
        return jax.tree.map(lambda _: Scale(), params)
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    narrow = jax.eval_shape(objectives.build(base(config)).init, jax.random.key(0), spec)

    def scale(name: str, leaf: Any, there: Any) -> Scale:
        return _scale(config, name, leaf.shape, there.shape)

    return tree.map_named(scale, params, narrow)


def _scale(config: Config, name: str, shape: tuple, there: tuple) -> Scale:
    """Of one parameter and its shape in the narrow model."""
    if name.endswith("/query"):  # its product with what was read is divided by sqrt(width)
        root = (shape[0] / there[0]) ** -0.5
        return Scale(root, root)
    if not name.endswith("kernel"):
        return Scale()
    fan_in, fan_out = math.prod(shape[:-1]) / math.prod(there[:-1]), shape[-1] / there[-1]
    start, lr = min(1.0, fan_out / fan_in) ** 0.5, 1 / fan_in
    if config.train.init == "normal":  # fan_in has seen to it
        start *= fan_in**-0.5
    unscaled = not config.conditioner.scale_logits and re.search(CONDITIONER, name)
    root = fan_out**-0.5 if unscaled else 1.0
    return Scale(start * root, lr * root)


def start(config: Config, params: PyTree, batch: Batch) -> PyTree:
    """Fresh parameters with the deviations that their widths ask for."""
    factors = jax.tree.map(lambda s: s.start, scales(config, params, batch), is_leaf=_is_scale)
    return jax.tree.map(lambda x, f: x if f == 1 else x * f, params, factors)


def rates(config: Config, params: PyTree, batch: Batch) -> PyTree:
    """Factors on the learning rate, a float for each parameter."""
    return jax.tree.map(lambda s: s.lr, scales(config, params, batch), is_leaf=_is_scale)


def _is_scale(x: Any) -> bool:
    return isinstance(x, Scale)
