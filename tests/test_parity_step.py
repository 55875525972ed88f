"""Our step and the twin it is timed beside do the same: else the times say nothing."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jepa_vl import objectives, sharding, tree
from jepa_vl.models.layers import sincos_table
from jepa_vl.schema import MeshConfig
from jepa_vl.training import schedules
from jepa_vl.training import state as train_state
from jepa_vl.training.step import make_step
from tests import torch_names

torch = pytest.importorskip("torch", reason="needs the extra [parity]")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = ("step", "stepping", "torch_ijepa")
STEPS = 3


@pytest.fixture(scope="module")
def bench():
    """The modules of benchmarks/, which are no package."""
    sys.path.insert(0, str(BENCHMARKS))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def config(bench, tmp_path_factory):
    made = bench.step.make_config("tiny", 4, {}, tmp_path_factory.mktemp("cache"))
    return replace(made, mesh=MeshConfig(data=1))


def parameters(twin, depths):
    """Weights of the twin as ours."""
    encoder, predictor = (
        {name: x.detach().numpy().copy() for name, x in module.state_dict().items()}
        for module in (twin.encoder, twin.predictor)
    )
    return {
        "encoder": torch_names.encoder(encoder, depths[0]),
        "predictor": torch_names.predictor(predictor, depths[1]),
    }


def make_twin(bench, config, fused=False):
    torch.set_num_threads(1)  # threads that spin starve each other on a busy machine
    torch.manual_seed(0)
    widths = config.encoder.width, config.predictor.width
    tables = [sincos_table(width, config.encoder.grid) for width in widths]
    return bench.torch_ijepa.Twin(config, tables, fused=fused, autocast=False)


def test_torchs_own_attention_is_the_published_one(bench, config):
    batch = bench.stepping.make_batch(config)
    images = torch.tensor(batch["image"]).permute(0, 3, 1, 2) / 127.5 - 1.0
    masks = [torch.tensor(batch[name]).long() for name in ("ctx_idx", "tgt_idx")]
    twins = (make_twin(bench, config, fused) for fused in (False, True))
    plain, fused = ([twin.step(images, *masks, 1e-3, 0.04, 0.9) for _ in "ab"] for twin in twins)
    assert plain == pytest.approx(fused, rel=1e-5) and plain[1] < plain[0]


def test_three_steps_of_the_twin_are_three_of_ours(bench, config):
    depths = config.encoder.depth, config.predictor.depth
    twin = make_twin(bench, config)

    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    objective, spec = objectives.build(config), train_state.batch_spec(config)
    state = train_state.create(config, objective, spec, mesh)
    start = jax.tree.map(jax.numpy.array, parameters(twin, depths))
    target = jax.tree.map(jax.numpy.array, start["encoder"])  # a buffer of its own: it is donated
    state = replace(state, params=start, target=target)
    step = make_step(config, objective, mesh, train_state.abstract(config, objective, spec, mesh))

    batch = bench.stepping.make_batch(config)
    images = batch["image"].astype(np.float32) / 127.5 - 1.0
    for number in range(STEPS):
        now = schedules.at(config, number)
        with jax.set_mesh(mesh):
            state, metrics = step(state, {}, batch | {"image": images})
        loss = twin.step(
            torch.tensor(images).permute(0, 3, 1, 2),
            torch.tensor(batch["ctx_idx"]).long(), torch.tensor(batch["tgt_idx"]).long(),
            float(now.lr), float(now.weight_decay), float(now.momentum),
        )  # fmt: skip
        assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    theirs, ours = tree.flatten(parameters(twin, depths)), tree.flatten(state.params)
    assert theirs.keys() == ours.keys()
    for name, wanted in theirs.items():
        if not name.endswith("k/bias"):  # its gradient is rounding alone, which Adam makes large
            np.testing.assert_allclose(ours[name], wanted, atol=3e-5, err_msg=name)
    moved = torch_names.encoder(
        {name: x.numpy() for name, x in twin.target.state_dict().items()}, depths[0]
    )
    for name, wanted in tree.flatten(moved).items():
        np.testing.assert_allclose(tree.flatten(state.target)[name], wanted, atol=1e-6)
