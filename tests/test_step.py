"""The training step: guard, micro-batches, meshes, one compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl import objectives, sharding, tree
from jepa_vl.config import ConfigError
from jepa_vl.data import pipeline, sources
from jepa_vl.training import state as train_state
from jepa_vl.training.health import to_device
from jepa_vl.training.step import make_step
from tests.tiny import tiny

DATA_ONLY = {"mesh.data": 1}


def batches(config, count, start=0):
    source = sources.open_sources(config)[0]
    with pipeline.make_batches(config, source, start) as stream:
        return [next(stream) for _ in range(count)]


class Bench:
    """A fresh state and step of a configuration on some of the devices."""

    def __init__(self, config, devices=1):
        self.config, self.objective = config, objectives.build(config)
        self.mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
        spec = train_state.batch_spec(config)
        like = train_state.abstract(config, self.objective, spec, self.mesh)
        self.state = train_state.create(config, self.objective, spec, self.mesh)
        self.step = make_step(config, self.objective, self.mesh, like)
        self.frozen = sharding.place(self.objective.load_frozen(), self.mesh)

    def run(self, feed):
        """Metrics of each step."""
        out = []
        with jax.set_mesh(self.mesh):
            for batch in (to_device(x, self.mesh) for x in feed):
                self.state, metrics = self.step(self.state, self.frozen, batch)
                out.append({k: float(v) for k, v in metrics.items()})
        return out


def assert_states_equal(a, b):
    left, right = tree.flatten(a), tree.flatten(b)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@functools.cache
def on_one_device(objective):
    """Batches of three steps and their metrics, for comparisons."""
    config = tiny(objective=objective, **DATA_ONLY)
    feed = batches(config, 3)
    return feed, Bench(config).run(feed)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("objective", ["ijepa", "tcjepa"])
def test_loss_falls_on_one_batch_and_the_step_compiles_once(objective):
    bench = Bench(tiny(objective=objective, **DATA_ONLY, **{"train.steps": 40, "optim.ema": 1.0}))
    losses = [m["loss/predict"] for m in bench.run(batches(bench.config, 1) * 25)]
    assert losses[-1] < 0.9 * losses[0]
    assert bench.step._cache_size() == 1


def test_batch_spec_is_what_the_pipeline_yields():
    for mode in ("production", "reference"):
        config = tiny(**{"masks.mode": mode, "masks.min_keep": 0})
        batch = batches(config, 1)[0]
        spec = train_state.batch_spec(config)
        assert spec.keys() == batch.keys() - {"label", "index", "position"}
        for name, s in spec.items():
            assert (s.shape, s.dtype) == (batch[name].shape, batch[name].dtype), name


@pytest.mark.usefixtures("quick_compilation")
def test_target_starts_as_a_copy_and_moves_by_one_minus_momentum_of_the_new_parameters():
    bench = Bench(tiny(**DATA_ONLY, **{"optim.ema": 0.9}))
    start = jax.tree.map(np.asarray, bench.state.target)
    assert_states_equal(start, bench.state.params["encoder"])
    bench.run(batches(bench.config, 1))
    expected = jax.tree.map(lambda t, p: 0.9 * t + 0.1 * p, start, bench.state.params["encoder"])
    for name, leaf in tree.flatten(expected).items():
        np.testing.assert_allclose(
            tree.flatten(bench.state.target)[name], leaf, rtol=1e-6, atol=1e-7
        )


@pytest.mark.usefixtures("quick_compilation")
def test_no_gradient_flows_into_the_target():
    bench = Bench(tiny(**DATA_ONLY))
    batch = to_device(batches(bench.config, 1)[0], bench.mesh)

    def loss(target):
        key = jax.random.key(0)
        return bench.objective.loss(bench.state.params, target, {}, batch, key, jnp.ones(()))[0]

    grads = jax.jit(jax.grad(loss))(bench.state.target)
    assert all(float(jnp.max(jnp.abs(g))) == 0 for g in jax.tree.leaves(grads))


@pytest.mark.usefixtures("quick_compilation")
def test_a_step_that_is_not_finite_changes_nothing_but_is_counted():
    bench = Bench(tiny(objective="ijepa", **DATA_ONLY))
    good = batches(bench.config, 2)
    poisoned = dict(good[0], image=np.full(good[0]["image"].shape, np.nan, np.float32))
    bench.run([good[0]])
    kept = jax.tree.map(np.asarray, bench.state)
    metrics = bench.run([poisoned])[0]
    assert metrics["bad_steps"] == 1 and metrics["bad_in_a_row"] == 1
    assert int(bench.state.step) == 2
    for part in ("params", "target", "opt_state"):
        assert_states_equal(getattr(bench.state, part), getattr(kept, part))
    assert bench.run([good[1]])[0]["bad_in_a_row"] == 0


def test_micro_batches_give_the_same_step():
    feed, whole = on_one_device("tcjepa")
    split = Bench(tiny(**DATA_ONLY, **{"train.micro_batches": 4}))
    for a, b in zip(whole, split.run(feed), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)


@pytest.mark.usefixtures("quick_compilation")
def test_parameters_target_and_moments_are_sharded_alike():
    bench = Bench(tiny(**{"mesh.fsdp": 4, "mesh.tensor": 2, "mesh.data": 1}), devices=8)
    state = bench.state
    name = "block_0/mlp/fc1/kernel"
    spec = tree.flatten(state.params)[f"encoder/{name}"].sharding.spec
    assert spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    assert tree.flatten(state.target)[name].sharding.spec == spec
    moments = [v for k, v in tree.flatten(state.opt_state).items() if k.endswith(f"encoder/{name}")]
    assert len(moments) == 2 and all(m.sharding.spec == spec for m in moments)
    sharding.assert_sharded(state, bench.mesh, tolerance=0.1)
    with pytest.raises(AssertionError, match="replicated"):
        sharding.assert_sharded(state, bench.mesh, tolerance=0.001)
    whole = jax.device_put(state, sharding.replicated(bench.mesh))  # against its own table
    with pytest.raises(AssertionError, match=r"100\.0%"):
        sharding.assert_sharded(whole, bench.mesh)


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    for sizes, hint in (
        ({"mesh.data": 3}, "data must be 8, or -1"),
        ({"mesh.data": 1, "mesh.fsdp": 2}, "data must be 4, or -1"),
        ({"mesh.data": -1, "mesh.tensor": 3}, "fsdp x tensor = 3 does not divide them"),
    ):
        with pytest.raises(ConfigError, match=f"must be 8, the number of devices; .*{hint}"):
            sharding.make_mesh(tiny(**sizes).mesh)


@pytest.mark.usefixtures("quick_compilation")
def test_biases_and_norms_are_not_decayed_but_kernels_and_the_mask_token_are():
    config = tiny(**DATA_ONLY, **{"optim.weight_decay": 0.5, "optim.final_weight_decay": 0.5})
    plain = tiny(**DATA_ONLY, **{"optim.weight_decay": 0.0, "optim.final_weight_decay": 0.0})
    feed = batches(config, 1)
    decayed, kept = Bench(config), Bench(plain)
    decayed.run(feed), kept.run(feed)
    with_decay, without = tree.flatten(decayed.state.params), tree.flatten(kept.state.params)
    for name in with_decay:
        same = np.array_equal(with_decay[name], without[name])
        # Positions of words start at 0, where one step's decay has nothing to take.
        assert same == name.endswith(("bias", "scale", "word_position")), name
