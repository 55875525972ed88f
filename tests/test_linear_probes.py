"""Linear probes against torch, numpy and scikit-learn, and on networks of any mesh."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.config import ConfigError
from jepa_vl.data import sources
from jepa_vl.evaluators import REGISTRY, crops, heads, linear, subject
from jepa_vl.evaluators.base import Features
from jepa_vl.evaluators.network import Network
from jepa_vl.schema import MeshConfig
from jepa_vl.training import state as train_state
from tests.test_probes import blobs
from tests.tiny import tiny

STEPS = 7


def plan(**how) -> heads.Plan:
    values = {"steps": STEPS, "batch": 10, "factor": linear.cosine, "lars": False, "eps": 1e-6}
    return heads.Plan(**{**values, "seed": 0, **how})


def problem(count: int = 32, views: int = 3):
    """Features [n, V, 12] of noisy views of clouds, and their labels."""
    x, labels = blobs(count // 4, 1.0, classes=4)
    noise = np.random.default_rng(1).normal(size=(len(x), views, x.shape[1]))
    return (3 * x[:, None] + 0.3 * noise + 1).astype(np.float32), labels


def steps_of(x: np.ndarray, p: heads.Plan):
    """Batches and learning-rate factors, one step at a time."""
    parts = list(heads.batches(x.shape[0], x.shape[1], p))
    rows, views = (np.concatenate(column) for column in zip(*parts, strict=True))
    for step, (row, view) in enumerate(zip(rows, views, strict=True)):
        yield row, view, p.factor(step / p.steps)


def test_heads_are_what_torch_trains_one_by_one():
    torch = pytest.importorskip("torch")
    x, labels = problem()
    p = plan(eps=1e-5)
    grid = heads.Heads.grid((0.5, 0.01), (0.1, 0.0), (False, True))
    first = heads.start(grid, 12, 4, seed=3)
    ours = heads.train(x, labels, first, grid, p)
    test = np.random.default_rng(5).normal(size=(50, 12)).astype(np.float32) * 3
    said = heads.predict(ours, grid, test, p.eps)
    for h in range(len(grid.rate)):
        norm = torch.nn.BatchNorm1d(12, affine=False)
        head = torch.nn.Linear(12, 4)
        with torch.no_grad():
            head.weight.copy_(torch.tensor(first.weight[h].T))
            head.bias.zero_()
        weights = {"params": [head.weight], "weight_decay": float(grid.decay[h])}
        sgd = torch.optim.SGD([weights, {"params": [head.bias]}], lr=1.0, momentum=0.9)
        before = norm if grid.normed[h] else torch.nn.Identity()
        for rows, views, factor in steps_of(x, p):
            for group in sgd.param_groups:
                group["lr"] = float(grid.rate[h]) * factor
            logits = head(before(torch.tensor(x[rows, views])))
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[rows]))
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        np.testing.assert_allclose(ours.weight[h].T, head.weight.detach(), atol=2e-5)
        np.testing.assert_allclose(ours.bias[h], head.bias.detach(), atol=2e-5)
        if grid.normed[h]:
            np.testing.assert_allclose(ours.mean, norm.running_mean, atol=1e-5)
            np.testing.assert_allclose(ours.variance, norm.running_var, rtol=1e-5)
        expected = head(before.eval()(torch.tensor(test))).argmax(dim=1)
        np.testing.assert_array_equal(said[h], expected)


def test_lars_scales_the_step_of_matrices_by_their_norm_and_leaves_biases_alone():
    """On eight devices, two images of each batch on each."""
    x, labels = problem()
    p = plan(lars=True, batch=16)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices())
    grid = heads.Heads.grid((20.0,), (0.0005,), (True,))
    first = heads.start(grid, 12, 4, seed=3)
    ours = heads.train(x, labels, first, grid, p, mesh)
    w, b = first.weight[0].astype(np.float64), np.zeros(4)
    fast, slow = np.zeros_like(w), np.zeros_like(b)
    for rows, views, factor in steps_of(x, p):
        now = x[rows, views].astype(np.float64)
        now = (now - now.mean(axis=0)) / np.sqrt(now.var(axis=0) + p.eps)
        share = np.exp(now @ w + b)
        share /= share.sum(axis=1, keepdims=True)
        share[np.arange(len(rows)), labels[rows]] -= 1
        slope = now.T @ share / len(rows) + 0.0005 * w
        trust = 0.001 * np.linalg.norm(w) / np.linalg.norm(slope)
        fast = 0.9 * fast + trust * slope
        slow = 0.9 * slow + share.mean(axis=0)
        w, b = w - 20 * factor * fast, b - 20 * factor * slow
    np.testing.assert_allclose(ours.weight[0], w, atol=1e-5)
    np.testing.assert_allclose(ours.bias[0], b, rtol=1e-4, atol=1e-4)


def test_at_convergence_heads_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.linear_model")
    x, labels = blobs(15, 2.0)
    p = plan(steps=4000, batch=len(x), factor=lambda progress: 1.0)
    decays = (0.3, 0.03)
    grid = heads.Heads.grid((0.2,), decays, (False,))
    seen = x.astype(np.float32)[:, None]
    ours = heads.train(seen, labels, heads.start(grid, 12, 3, 0), grid, p)
    for h, decay in enumerate(decays):
        model = sklearn.LogisticRegression(C=1 / (decay * len(x)), tol=1e-10, max_iter=10_000)
        model.fit(x, labels)
        np.testing.assert_allclose(ours.weight[h].T, model.coef_, atol=2e-4)


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (linear.tenfold_down, {0: 1, 14.9: 1, 15.1: 0.1, 30.1: 0.01, 49: 0.001}),
        (linear.cosine, {0: 1, 25: 0.5, 50: 0}),
        (linear.warm_cosine, {0: 0, 25 / 9: 0.5, 50 / 9: 1, 250 / 9: 0.5, 50: 0}),
    ],
)
def test_schedules_are_those_of_the_papers(schedule, points):
    for epoch, factor in points.items():  # of 50
        assert schedule(epoch / 50) == pytest.approx(factor, abs=1e-6)


def test_an_epoch_shows_every_image_once_and_a_batch_is_no_larger_than_the_data():
    rows, views = next(heads.batches(20, 3, plan(steps=8, batch=5)))
    assert sorted(rows[:4].ravel()) == sorted(rows[4:].ravel()) == list(range(20))
    assert set(views.ravel()) == {0, 1, 2}
    probe = recipe("mae_lars", **{"eval.probe_steps": 0})
    assert dataclasses.astuple(probe.plan(12))[:2] == (90, 12)
    assert recipe("mae_lars", **{"eval.probe_steps": 7}).plan(40_000).steps == 7
    assert recipe("dinov2_sgd", **{"eval.probe_steps": 0}).plan(40_000).steps == 12_500


class _Blind:
    """A network that nothing is read of."""

    depth, mesh = 4, None


NAMES = tuple(linear.RECIPES)


def cropped(spread: float, width: int = 48) -> crops.Cropped:
    """Clouds as features of four layers; two views an image."""
    train, labels = blobs(30, spread, width=width)
    test, test_labels = blobs(20, spread, seed=1, width=width)
    views = np.stack([train, train + 0.01], axis=1).astype(np.float32)
    parts = Features(train.astype(np.float32), labels, test.astype(np.float32), test_labels)
    return crops.Cropped(views, parts)


def recipe(name: str, faster: float = 1.0, **values) -> Any:
    """A probe of features that are there: its network is never read."""
    probe: Any = REGISTRY[name](tiny(**{"eval.probe_steps": 200, **values}), _Blind())
    probe.grid = probe.grid._replace(rate=probe.grid.rate * np.float32(faster))
    return probe


def judge(name: str, found: crops.Cropped, **values):
    """LARS has 200 steps here and thousands on ImageNet: it gets larger ones."""
    faster = 1.0 if name == "dinov2_sgd" else 1000.0
    return recipe(name, faster, **values).judge(found)


@pytest.mark.parametrize("name", NAMES)
def test_recipes_solve_what_is_separable_and_guess_where_there_is_no_signal(name):
    clear = judge(name, cropped(0.05), **{"eval.probe_batch": 30})
    assert clear.scores["accuracy"] == clear.scores["accuracy_best_on_test"] == 1.0
    right = clear.hits["accuracy"]
    assert right.shape == (1, 60) and right.dtype == bool
    assert clear.baselines["majority"]["accuracy"] == pytest.approx(1 / 3)
    noise = np.random.default_rng(0)
    blind = cropped(0.05)
    blind = crops.Cropped(
        noise.normal(size=blind.views.shape).astype(np.float32),
        dataclasses.replace(
            blind.centres,
            train=noise.normal(size=blind.centres.train.shape),
            held_out=noise.normal(size=blind.centres.held_out.shape),
        ),
    )
    guess = judge(name, blind, **{"eval.probe_batch": 30}).scores["accuracy"]
    assert abs(guess - 1 / 3) < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_no_choice_is_made_on_the_held_out_part(name):
    found = cropped(4.0)
    other = dataclasses.replace(
        found.centres, held_out_labels=np.roll(found.centres.held_out_labels, 7)
    )
    before, after = (
        judge(name, crops.Cropped(found.views, centres)).scores
        for centres in (found.centres, other)
    )
    for key in before.keys() - {"accuracy", "accuracy_best_on_test"}:
        assert before[key] == after[key]
    assert before["accuracy"] <= before["accuracy_best_on_test"]
    assert ("accuracy_chosen_on" in before) == (name != "mae_lars")


def test_a_class_that_only_the_held_out_part_has_counts_as_wrong_and_a_lone_image_is_one_line():
    found = cropped(0.05)
    odd = np.where(found.centres.held_out_labels == 2, 9, found.centres.held_out_labels)
    strange = crops.Cropped(found.views, dataclasses.replace(found.centres, held_out_labels=odd))
    scores = judge("mae_lars", strange).scores
    assert scores["accuracy"] == pytest.approx(2 / 3)
    c = found.centres
    lone = Features(c.train[:1], c.train_labels[:1], c.held_out, c.held_out_labels)
    with pytest.raises(ConfigError, match="two images of a class"):
        judge("dinov2_sgd", crops.Cropped(found.views[:1], lone))
    assert judge("mae_lars", crops.Cropped(found.views[:1], lone)).scores["accuracy"] <= 1


@pytest.fixture(scope="module")
def model():
    config = tiny(**{"encoder.depth": 2})
    objective = objectives.build(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    state = train_state.create(config, objective, train_state.batch_spec(config), mesh)
    return objective.encoder, jax.device_get(state.target)


def network(model, devices: int, **values) -> Network:
    config = tiny(**{"encoder.depth": 2, "eval.train_images": 45, "eval.val_images": 30, **values})
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    return Network(config, model[0], mesh, *sources.open_sources(config))


def test_numbers_depend_neither_on_the_batch_nor_on_the_devices(model):
    """Of forward passes; each has a ragged last one."""
    found = []
    for size, devices in ((7, 1), (64, 1), (7, 8)):
        net = network(model, devices, **{"eval.batch_size": size, "eval.crops": 2})
        read = crops.read(net, lambda x, n=net: n.pooled(model[1], x, 2))
        probe = linear.IJepaVissl(net.config, net)
        assert probe.layers == [1, 2]  # as many as there are
        found.append((read, probe.judge(read)))
    (first, one), *others = found
    assert first.views.shape == (45, 2, 64) and first.centres.held_out.shape == (30, 64)
    for other, measured in others:
        np.testing.assert_allclose(first.views, other.views, atol=1e-5)
        np.testing.assert_allclose(first.centres.held_out, other.centres.held_out, atol=1e-5)
        assert measured.scores == one.scores
        np.testing.assert_array_equal(measured.hits["accuracy"], one.hits["accuracy"])


def test_raw_pixels_are_the_one_layer_of_a_floor():
    config = tiny(**{"eval.probe_steps": 3, "eval.crops": 1})
    images = subject.Images(config)
    floor = subject.pixels(config, images, subject.local_mesh())
    assert all(floor.serves(name) for name in NAMES)
    measured, protocol = floor.measure("dinov2_sgd")
    assert protocol["layers"] == [1] and protocol["heads"] == 13
    assert 0 <= measured.scores["accuracy"] <= measured.scores["accuracy_best_on_test"] <= 1


def test_crops_differ_by_view_come_again_and_half_of_them_are_mirrored(model):
    net = network(model, 1)
    looks = [[crops.crop(v, net.config, net.train, i)[1] for v in range(2)] for i in range(2)]
    again = crops.crop(1, net.config, net.train, 0)[1]
    np.testing.assert_array_equal(again, looks[0][1])
    assert len({image.tobytes() for row in looks for image in row}) == 4
    assert looks[0][0].shape == (32, 32, 3)
    centre = network(model, 1, **{"eval.crops": 0})
    read = crops.read(centre, lambda x: centre.pooled(model[1], x))
    np.testing.assert_array_equal(read.views[:, 0], read.centres.train)
    assert linear.MaeLars(centre.config, centre).protocol["training_images"] == "centres"


def test_the_whole_protocol_is_plain_and_measure_is_deterministic(model):
    net = network(model, 1, **{"eval.crops": 1, "eval.probe_steps": 5})
    probe = linear.DinoV2Sgd(net.config, net)
    assert json.loads(json.dumps(probe.protocol)) == probe.protocol
    assert (
        probe.protocol["heads"] == 26 and probe.protocol["steps"] == "12500 steps, at most 5 steps"
    )
    assert probe.run(model[1]) == probe.run(model[1])
