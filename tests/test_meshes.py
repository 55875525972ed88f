"""The same numbers on every mesh: loss, gradients and five steps of each method."""

import functools

import jax
import numpy as np
import pytest

from jepa_vl import sharding, tree
from jepa_vl.config import ConfigError
from jepa_vl.schema import MeshConfig
from jepa_vl.training import hlo
from tests.test_step import Bench, batches
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")

METHODS = ("ijepa", "tcjepa", "tijepa", "contrastive")
SHAPES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8))
QUICK = [(method, shape) for method in METHODS for shape in SHAPES
         if method == "tcjepa" or shape == (2, 2, 2)]  # fmt: skip
REST = [(method, shape) for method in METHODS for shape in SHAPES if (method, shape) not in QUICK]
STEPS = 5


def config_of(method, shape):
    sizes = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), shape, strict=True))
    return tiny(objective=method, **sizes)


@functools.cache
def feed_of(method):
    return batches(config_of(method, (1, 1, 1)), STEPS)


def gradients(bench):
    """Of the first step, out of Adam's first moment."""
    share = 1 - bench.config.optim.b1
    return {n: np.asarray(m) / share for n, m in tree.flatten(bench.state.opt_state.mu).items()}


@functools.cache
def run(method, shape):
    return five_steps(config_of(method, shape), int(np.prod(shape)))


def five_steps(config, devices):
    """Gradients of the first and metrics of all."""
    bench = Bench(config, devices=devices)
    feed = feed_of(config.objective)
    metrics = bench.run(feed[:1])
    first = gradients(bench)
    return first, metrics + bench.run(feed[1:])


@pytest.mark.parametrize(
    ("method", "shape"),
    QUICK + [pytest.param(*case, marks=pytest.mark.slow) for case in REST],
    ids=str,
)
def test_eight_devices_equal_one(method, shape):
    assert_equal(*run(method, shape), *run(method, (1, 1, 1)))


def assert_equal(found, many, wanted, one):
    """Gradients of the first step and metrics of all, found on many devices and wanted of one."""
    for name, gradient in wanted.items():
        if name.endswith("attn/k/bias"):  # exactly 0, as softmax is blind to it: rounding alone
            assert np.abs(found[name]).max() < 1e-7
            continue
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(
            found[name], gradient, rtol=1e-5, atol=1e-5 * scale, err_msg=name
        )
    for a, b in zip(one, many, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)


@pytest.mark.slow
def test_the_cross_modal_loss_is_that_of_the_whole_batch_on_a_mesh():
    config = tiny(objective="crossmodal", **{"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2})
    one = Bench(tiny(objective="crossmodal", **{"mesh.data": 1}))
    feed = batches(one.config, 2)
    for a, b in zip(one.run(feed), Bench(config, devices=8).run(feed), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        {"train.scan_layers": True},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"train.micro_batches": 2}, marks=pytest.mark.slow),
        pytest.param({"train.scan_layers": True, "train.remat": "dots"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_gathering_all_kernels_once_leaves_the_numbers_as_they_are(overrides):
    sizes = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "train.gather": "step"}
    config = tiny(objective="tcjepa", **(sizes | overrides))
    assert_equal(*five_steps(config, 8), *run("tcjepa", (1, 1, 1)))


def compiled(**overrides):
    """The text of the step of a small I-JEPA on eight devices."""
    bench = Bench(tiny(objective="ijepa", **({"mesh.fsdp": 8} | overrides)), devices=8)
    spec = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in feed_of("ijepa")[0].items()
            if k in ("image", "ctx_idx", "tgt_idx")}  # fmt: skip
    with jax.set_mesh(bench.mesh):
        return bench.step.lower(bench.state, bench.frozen, spec).compile().as_text()


@pytest.mark.parametrize("scan", [False, True])
def test_a_sharded_kernel_is_gathered_once_a_product_and_not_rotated(scan):
    overrides = {"encoder.width": 64, "encoder.depth": 2, "train.scan_layers": scan}
    text = compiled(**overrides)
    assert " all-gather(" in text and "collective-permute" not in text


def test_gathered_once_a_step_no_loop_gathers():
    """A kernel of the encoder is put together for target, context and its gradient otherwise."""
    deep = {"encoder.width": 64, "encoder.depth": 3, "train.scan_layers": True}
    deep |= {"train.remat": "dots"}
    gathers = {}
    for when in ("layer", "step"):
        program = hlo.Program(compiled(**deep, **{"train.gather": when}))
        looped = {name for name, times in program.runs.items() if times > 1}
        found = [c for c in program.collectives() if c.kind == "all-gather"]
        gathers[when] = sum(c.bytes for c in found)
        inside = any(o.kind.startswith("all-gather") for name in looped
                     for o in program.computations[name])  # fmt: skip
        assert inside == (when == "layer")
    assert gathers["step"] < 0.75 * gathers["layer"]


def shape_on(devices, kind, slices=1, **sizes):
    return sharding.mesh_shape(MeshConfig(**sizes), devices, slices, kind)


def test_fsdp_is_what_suits_the_chip_unless_it_is_said():
    assert shape_on(256, "TPU v5 lite") == (16, 16, 1)
    assert shape_on(8, "TPU v5 lite") == (1, 8, 1)
    assert shape_on(64, "NVIDIA H100 80GB HBM3") == (8, 8, 1)
    assert shape_on(64, "NVIDIA H100 80GB HBM3", fsdp=1) == (64, 1, 1)
    assert shape_on(8, "cpu") == (8, 1, 1)
    assert shape_on(64, "TPU v4", tensor=4) == (1, 16, 4)
    assert shape_on(12, "TPU v5 lite") == (3, 4, 1)
    assert shape_on(16, "cpu", data=2) == (2, 8, 1)


def test_only_the_data_axis_crosses_slices():
    assert shape_on(512, "TPU v5 lite", slices=2) == (32, 16, 1)
    assert shape_on(8, "TPU v5 lite", slices=2) == (2, 4, 1)
    with pytest.raises(ConfigError, match=r"mesh.data = 1.*multiple of 2, the number of slices"):
        shape_on(8, "TPU v5 lite", slices=2, fsdp=8)
