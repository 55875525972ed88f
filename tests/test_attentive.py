"""Attentive probes: the module against torch, and what averages do not tell."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.data import sources
from jepa_vl.evaluators import attentive, crops, linear
from jepa_vl.evaluators.base import Features
from jepa_vl.evaluators.network import Network
from jepa_vl.models import attentive as module
from jepa_vl.schema import MeshConfig
from jepa_vl.training import state as train_state
from tests.tiny import tiny


@pytest.mark.parametrize("blocks", [0, 3])
def test_the_probe_is_what_torch_makes_of_the_same_weights(blocks):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    probe = module.Attentive(5, blocks, 4)
    params = module.start(probe, 9, 16, seed=0)
    leaves, shape = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    params: Any = shape.unflatten([rng.normal(0, 0.3, leaf.shape) for leaf in leaves])
    tokens = rng.normal(size=(3, 9, 16))

    def dense(p, x):
        return f.linear(x, torch.tensor(p["kernel"]).T, torch.tensor(p["bias"]))

    def norm(p, x):
        return f.layer_norm(x, (16,), torch.tensor(p["scale"]), torch.tensor(p["bias"]), 1e-6)

    def attend(p, q, x):
        parts = [dense(p[n], y).unflatten(-1, (4, 4)).transpose(1, 2)
                 for n, y in (("q", q), ("k", x), ("v", x))]  # fmt: skip
        return f.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)

    def mlp(p, x):
        return dense(p["fc2"], f.gelu(dense(p["fc1"], x)))

    x = torch.tensor(tokens)
    for i in range(blocks):
        p = params[f"block_{i}"]
        y = norm(p["norm1"], x)
        x = x + dense(p["attn"]["out"], attend(p["attn"], y, y))
        x = x + mlp(p["mlp"], norm(p["norm2"], x))
    p = params["cross"]
    q = torch.tensor(params["query"]).expand(3, 1, 16)
    q = q + attend(p, q, norm(p["norm1"], x))
    q = q + mlp(p["mlp"], norm(p["norm2"], q))
    expected = dense(params["head"], q[:, 0])
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    found = module.apply(probe, single, jnp.asarray(tokens, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-4)


def marked(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n, 8, 16]: half hold +1, half -1; the label is what the one marked token holds."""
    rng = np.random.default_rng(seed)
    values = rng.permuted(np.tile([1.0, -1.0], (count, 4)), axis=1)
    place = rng.integers(8, size=count)
    tokens = np.zeros((count, 8, 16), np.float32)
    tokens[..., 0] = values
    tokens[np.arange(count), place, 1] = 1.0
    return tokens, (values[np.arange(count), place] > 0).astype(int)


class _Blind:
    depth, mesh = 1, None


def planted() -> crops.Cropped:
    train, labels = marked(160, 0)
    test, test_labels = marked(80, 1)
    return crops.Cropped(train[:, None], Features(train, labels, test, test_labels))


def judge(name: type, found: crops.Cropped, **values) -> Any:
    values = {"encoder.width": 16, "eval.probe_steps": 200, "eval.probe_batch": 8, **values}
    return name(tiny(**values), _Blind()).judge(found)  # pyright: ignore[reportCallIssue]


def test_attention_solves_what_no_average_tells(monkeypatch):
    monkeypatch.setattr(attentive, "RATES", (2e-3, 4e-3))
    monkeypatch.setattr(attentive, "DECAYS", (0.001,))
    found = planted()
    one = judge(attentive.OneBlock, found)
    assert one.scores["accuracy"] > 0.95 and one.hits["accuracy"].shape == (1, 80)
    assert one.scores["accuracy"] <= one.scores["accuracy_best_on_test"]
    assert one.scores["learning_rate"] in attentive.RATES
    c = found.centres
    mean = Features(c.train.mean(1), c.train_labels, c.held_out.mean(1), c.held_out_labels)
    pooled = judge(linear.DinoV2Sgd, crops.Cropped(found.views.mean(axis=2), mean))
    assert pooled.scores["accuracy"] < 0.65


def test_heads_trained_together_on_eight_devices_are_heads_trained_alone_on_one(
    quick_compilation,
):
    found, mesh = planted(), sharding.make_mesh(MeshConfig(), jax.devices())
    views, labels = found.views[:24], found.centres.train_labels[:24]
    probe = module.Attentive(2, 0, 4)
    plan = attentive.heads.Plan(6, 8, linear.cosine, False, 0.0, 0)
    grid = [(1e-3, 0.01), (5e-3, 0.0)]
    both = attentive.train(probe, views, labels, grid, plan, mesh)
    for i, one in enumerate(grid):
        alone = attentive.train(probe, views, labels, [one], plan)
        for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b[0], atol=1e-4)


def test_rates_rise_from_the_start_for_a_quarter_and_fall_to_nothing():
    points = {0.0: 2e-4, 0.125: 6e-4, 0.25: 1e-3, 0.625: 5e-4, 1.0: 0.0}
    for progress, expected in points.items():
        assert attentive.rate(1e-3, progress) == pytest.approx(expected)


def test_the_whole_path_from_images_and_the_twenty_heads_of_its_protocol(quick_compilation):
    how = {"eval.crops": 1, "eval.probe_steps": 2, "eval.probe_batch": 8, "eval.batch_size": 7}
    config = tiny(**how)
    objective = objectives.build(config)
    mesh = sharding.make_mesh(config.mesh)
    state = train_state.create(config, objective, train_state.batch_spec(config), mesh)
    net = Network(config, objective.encoder, mesh, *sources.open_sources(config))
    evaluator = attentive.OneBlock(config, net)
    found = evaluator.measure(state.target)
    assert evaluator.protocol["heads"] == len(evaluator.grid) == 20
    assert found.hits["accuracy"].shape == (1, 16)
    assert evaluator.protocol["train"]["images"] == 32
