"""Fine-tuning: its rates, targets and labels by hand, and a network that learns from a copy."""

import dataclasses

import jax
import numpy as np
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.config import ConfigError
from jepa_vl.data import sources
from jepa_vl.evaluators import adam, finetune
from jepa_vl.evaluators.network import Network
from jepa_vl.models import frozen_vit
from jepa_vl.training import state as train_state
from tests.tiny import tiny

HOW = {"encoder.depth": 2, "eval.probe_steps": 3, "eval.probe_batch": 8, "eval.batch_size": 8}


@pytest.fixture(scope="module")
def model():
    config = tiny(**HOW)
    objective = objectives.build(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    state = train_state.create(config, objective, train_state.batch_spec(config), mesh)
    return objective.encoder, jax.device_get(state.target)


def network(model, devices: int, **values) -> Network:
    config = tiny(**{**HOW, **values})
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    return Network(config, model[0], mesh, *sources.open_sources(config))


def test_learning_rates_fall_by_a_quarter_a_layer_from_the_head_down(model):
    scales = finetune.layer_scales({"encoder": model[1], "head": {"bias": np.zeros(2)}}, depth=2)
    encoder = scales["encoder"]
    assert scales["head"]["bias"] == 1.0 and set(encoder["norm"].values()) == {1.0}
    assert set(jax.tree.leaves(encoder["block_1"])) == {0.75}
    assert set(jax.tree.leaves(encoder["block_0"])) == {0.75**2}
    assert encoder["patch_kernel"] == encoder["patch_bias"] == 0.75**3


def test_positions_and_class_token_of_a_tower_are_its_lowest_layer_and_do_not_decay():
    shape = frozen_vit.shape_of(tiny(**HOW).encoder)._replace(cls=1, mean=(0.5,) * 3)
    tower = frozen_vit.FrozenViT(shape)
    params = {"encoder": frozen_vit.expected(shape)}
    scales = finetune.layer_scales(params, depth=2)["encoder"]
    assert scales["position"] == scales["cls"] == scales["patch_kernel"] == 0.75**3
    strengths = finetune.decays(params)["encoder"]
    assert strengths["position"] == strengths["cls"] == 0.0 < strengths["patch_kernel"]
    grey = np.full((1, 2, 2, 3), 127.5, np.float32).astype(np.uint8)
    assert np.abs(finetune.seen(tower, grey)).max() < 0.02  # by its own mean


def test_smoothed_targets_and_their_loss_are_torchs():
    torch = pytest.importorskip("torch")
    labels = np.array([0, 3, 1])
    logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    ours = -np.sum(finetune.targets(labels, 4, 1.0) * jax.nn.log_softmax(logits), axis=1).mean()
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), label_smoothing=0.1
    )
    assert ours == pytest.approx(theirs.item(), rel=1e-5)
    mixed = np.asarray(finetune.targets(labels, 4, 0.7))
    np.testing.assert_allclose(mixed[0], [0.7 * 0.9 + 0.025, 0.3 * 0.9 + 0.025, 0.025, 0.025])
    np.testing.assert_allclose(mixed.sum(axis=1), 1.0, rtol=1e-6)


def test_adam_with_a_rate_for_each_leaf_is_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=(3, 2)).astype(np.float32) for name in "ab"}
    rates, decays = {"a": 0.1, "b": 0.01}, {"a": 0.5, "b": 0.0}
    theirs = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in params.items()}
    groups = [{"params": [theirs[n]], "lr": rates[n], "weight_decay": decays[n]} for n in "ab"]
    optimizer, moments = torch.optim.AdamW(groups), adam.start(params)
    ours = params
    for _ in range(4):
        grads = {name: rng.normal(size=(3, 2)).astype(np.float32) for name in "ab"}
        ours, moments = adam.update(ours, grads, moments, rates, decays)
        for name in "ab":
            theirs[name].grad = torch.tensor(grads[name])
        optimizer.step()
    for name in "ab":
        np.testing.assert_allclose(ours[name], theirs[name].detach(), atol=1e-5)


def test_few_labels_are_drawn_by_class():
    labels = np.repeat([0, 1, 2], [400, 120, 3])
    one = finetune.few(labels, 0, seed=0)
    assert [int(one[labels == c].sum()) for c in range(3)] == [4, 1, 1]
    five = finetune.few(labels, 5, seed=0)
    assert [int(five[labels == c].sum()) for c in range(3)] == [5, 5, 3]
    assert not np.array_equal(one, finetune.few(labels, 0, seed=1))


def test_a_copy_is_trained_alike_on_one_device_and_eight_and_what_was_given_stays(model):
    before = jax.tree.map(np.copy, model[1])
    found, tuned = [], []
    for devices in (1, 8):
        net = network(model, devices)
        evaluator = finetune.Finetune(net.config, net)
        found.append(evaluator.measure(model[1]))
        labels = np.arange(16) % 3
        tuned.append(jax.device_get(evaluator.tune(model[1], np.arange(16), labels, 3)))
    for a, b in zip(*map(jax.tree.leaves, tuned), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(model[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    moved = np.abs(tuned[0]["encoder"]["patch_kernel"] - before["patch_kernel"]).max()
    assert moved > 0 and np.abs(tuned[0]["head"]["kernel"]).max() > 0
    assert found[0].hits["accuracy"].shape == (1, 16) and found[0].scores["images"] == 32


class Colours:
    """Reddish and bluish squares, noise on top, the label which of both."""

    classes, name, fingerprint, labels = ("red", "blue"), "colours", "0", np.arange(40) % 2

    def __len__(self) -> int:
        return 40

    @property
    def keys(self) -> list[str]:
        return [str(i) for i in range(40)]

    def __getitem__(self, index: int) -> dict:
        image = np.random.default_rng(index).integers(60, 120, (40, 40, 3)).astype(np.uint8)
        image[..., 2 * (index % 2)] += 100
        return {"image": image, "captions": [], "label": index % 2, "key": str(index)}


def test_colours_are_learnt_in_thirty_steps(model, monkeypatch):
    faster = dataclasses.replace(finetune.FULL, rate=0.05)
    monkeypatch.setattr(finetune.Finetune, "recipe", faster)
    net = network(model, 1, **{"eval.probe_steps": 30})
    net.train = net.held_out = Colours()
    found = finetune.Finetune(net.config, net).measure(model[1])
    assert found.scores["accuracy"] > 0.95 > found.baselines["majority"]["accuracy"]


def test_few_labels_are_few_and_an_encoder_without_blocks_is_one_line(model):
    net = network(model, 1, **{"eval.shots": 1})
    evaluator = finetune.FinetuneLow(net.config, net)
    found = evaluator.measure(model[1])
    assert found.scores["images"] <= 8 and evaluator.protocol["labels"] == "1 a class"
    assert evaluator.protocol["mixup"] == 0.0
    net.encoder = object()
    with pytest.raises(ConfigError, match="needs an encoder that is a ViT"):
        finetune.Finetune(net.config, net)
