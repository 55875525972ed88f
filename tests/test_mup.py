"""muP: what each parameter's start and learning rate become, and that nothing else changes."""

import jax
import numpy as np
import pytest

from jepa_vl import objectives, sharding, tree
from jepa_vl.config import ConfigError, resume_diff, to_dict
from jepa_vl.training import mup
from jepa_vl.training import state as train_state
from jepa_vl.training.health import to_device
from jepa_vl.training.step import make_step
from tests.test_step import batches
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_module")
WIDE = {"encoder.width": 64, "predictor.width": 32, "predictor.depth": 1}
BOTH = {"mup.base_width": 16, "mup.base_predictor_width": 8}
ONE = {"mesh.data": 1}


def scales(**changed):
    config = tiny(**{**WIDE, **BOTH, **changed})
    objective, spec = objectives.build(config), train_state.batch_spec(config)
    params = train_state.shapes(config, objective, spec).params
    found = mup.scales(config, params, spec)
    leaves = jax.tree_util.tree_flatten_with_path(found, is_leaf=lambda x: isinstance(x, mup.Scale))
    return {"/".join(key.key for key in path): tuple(scale) for path, scale in leaves[0]}


def test_a_model_four_times_as_wide_by_the_table():
    """Yang and Hu, Table 3, Adam: matrices, then what keeps start and learning rate."""
    found = scales(**{"conditioner.fusion": "attention", "encoder.positions": "learned"})
    hidden = (0.5, 0.25)
    matrices = [name for name in found if name.endswith("kernel") and not name.startswith("text")]
    inputs = ("conditioner_0/k/kernel", "conditioner_0/v/kernel", "patch_kernel")
    for name in matrices:
        if "conditioner" in name and name.endswith("/q/kernel"):  # one head, unscaled logits
            assert found[name] == (0.25, 0.125), name
        elif name.endswith(inputs):
            assert found[name] == (1.0, 1.0), name
        else:
            assert found[name] == hidden, name
    assert len(matrices) > 15 and "predictor/project/kernel" in matrices
    queries = {name for name in found if name.endswith("fusion/query")}
    assert queries and all(found[name] == (0.5, 0.5) for name in queries)
    others = found.keys() - set(matrices) - queries
    assert {"encoder/position", "predictor/mask_token", "text/word_embedding"} <= others
    assert all(found[name] == (1.0, 1.0) for name in others)


def test_a_predictor_that_does_not_grow_reads_the_encoder_and_writes_to_it():
    found = scales(**{"mup.base_predictor_width": 0})
    assert found["predictor/embed/kernel"] == (0.25, 0.25)  # a readout
    assert found["predictor/project/kernel"] == (1.0, 1.0)  # an input
    assert found["predictor/block_0/mlp/fc1/kernel"] == (1.0, 1.0)
    assert found["encoder/block_0/mlp/fc2/kernel"] == (0.5, 0.25)


def test_by_fan_in_hidden_matrices_start_right_and_readouts_do_not():
    found = scales(**{"mup.base_predictor_width": 0, "train.init": "fan_in"})
    assert found["encoder/block_0/attn/v/kernel"] == (1.0, 0.25)
    assert found["predictor/embed/kernel"] == (0.5, 0.25)


def test_logits_that_are_scaled_need_nothing():
    found = scales(**{"conditioner.scale_logits": True})
    assert found["predictor/conditioner_0/q/kernel"] == (0.5, 0.25)


def test_a_text_tower_may_grow_too():
    sizes = {"text.width": 32, "text.depth": 1, "mup.base_text_width": 8}
    found = scales(**sizes)
    assert found["text/block_0/attn/q/kernel"] == (0.5, 0.25)
    assert found["text/word_embedding"] == found["text/word_position"] == (1.0, 1.0)
    assert found["predictor/conditioner_0/k/kernel"] == (0.5, 0.25)


@pytest.mark.parametrize("objective", ["crossmodal", "contrastive"])
def test_other_objectives_that_train_an_image_encoder_take_it(objective):
    found = scales(objective=objective)
    assert found["image/block_0/mlp/fc1/kernel"] == (0.5, 0.25)
    assert found["image/norm/scale"] == (1.0, 1.0)


class Run:
    """A state and the program of its step, on some devices."""

    def __init__(self, devices=1, **changed):
        self.config = tiny(**{"objective": "ijepa", **WIDE, **changed})
        objective, spec = objectives.build(self.config), train_state.batch_spec(self.config)
        self.mesh = sharding.make_mesh(self.config.mesh, jax.devices()[:devices])
        self.like = train_state.abstract(self.config, objective, spec, self.mesh)
        self.state = train_state.create(self.config, objective, spec, self.mesh)
        self.step = make_step(self.config, objective, self.mesh, self.like)

    @property
    def program(self):
        return self.step.lower(self.like, {}, train_state.batch_spec(self.config)).as_text()

    def params(self):
        return {n: np.asarray(x) for n, x in tree.flatten(self.state.params).items()}

    def go(self, feed):
        losses = []
        with jax.set_mesh(self.mesh):
            for batch in feed:
                self.state, m = self.step(self.state, {}, to_device(batch, self.mesh))
                losses.append(float(m["loss"]))
        return losses


# Adam's direction changes little where a gradient is all but 0 and rounded otherwise.
STEADY = {"optim.eps": 1e-3, "optim.lr": 0.1, "optim.warmup_steps": 1}
STEADY |= {"optim.weight_decay": 0.3, "optim.final_weight_decay": 0.3}


@pytest.fixture(scope="module")
def plain(quick_module):
    return Run(**ONE, **STEADY)


@pytest.fixture(scope="module")
def wide(quick_module):
    return Run(**ONE, **STEADY, **BOTH)


def test_at_the_base_it_is_the_standard_to_the_bit_and_without_it_no_factor_is_in_the_program(
    plain, wide
):
    same = Run(**ONE, **STEADY, **{"mup.base_width": 64, "mup.base_predictor_width": 32})
    for name, x in plain.params().items():
        np.testing.assert_array_equal(same.params()[name], x, err_msg=name)
    assert plain.program == same.program != wide.program


def test_deviations_follow_the_width(plain, wide):
    found, start = scales(objective="ijepa"), wide.params()
    for name, x in plain.params().items():
        np.testing.assert_allclose(start[name], found[name][0] * x, rtol=1e-6, err_msg=name)
    assert start["encoder/block_0/mlp/fc1/kernel"].std() == pytest.approx(0.01, rel=0.05)


def moved(run, state, feed):
    """What a step from this state changes."""
    run.state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), state, run.like)
    before = run.params()
    run.go(feed)
    return {name: x - before[name] for name, x in run.params().items()}


def test_steps_go_as_far_as_rates_say_and_decay_is_that_of_all_widths(plain, wide):
    """From the same parameters: by Adam's direction times the rate, and lr x decay besides."""
    before, state = plain.params(), jax.tree.map(np.asarray, plain.state)
    feed, found = batches(plain.config, 1), scales(objective="ijepa")
    direct, scaled = moved(plain, state, feed), moved(wide, state, feed)
    for name, old in before.items():
        kept = 0.0 if name.endswith(("bias", "scale")) else 0.03 * old
        expected = found[name][1] * (direct[name] + kept) - kept
        np.testing.assert_allclose(scaled[name], expected, rtol=1e-3, atol=1e-6, err_msg=name)
    assert max(np.abs(x).max() for x in direct.values()) > 0.01


@pytest.mark.slow
def test_a_mesh_changes_nothing(wide):
    parted = Run(devices=4, **STEADY, **BOTH, **{"mesh.data": 2, "mesh.fsdp": 2})
    state, feed = jax.tree.map(np.asarray, parted.state), batches(parted.config, 1)
    one, four = moved(wide, state, feed), moved(parted, state, feed)
    for name, x in one.items():
        np.testing.assert_allclose(four[name], x, rtol=1e-3, atol=1e-6, err_msg=name)


def test_a_resumed_run_may_not_change_it():
    saved = to_dict(tiny(**WIDE, **BOTH))
    assert resume_diff(saved, tiny(**WIDE)) == [
        "mup.base_predictor_width: 8 -> 0", "mup.base_width: 16 -> 0"
    ]  # fmt: skip


@pytest.mark.parametrize(("changed", "named"), [
    ({"mup.base_predictor_width": 8}, "mup.base_predictor_width = 8: 0 without mup.base_width"),
    ({"mup.base_text_width": 8}, "mup.base_text_width = 8: 0 without mup.base_width"),
    ({"mup.base_width": 18}, "mup.base_width = 18: divisible by 4"),
    ({"mup.base_width": -4}, "mup.base_width = -4: at least 0"),
    ({"mup.base_width": 16, "mup.base_predictor_width": 6}, "mup.base_predictor_width = 6"),
    ({"mup.base_width": 16, "objective": "tijepa"}, "which trains no image encoder"),
    ({"mup.base_width": 16, "mup.base_text_width": 8, "text.kind": "t5", "text.path": "x"},
     "mup.base_text_width = 8: 0 with text.kind 't5'"),
    ({"mup.base_width": 16, "mup.base_predictor_width": 4, "conditioner.mlp_ratio": 0.1},
     "mup.base_predictor_width = 4: at least 1 / conditioner.mlp_ratio = 10"),
])  # fmt: skip
def test_what_cannot_be_a_narrow_model_is_refused(changed, named):
    with pytest.raises(ConfigError) as error:
        tiny(**changed)
    assert named in str(error.value)
