"""TI-JEPA: the public code's numbers in parity mode, and that its defects are not ours."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl import objectives, tree
from jepa_vl.config import ConfigError, defaults, resolve
from jepa_vl.models.crosser import Crosser
from jepa_vl.models.layers import sincos_table
from tests import torch_names
from tests.shared import shared
from tests.test_golden_ijepa import assert_close, assert_trees_close, weights
from tests.test_step import batches
from tests.tiny import tiny


@pytest.fixture(scope="module")
def golden():
    return np.load(shared("golden/tijepa_crosser.npz"))


@pytest.fixture(scope="module")
def reference(golden):
    """The objective at the reference's sizes."""
    meta = json.loads(str(golden["meta_json"]))
    c = defaults()
    c.objective, c.frozen.image = "tijepa", "random"
    grid = round(meta["num_patches"] ** 0.5)
    c.encoder.update(image_size=8 * grid, patch_size=8, width=meta["vision_dim"], depth=1, heads=4)
    c.text.update(width=meta["text_dim"], captions=1, words=meta["text_length"])
    c.predictor.update(width=meta["predictor_dim"], depth=meta["predictor_depth"])
    c.predictor.heads = meta["predictor_heads"]
    c.tijepa.update(variant="", depth=meta["depth"], heads=meta["heads"], parity=True)
    return objectives.build(resolve(c)), meta


def ours(golden, stage, meta):
    return {
        "crosser": torch_names.crosser(weights(golden, f"{stage}/context_crosser/"), meta["depth"]),
        "predictor": torch_names.predictor(
            weights(golden, f"{stage}/predictor/"), meta["predictor_depth"]
        ),
    }


def test_crosser_prediction_loss_and_gradients_equal_the_references(golden, reference):
    objective, meta = reference
    params = ours(golden, "init", meta)
    target = torch_names.crosser(weights(golden, "init/target_crosser/"), meta["depth"])
    full, index = golden["vision_features"], golden["context_index"].astype(np.int32)
    visible = np.take_along_axis(full, index[..., None], axis=1)
    words = golden["text"], golden["text_mask"] > 0
    batch = {"ctx_idx": index, "tgt_idx": golden["target_index"][:, None].astype(np.int32)}

    def loss(p):
        aux = objective.predict(p, target, (visible, full), words, batch)
        return jnp.mean(objective.distance(aux["prediction"], aux["targets"])), aux

    with jax.default_matmul_precision("highest"):
        (value, aux), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        cross = jax.jit(objective.crosser.apply)
        context = cross({"params": params["crosser"]}, visible, *words)
        crossed = cross({"params": target}, full, *words)
    assert_close(context, golden["context_crosser_out"], 1e-5, "context")
    assert_close(crossed, golden["target_crosser_full"], 1e-5, "target crosser")
    assert_close(aux["prediction"][:, 0], golden["prediction"], 1e-5, "prediction")
    assert_close(aux["targets"][:, 0], golden["targets"], 1e-5, "targets")
    assert_close(value, golden["loss"], 1e-5, "loss")
    assert_trees_close(grads, ours(golden, "grad", meta), 1e-4, rounding=1e-8)


@functools.cache
def bench(parity=False):
    """Read-only, built once."""
    return Bench(**{"tijepa.parity": parity})


class Bench:
    """Objective, weights and one batch; biases and norms are drawn, since zeros hide mistakes."""

    def __init__(self, **overrides):
        self.config = tiny(objective="tijepa", **overrides)
        self.objective = objectives.build(self.config)
        self.batch = batches(self.config, 1)[0]
        params = jax.jit(self.objective.init)(jax.random.key(0), self.batch)
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        drawn = [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        self.params = structure.unflatten(drawn)
        self.frozen = self.objective.load_frozen()
        self.target = self.objective.target_of(self.params)
        self._loss = jax.jit(self.objective.loss)

    def loss(self, **changed):
        batch = self.batch | changed
        args = self.params, self.target, self.frozen, batch, jax.random.key(0), jnp.ones(())
        return self._loss(*args)

    def prediction(self, **changed):
        return np.asarray(self.loss(**changed)[2]["prediction"])


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("parity", [False, True])
def test_hidden_patches_reach_the_prediction_in_the_public_code_alone(parity):
    image, ctx_idx = bench(parity).batch["image"], bench(parity).batch["ctx_idx"]
    hidden = np.ones((len(image), 16), bool)
    np.put_along_axis(hidden, ctx_idx, False, axis=1)
    pixels = hidden.reshape(-1, 4, 4).repeat(8, axis=1).repeat(8, axis=2)[..., None]
    changed = np.where(pixels, 255 - image, image)
    own, other = bench(parity).prediction(), bench(parity).prediction(image=changed)
    assert np.array_equal(own, other) is not parity


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("parity", [False, True])
def test_trap_46_padding_changes_words_in_the_public_code_alone(parity):
    one, padding = bench(parity), ((0, 0), (0, 0), (0, 3))
    longer = {name: np.pad(one.batch[name], padding) for name in ("word_ids", "word_mask")}
    more = Bench(**{"tijepa.parity": parity, "text.words": 15})
    more.params, more.target, more.frozen = one.params, one.target, dict(one.frozen)
    position = more.frozen["text"]["word_position"]
    # Padded words have states of their own, as those of any tower.
    extra = jnp.concatenate([position, jnp.ones((3, position.shape[1]))])
    more.frozen["text"] = more.frozen["text"] | {"word_position": extra}
    more.batch = one.batch | longer
    gap = np.max(np.abs(one.prediction() - more.prediction()))
    assert (gap > 1e-4) if parity else (gap < 1e-6)


def test_trap_46_patches_and_words_have_a_norm_each_but_in_the_public_code():
    names = [set(bench(parity).params["crosser"]["block_0"]) for parity in (False, True)]
    assert names[0] - names[1] == {"norm_text"} and not names[1] - names[0]


@pytest.mark.usefixtures("quick_compilation")
def test_an_image_without_a_caption_is_crossed_as_evaluation_does():
    one = bench()
    features = jax.jit(one.objective.features)
    absent = {name: np.zeros_like(one.batch[name]) for name in ("word_mask", "caption_mask")}
    params = one.objective.encoder_params(one.target, one.frozen)
    alone = jax.jit(one.objective.encoder.apply)({"params": params}, one.batch["image"])
    crossed = features(one.target, one.frozen, one.batch | absent)
    np.testing.assert_allclose(crossed, alone, rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(features(one.target, one.frozen, one.batch) - alone)) > 1e-2


@pytest.mark.usefixtures("quick_compilation")
def test_the_loss_trains_crosser_and_predictor_and_gives_the_target_no_gradient():
    one = bench()

    def loss(params, target):
        args = one.frozen, one.batch, jax.random.key(0), jnp.ones(())
        return one.objective.loss(params, target, *args)[0]

    grads, none = jax.jit(jax.grad(loss, argnums=(0, 1)))(one.params, one.target)
    for name, grad in tree.flatten(grads).items():  # a shift of all keys changes no softmax
        assert name.endswith("k/bias") or float(jnp.max(jnp.abs(grad))) > 0, name
    assert all(float(jnp.max(jnp.abs(g))) == 0 for g in jax.tree.leaves(none))
    assert float(one.loss()[1]["target_std"]) > 0


@pytest.mark.parametrize(
    ("variant", "width", "published"),
    [("small", 768, 29.3e6), ("small", 1024, 51.7e6), ("large", 768, 57.7e6)],
)
def test_crossers_have_the_published_number_of_parameters(variant, width, published):
    overrides = {"tijepa.variant": variant, "tijepa.depth": 0, "tijepa.heads": 0}
    overrides |= {"text.width": width, "tijepa.parity": True}
    module = Crosser(tiny(objective="tijepa", **overrides).tijepa)
    inputs = np.zeros((1, 2, 1280)), np.zeros((1, 3, width)), np.ones((1, 3), bool)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert abs(count - published) <= 0.05e6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"frozen.image": ""}, "frozen.image = '': a workdir of ours, a pretrained folder"),
        ({"tijepa.variant": "base"}, "tijepa.variant"),
        ({"tijepa.variant": "large", "tijepa.depth": 0}, "variant 'large' has 12"),
        ({"tijepa.width": 15}, "a multiple of heads = 2"),
        ({"tijepa.parity": True, "tijepa.width": 32}, "16, that of the words: with parity"),
        ({"text.frozen": "no"}, "text.frozen = 'no': objective 'tijepa' allows 'yes' alone"),
    ],
)
def test_bad_values_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        objectives.build(tiny(objective="tijepa", **overrides))


@pytest.mark.usefixtures("quick_compilation")
def test_frozen_towers_come_out_of_a_run_of_ours(tmp_path):
    from jepa_vl import sharding
    from jepa_vl.training import state as train_state
    from jepa_vl.training.checkpoint import Checkpoints, provenance

    config = tiny(seed=3, **{"mesh.data": 1})
    objective = objectives.build(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    state = train_state.create(config, objective, train_state.batch_spec(config), mesh)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, 5, {}, provenance(config))
    checkpoints.close()
    named = {"frozen.image": str(tmp_path), "frozen.text": str(tmp_path)}
    frozen = objectives.build(tiny(objective="tijepa", **named)).load_frozen()
    np.testing.assert_array_equal(frozen["image"].pop("position"), sincos_table(32, 4))
    jax.tree.map(np.testing.assert_array_equal, frozen["image"], state.target)
    jax.tree.map(np.testing.assert_array_equal, frozen["text"], state.params["text"])
    for changed, message in (
        ({"encoder.depth": 2}, r"frozen.image.*encoder.depth = 2 \(there: 1\)$"),
        ({"text.width": 8}, r"(?s)frozen.text.*no text tower that fits.*misshapen word_embedding"),
        ({"frozen.image": str(tmp_path / "nowhere")}, "no such folder"),
        ({"frozen.text": str(tmp_path / "checkpoints")}, "holds no finished checkpoint"),
    ):
        with pytest.raises(ConfigError, match=message):
            objectives.build(tiny(objective="tijepa", **named | changed)).load_frozen()
