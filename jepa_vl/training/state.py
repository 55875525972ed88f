"""The train state: everything that a resumed run needs and nothing else."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jepa_vl import sharding, tree
from jepa_vl.config import Config, reads_text
from jepa_vl.data import embeddings
from jepa_vl.data.masking import plan_masks
from jepa_vl.models.intake import start
from jepa_vl.objectives import Objective
from jepa_vl.objectives.base import Batch
from jepa_vl.schema import MeshConfig
from jepa_vl.shapes import Array, PyTree
from jepa_vl.training import memory, mup, spikes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One pytree, donated to each step.

    Attributes:
      step: int32 scalar, steps done; the data position follows from it.
      params: float32.
      target: float32, shaped as ``objective.target_of(params)``; starts as a copy of it.
      opt_state: Adam's moments.
      bad_steps: int32 scalar, steps skipped because loss or gradients were not finite.
      spikes: int32 scalar, steps skipped because their loss was a spike.
      bad_in_a_row: int32 scalar, of both kinds.
      recent: float32 [64], the last losses; see :mod:`.spikes`.
    """

    step: Array
    params: PyTree
    target: PyTree
    opt_state: PyTree
    bad_steps: Array
    spikes: Array
    bad_in_a_row: Array
    recent: Array


def batch_spec(config: Config) -> Batch:
    """Shapes and dtypes of the global batch that the objective reads."""
    plan, text = plan_masks(config), config.text
    b, size = config.train.batch_size, config.encoder.image_size
    masks = {"ctx": (b, plan.context_tokens), "tgt": (b, plan.target_blocks, plan.target_tokens)}
    spec = {"image": jax.ShapeDtypeStruct((b, size, size, 3), jnp.uint8)}
    for name, shape in masks.items():
        spec[f"{name}_idx"] = jax.ShapeDtypeStruct(shape, jnp.int32)
        if plan.mode == "reference":
            spec[f"{name}_valid"] = jax.ShapeDtypeStruct(shape, jnp.bool_)
    if reads_text(config):
        words = (b, text.captions, text.words)
        if text.kind == "cached":
            meta = embeddings.read_meta(text)
            shape = (*words, meta["width"])
            spec["word_states"] = jax.ShapeDtypeStruct(shape, jnp.dtype(meta["dtype"]))
        else:
            spec["word_ids"] = jax.ShapeDtypeStruct(words, jnp.int32)
        spec["word_mask"] = jax.ShapeDtypeStruct(words, jnp.bool_)
        spec["caption_mask"] = jax.ShapeDtypeStruct(words[:2], jnp.bool_)
        if config.text.dropout:
            spec["caption_read"] = jax.ShapeDtypeStruct(words[:1], jnp.bool_)
    return spec


def _init(config: Config, objective: Objective, batch: Batch) -> TrainState:
    params = mup.start(config, objective.init(jax.random.key(config.seed), batch), batch)
    # Donation needs buffers of its own for the target.
    target = jax.tree.map(jnp.copy, objective.target_of(params))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        target=target,
        opt_state=optax.scale_by_adam().init(params),  # moments; see training.update
        bad_steps=zero,
        spikes=zero,
        bad_in_a_row=zero,
        recent=spikes.no_losses(),
    )


def shapes(config: Config, objective: Objective, batch: Batch) -> TrainState:
    """Shapes and dtypes of the state; nothing is computed."""
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    return jax.eval_shape(lambda b: _init(config, objective, b), spec)


def abstract(config: Config, objective: Objective, batch: Batch, mesh: Mesh) -> TrainState:
    """As :func:`shapes`, with the shardings on a mesh."""
    return sharding.placed_spec(shapes(config, objective, batch), mesh)


def untrained(config: Config, objective: Objective) -> TrainState:
    """The state of step 0 with random weights, whatever ``init_from`` gave; on one device.

    Raises:
      ConfigError: a pretrained tower is absent.
    """
    config = dataclasses.replace(config, init_from="")
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    return create(config, objective, batch_spec(config), mesh)


def create(
    config: Config,
    objective: Objective,
    batch: Batch,
    mesh: Mesh,
    tell: Callable[[dict[str, Any]], None] = lambda told: None,
    like: TrainState | None = None,
) -> TrainState:
    """The state of step 0, each leaf created where it lives.

    Args:
      batch: arrays or ShapeDtypeStructs of the global batch; only shapes are read.
      tell: is called with what ``init_from`` has given, where it is set; see ``intake.start``.
      like: what :func:`abstract` gives, by those who have it already.

    Raises:
      ConfigError: parts start from files, and these do not fit.
    """
    like = like or abstract(config, objective, batch, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, like)

    def init() -> TrainState:
        zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in batch.items()}
        return _init(config, objective, zeros)

    with jax.set_mesh(mesh):
        state = jax.block_until_ready(jax.jit(init, out_shardings=shardings)())
    memory.give_back()
    dtypes = {str(x.dtype) for x in jax.tree.leaves((state.params, state.target))}
    if dtypes != {"float32"}:
        raise TypeError(f"parameters and target are float32, got {sorted(dtypes)}")
    initial = tree.flatten(objective.load_initial())
    given = start.read(config, like.params)
    if given is not None:
        initial |= given.params
        tell(given.told)
    if not initial:
        return state
    initial = sharding.place(initial, mesh)
    params = tree.map_named(lambda name, x: initial.get(name, x), state.params)
    target = jax.tree.map(jnp.copy, objective.target_of(params))
    return dataclasses.replace(state, params=params, target=target)
