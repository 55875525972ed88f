"""Each kind of conditioner against an oracle, and what holds for all of them."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl import objectives, sharding, tree
from jepa_vl.config import ConfigError
from jepa_vl.models import conditioner
from jepa_vl.models.conditioner import Conditioner, Words
from jepa_vl.models.conditioner.adaln import AdaLN
from jepa_vl.models.conditioner.base import register
from jepa_vl.models.conditioner.caption_attention import CaptionAttention
from jepa_vl.models.conditioner.feature import Feature
from jepa_vl.models.conditioner.fusion import FUSIONS, AttentionFusion
from jepa_vl.models.conditioner.sequence import WordSequence
from jepa_vl.models.conditioner.word_attention import WordAttention
from jepa_vl.models.layers import Block, LayerNorm, Mlp
from jepa_vl.models.predictor import Predictor
from jepa_vl.schema import ConditionerConfig, PredictorConfig
from jepa_vl.training import state as train_state
from tests.test_step import Bench, batches
from tests.tiny import tiny

# For formulas on a few numbers.
pytestmark = pytest.mark.usefixtures("quick_module")

B, M, K, C, N, S, P, E, D, GRID = 2, 2, 3, 2, 3, 4, 8, 6, 12, 4
T = K + C
KINDS = sorted(conditioner.CONDITIONERS.keys() - {"none"})
CAPTION_MASK = np.array([[True, True, True], [True, False, False]])
WORD_MASK = np.arange(S) < np.array([[4, 2, 1], [3, 3, 4]])[..., None]
WORDS = Words(
    np.random.default_rng(0).normal(size=(B, N, S, E)).astype(np.float32), WORD_MASK, CAPTION_MASK
)


def randomised(params, spread=0.5):
    """Random everything: zero biases and unit scales would hide swaps."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    drawn = [(spread * rng.normal(size=x.shape)).astype(np.float32) for x in leaves]
    return structure.unflatten(drawn)


def tokens(seed=1):
    return np.random.default_rng(seed).normal(size=(B, M, T, P)).astype(np.float32)


def _apply(model, *args):
    return model.apply(*args)


def predict(words=WORDS, depth=2, params=None, **config):
    """Prediction, readings and parameters of a small predictor."""
    model = Predictor(
        grid=GRID,
        out_width=D,
        config=PredictorConfig(width=P, depth=depth, heads=2),
        conditioner=ConditionerConfig(mlp_ratio=2.0, **config),
    )
    rng = np.random.default_rng(2)
    context = rng.normal(size=(B, K, D)).astype(np.float32)
    ctx_idx = np.array([[0, 1, 5], [2, 3, 9]], np.int32)
    tgt_idx = np.array([[[10, 11], [14, 15]], [[4, 8], [12, 13]]], np.int32)
    if params is None:
        shapes = jax.eval_shape(
            lambda: model.init(jax.random.key(0), context, ctx_idx, tgt_idx, words)
        )
        params = randomised(shapes)
    # A jitted function of one model: compiled once for all words of a shape.
    apply = jax.jit(functools.partial(_apply, model))
    return *apply(params, context, ctx_idx, tgt_idx, words), params


def mean_word(b, n):
    return WORDS.states[b, n][WORD_MASK[b, n]].mean(0)


def test_without_words_every_kind_is_the_plain_predictor():
    plain, reading, params = predict(None, kind="none")
    assert reading is None and not any(name.startswith("cond") for name in params["params"])
    for kind in KINDS:
        again, reading, _ = predict(None, params=params, kind=kind)
        np.testing.assert_array_equal(plain, again)
        assert reading is None


def test_a_new_kind_is_one_file():
    """A subclass under ``register`` is accepted by its name, with the settings that it reads."""

    @register("shift")
    class Shift(Conditioner):
        settings = ("fusion",)
        at_input = True

        def prepare(self, x, valid, words):
            return x.at[..., 0].add(1.0), valid

    try:
        objectives.build(tiny(**{"conditioner.kind": "shift", "conditioner.fusion": "mean"}))
        with pytest.raises(ConfigError, match=r"conditioner\.layers = 'one'"):
            objectives.build(tiny(**{"conditioner.kind": "shift", "conditioner.layers": "one"}))
        shifted, reading, params = predict(kind="shift")
        plain, _, _ = predict(None, params=params, kind="none")
        assert reading is None and not np.allclose(shifted, plain)
    finally:
        del conditioner.CONDITIONERS["shift"]
    files = {path.stem for path in Path(str(conditioner.__file__)).parent.glob("*.py")}
    assert set(KINDS) <= files  # a file of the folder is found without being listed


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_at_missing_captions_and_padding_has_no_effect_bit_for_bit(kind):
    clean, reading, params = predict(kind=kind)
    absent = ~WORDS.present[..., None]
    garbage = WORDS._replace(states=np.where(absent, 1e3, WORDS.states).astype(np.float32))
    again, reading_again, _ = predict(garbage, params=params, kind=kind)
    np.testing.assert_array_equal(clean, again)
    for a, b in zip(jax.tree.leaves(reading), jax.tree.leaves(reading_again), strict=True):
        np.testing.assert_array_equal(a, b)
    without, _, _ = predict(WORDS._replace(states=-WORDS.states), params=params, kind=kind)
    assert float(jnp.max(jnp.abs(clean - without))) > 1e-3  # the text is read


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_and_none_reaches_missing_captions(kind):
    params = predict(kind=kind)[-1]
    nothing = np.zeros((1, N), bool)
    words = WORDS._replace(caption_mask=np.concatenate([CAPTION_MASK[:1], nothing]))

    def total(p, states):
        y, reading, _ = predict(words._replace(states=states), params=p, kind=kind)
        return jnp.sum(y**2) + sum(jnp.sum(r) for r in jax.tree.leaves(reading))

    by_params, by_states = jax.jit(jax.grad(total, argnums=(0, 1)))(params, WORDS.states)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((by_params, by_states)))
    assert np.all(np.asarray(by_states)[~words.present] == 0)
    assert np.all(np.any(np.asarray(by_states)[0, 0] != 0, axis=-1))


@pytest.mark.parametrize("kind", ["word_attention", "caption_attention", "adaln", "feature"])
@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_order_of_captions_and_further_missing_ones_change_nothing(kind, fusion):
    clean, _, params = predict(kind=kind, fusion=fusion)
    order = [2, 0, 1, 0]
    exists = np.array([True, True, True, False])
    turned = Words(WORDS.states[:, order], WORD_MASK[:, order], CAPTION_MASK[:, order] & exists)
    again = predict(turned, params=params, kind=kind, fusion=fusion)[0]
    np.testing.assert_allclose(clean, again, atol=2e-5)


def test_a_sequence_does_not_depend_on_the_order_of_captions():
    clean, _, params = predict(kind="sequence")
    order = [2, 0, 1]
    turned = Words(WORDS.states[:, order], WORD_MASK[:, order], CAPTION_MASK[:, order])
    np.testing.assert_allclose(predict(turned, params=params, kind="sequence")[0], clean, atol=2e-5)


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_fusion_equals_its_formula_and_is_zero_without_captions(fusion):
    read = np.random.default_rng(3).normal(size=(2, 5, N, P)).astype(np.float32)
    mask = np.array([[True, False, True], [False, False, False]])
    query = np.linspace(-1, 2, P).astype(np.float32)
    if fusion == "attention":
        fused = AttentionFusion().apply({"params": {"query": query}}, read, mask)
    else:
        fused = FUSIONS[fusion]()(read, mask)
    there = read[0][:, mask[0]].astype(np.float64)  # [R, 2, P]
    scores = np.exp(there @ query / np.sqrt(P))
    weights = scores / scores.sum(-1, keepdims=True)
    expected = {
        "max": there.max(1),
        "mean": there.mean(1),
        "attention": (there * weights[..., None]).sum(1),
    }[fusion]
    np.testing.assert_allclose(fused[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fused[1], 0)


@pytest.mark.parametrize("fusion", ["max", "mean"])
@pytest.mark.parametrize("pool", ["before_mlp", "after_mlp"])
def test_captions_are_fused_before_or_after_the_mlp(fusion, pool):
    x = tokens().reshape(B, M * T, P)
    module = WordAttention(mlp_ratio=2.0, fusion=fusion, pool=pool)
    params = randomised(module.init(jax.random.key(0), x, WORDS)["params"])
    y, _ = module.apply({"params": params}, x, WORDS)
    w_q, w_k, w_v = (np.asarray(params[n]["kernel"]) for n in "qkv")

    def finish(z):
        z = jnp.asarray(z)
        z = z + Mlp(2 * P).apply({"params": params["mlp"]}, z)
        return np.asarray(LayerNorm().apply({"params": params["norm"]}, z))

    over = {"max": np.max, "mean": np.mean}[fusion]
    for b in range(B):
        candidates = []
        for n in np.flatnonzero(CAPTION_MASK[b]):
            t = WORDS.states[b, n][WORD_MASK[b, n]]
            logits = (x[b] @ w_q) @ (t @ w_k).T
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            candidates.append(x[b] + weights / weights.sum(-1, keepdims=True) @ (t @ w_v))
        if pool == "before_mlp":
            expected = finish(over(candidates, axis=0))
        else:
            expected = over([finish(c) for c in candidates], axis=0)
        np.testing.assert_allclose(y[b], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["before_mlp", "after_mlp"])
def test_without_an_mlp_a_layernorm_follows_what_was_read(pool):
    """The same numbers as with an MLP that says 0, and no parameters for it."""
    x, rows = tokens().reshape(B, M * T, P), WORDS
    bare, full = (WordAttention(mlp_ratio=ratio, pool=pool) for ratio in (0.0, 2.0))
    params = randomised(jax.eval_shape(full.init, jax.random.key(0), x, rows))["params"]
    silent = params | {"mlp": jax.tree.map(np.zeros_like, params["mlp"])}
    without = {name: leaf for name, leaf in params.items() if name != "mlp"}
    assert bare.init(jax.random.key(0), x, rows)["params"].keys() == without.keys()
    found = bare.apply({"params": without}, x, rows)
    expected = full.apply({"params": silent}, x, rows)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_reads_by_its_mlp_needs_one():
    keys = {"conditioner.mlp_ratio": 0.0, "conditioner.scale_logits": False}
    with pytest.raises(ConfigError, match=r"conditioner\.mlp_ratio = 0\.0: above 0 with kind"):
        objectives.build(tiny(**{"conditioner.kind": "feature", **keys}))


def test_after_the_mlp_an_image_without_captions_still_reads_nothing():
    x = tokens().reshape(B, M * T, P)
    module = WordAttention(mlp_ratio=2.0, pool="after_mlp")
    params = module.init(jax.random.key(0), x, WORDS)["params"]
    nothing = WORDS._replace(caption_mask=np.zeros((B, N), bool))
    y, _ = module.apply({"params": params}, x, nothing)
    mlp = Mlp(2 * P).apply({"params": params["mlp"]}, jnp.asarray(x))
    expected = LayerNorm().apply({"params": params["norm"]}, x + mlp)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_caption_attention_adds_the_value_of_the_mean_word():
    x = tokens()
    module = CaptionAttention(mlp_ratio=2.0)
    params = randomised(module.init(jax.random.key(0), x, None, WORDS, method="read")["params"])
    y, reading = module.apply({"params": params}, x, None, WORDS, method="read")
    w_q, w_k, w_v = (np.asarray(params[n]["kernel"]) for n in "qkv")
    assert reading.similarity.shape == (B, M, T, N, 1)
    for b in range(B):
        there = np.flatnonzero(CAPTION_MASK[b])
        z = jnp.asarray(x[b] + np.max([mean_word(b, n) @ w_v for n in there], axis=0))
        z = z + Mlp(2 * P).apply({"params": params["mlp"]}, z)
        expected = LayerNorm().apply({"params": params["norm"]}, z)
        np.testing.assert_allclose(y[b], expected, rtol=1e-4, atol=1e-4)
        for n in there:
            q, key = x[b] @ w_q, mean_word(b, n) @ w_k
            cosine = q @ key / np.linalg.norm(q, axis=-1) / np.linalg.norm(key)
            np.testing.assert_allclose(
                reading.similarity[b, :, :, n, 0], np.maximum(cosine, 0), atol=1e-5
            )


def test_adaln_scales_and_shifts_both_norms_of_a_block():
    module = AdaLN()
    params = randomised(module.init(jax.random.key(0), WORDS, P, method="modulate")["params"])
    modulation = module.apply({"params": params}, WORDS, P, method="modulate")
    kernel, bias = (np.asarray(params["modulation"][n]) for n in ("kernel", "bias"))
    for b in range(B):
        there = np.flatnonzero(CAPTION_MASK[b])
        expected = np.max([mean_word(b, n) @ kernel + bias for n in there], axis=0)
        np.testing.assert_allclose(np.concatenate(modulation, -1)[b, 0], expected, atol=1e-5)

    # LN(x) (1 + scale) + shift is an affine LayerNorm of its own for each image.
    x, block = tokens()[:, 0], Block(2, 4 * P)
    plain = randomised(block.init(jax.random.key(0), x)["params"])
    y = block.apply({"params": plain}, x, modulation=modulation)
    for b in range(B):
        own = dict(plain)
        for name, scale, shift in (("norm1", *modulation[:2]), ("norm2", *modulation[2:])):
            factor = 1 + scale[b, 0]
            own[name] = {
                "scale": plain[name]["scale"] * factor,
                "bias": plain[name]["bias"] * factor + shift[b, 0],
            }
        expected = block.apply({"params": own}, x[b : b + 1])
        np.testing.assert_allclose(y[b : b + 1], expected, rtol=1e-4, atol=1e-4)


def test_adaln_starts_as_the_unconditioned_predictor_and_stays_so_without_captions():
    fresh = AdaLN().init(jax.random.key(0), WORDS, P, method="modulate")["params"]
    started = AdaLN().apply({"params": fresh}, WORDS, P, method="modulate")
    assert all(float(jnp.max(jnp.abs(part))) == 0 for part in started)
    _, _, params = predict(kind="adaln")
    nothing = WORDS._replace(caption_mask=np.zeros((B, N), bool))
    conditioned = predict(nothing, params=params, kind="adaln")[0]
    bare = {k: v for k, v in params["params"].items() if not k.startswith("conditioner")}
    np.testing.assert_array_equal(
        conditioned, predict(None, params={"params": bare}, kind="none")[0]
    )


def test_feature_conditioning_equals_its_formula():
    x, module = tokens(), Feature(mlp_ratio=2.0)
    params = randomised(module.init(jax.random.key(0), x, None, WORDS, method="prepare")["params"])
    y, valid = module.apply({"params": params}, x, None, WORDS, method="prepare")
    assert valid is None and params["mlp"]["fc1"]["kernel"].shape == (P + E, 2 * P)
    for b in range(B):
        updates = []
        for n in np.flatnonzero(CAPTION_MASK[b]):
            caption = np.broadcast_to(mean_word(b, n), (M, T, E))
            pair = jnp.asarray(np.concatenate([x[b], caption], axis=-1))
            pair = LayerNorm().apply({"params": params["norm"]}, pair)
            updates.append(Mlp(2 * P, features=P).apply({"params": params["mlp"]}, pair))
        np.testing.assert_allclose(y[b], x[b] + np.max(updates, axis=0), rtol=1e-4, atol=1e-4)


def test_a_sequence_holds_all_words_in_front_and_masks_the_absent_ones():
    x, module = tokens(), WordSequence()
    ctx_valid = np.arange(T) != 1
    valid = np.broadcast_to(ctx_valid, (B, M, T))
    params = randomised(module.init(jax.random.key(0), x, valid, WORDS, method="prepare")["params"])
    y, known = module.apply({"params": params}, x, valid, WORDS, method="prepare")
    assert y.shape == (B, M, N * S + T, P) and known.shape == y.shape[:-1]
    np.testing.assert_array_equal(y[:, :, -T:], x)
    np.testing.assert_array_equal(known[:, 0, -T:], valid[:, 0])
    np.testing.assert_array_equal(known[:, 1, : N * S], WORDS.present.reshape(B, -1))
    embed = params["embed"]
    expected = WORDS.states[0, 1, 0] @ np.asarray(embed["kernel"]) + embed["bias"]
    np.testing.assert_allclose(y[0, 1, S], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "place"), [("word_attention", "q"), ("adaln", "modulation")])
def test_one_conditioned_layer_is_the_middle_one(kind, place):
    _, reading, params = predict(kind=kind, layers="one", depth=3)
    placed = {name for name in params["params"] if name.startswith("conditioner")}
    assert placed == {"conditioner_1"} and place in params["params"]["conditioner_1"]
    if kind == "word_attention":
        assert reading.similarity.shape == (1, B, M, T, N, S)
    assert [list(conditioner.conditioned_layers("one", d)) for d in (1, 2, 6, 12)] == [
        [0], [1], [3], [6],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_with_padded_masks_and_reads_the_words(kind):
    keys = {"conditioner.kind": kind, "masks.mode": "reference", "masks.min_keep": 0}
    keys |= {"optim.weight_decay": 0.0, "optim.final_weight_decay": 0.0, "loss.ramp_steps": 1}
    config = tiny(**keys, **{"predictor.depth": 1, "mesh.data": 1, "train.init": "fan_in"})
    bench = Bench(config)
    start = jax.tree.map(np.asarray, bench.state.params)
    metrics = bench.run(batches(config, 2))[-1]
    assert np.isfinite(list(metrics.values())).all() and metrics["bad_steps"] == 0
    assert ("loss/sparse" in metrics) == (kind in ("word_attention", "caption_attention"))
    before, after = tree.flatten(start), tree.flatten(bench.state.params)
    moved = {name for name in before if np.any(before[name] != np.asarray(after[name]))}
    reads = [name for name in before if "conditioner" in name and name.endswith("kernel")]
    assert reads and moved.issuperset(reads)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_every_kind_has_one_place_on_the_mesh(kind):
    fusion = "max" if kind == "sequence" else "attention"
    config = tiny(**{"conditioner.kind": kind, "conditioner.fusion": fusion, "mesh.fsdp": 8})
    mesh = sharding.make_mesh(config.mesh)
    spec = train_state.batch_spec(config)
    state = train_state.abstract(config, objectives.build(config), spec, mesh)
    names = [name for name in tree.flatten(state.params) if "conditioner" in name]
    assert names and all(tree.flatten(state.params)[name].sharding for name in names)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"kind": "words"}, "conditioner.kind"),
        ({"layers": "two"}, "conditioner.layers"),
        ({"fusion": "sum"}, "conditioner.fusion"),
        ({"pool": "mlp"}, "conditioner.pool"),
        ({"kind": "sequence", "fusion": "mean"}, "conditioner.fusion"),
        ({"kind": "feature", "layers": "one"}, "conditioner.layers"),
        ({"kind": "adaln", "pool": "after_mlp"}, "conditioner.pool"),
        ({"kind": "adaln", "scale_logits": True}, "conditioner.scale_logits"),
    ],
)
def test_a_setting_without_meaning_is_refused_by_name(values, key):
    with pytest.raises(ConfigError) as caught:
        objectives.build(tiny(**{f"conditioner.{name}": value for name, value in values.items()}))
    assert caught.value.key == key
