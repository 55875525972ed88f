"""Small random encoders, and runs of them, for the tests of exports."""

import jax
import jax.numpy as jnp
import numpy as np

from jepa_vl import tree
from jepa_vl.export.base import Encoder, nested
from jepa_vl.models import vit, weights
from jepa_vl.training import checkpoint
from jepa_vl.training.checksum import on_host
from jepa_vl.training.spikes import no_losses
from jepa_vl.training.state import TrainState
from tests.tiny import tiny

FACTS = {
    "step": 6, "images": 48, "branch": "target", "config_hash": "0" * 12, "git": "unknown",
    "data": "scenes", "compared_on": "noise", "results": [],
}  # fmt: skip


def config(**overrides):
    """Two blocks; an MLP that is not four times as wide, heads that no preset has."""
    return tiny(objective="ijepa", **{"encoder.depth": 2, "encoder.mlp_width": 72, **overrides})


def random_params(config, seed=0):
    """Every parameter random, norms and biases too: constants would hide swaps."""
    rng, side = np.random.default_rng(seed), config.encoder.image_size
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
    like = tree.flatten(weights.expected(vit.build(config.encoder), images))
    return {
        name: (name.endswith("scale") + 0.2 * rng.normal(size=x.shape)).astype(np.float32)
        for name, x in like.items()
    }


def encoder(**overrides):
    """An encoder that no run has trained."""
    c = config(**overrides)
    return Encoder(c, random_params(c), FACTS)


def images(count=3, size=32):
    """uint8 noise."""
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def save_run(workdir, step=6, place=lambda state: state, **overrides):
    """A workdir whose checkpoint holds one random encoder as context, another one as target.

    ``place`` puts the state where the devices of a mesh would have it.
    """
    c = config(**overrides)
    params, target = (jax.tree.map(jnp.asarray, nested(random_params(c, s))) for s in (1, 2))
    number = jnp.asarray(step, jnp.int32)
    state = TrainState(
        step=number,
        params={"encoder": params},
        target=target,
        opt_state={"mu": params},
        bad_steps=0 * number,
        spikes=0 * number,
        bad_in_a_row=0 * number,
        recent=no_losses(),
    )
    meta = checkpoint.provenance(c) | {"spent": {"seconds": 1.0}}
    data = {"global_batch": 8, "name": "scenes", "images": 64}
    writer = checkpoint.Checkpoints(workdir)
    writer.save(place(state), step, data, meta)
    writer.close()
    return workdir


def by_numpy(arrays):
    """In place of the compiled checksums; that they are the same is tested elsewhere."""
    return {name: on_host(np.asarray(x)) for name, x in tree.flatten(arrays).items()}
