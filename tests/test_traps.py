"""Mistakes that a port of these methods invites, in the numbers of the models; one test each.

The numbers are those of the project's list of traps; ``test_traps_training.py`` has the others.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jepa_vl import objectives, tree
from jepa_vl.models import fast, vit
from jepa_vl.models.conditioner import Reading, Words
from jepa_vl.models.conditioner.similarity import paper_similarity
from jepa_vl.models.conditioner.word_attention import WordAttention
from jepa_vl.models.layers import Attention, Dense, LayerNorm, Mlp, sincos_table
from jepa_vl.models.predictor import Predictor
from jepa_vl.objectives import base, losses
from jepa_vl.schema import ConditionerConfig, EncoderConfig, PredictorConfig
from jepa_vl.training import state as train_state
from tests.tiny import tiny

# For formulas on a few numbers.
pytestmark = pytest.mark.usefixtures("quick_module")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
B, N, S, P, E = 2, 3, 4, 8, 6


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def randomised(shapes, spread=0.4):
    """Random everything: zero biases and unit scales would hide swaps."""
    leaves, structure = jax.tree.flatten(shapes)
    return structure.unflatten([spread * normal(*x.shape, seed=i) for i, x in enumerate(leaves)])


def parameters(module, *args, **kwargs):
    return randomised(jax.eval_shape(lambda: module.init(KEY, *args, **kwargs)["params"]))


def equations(jaxpr):
    """All primitive applications of a jaxpr, those of inner ones too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


def words(present=None):
    mask = np.ones((B, N, S), bool) if present is None else present
    return Words(normal(B, N, S, E), mask, mask.any(-1))


def test_trap_01_gelu_is_exact():
    x = np.linspace(-4, 4, 33).astype(np.float32)
    identity = {"kernel": np.eye(33, dtype=np.float32), "bias": np.zeros(33, np.float32)}
    y = Mlp(33).apply({"params": {"fc1": identity, "fc2": identity}}, x[None])[0]
    exact = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()])
    np.testing.assert_allclose(y, exact, atol=1e-6)
    assert np.max(np.abs(jax.nn.gelu(x) - exact)) > 1e-4  # jax's default, the approximation


def test_trap_02_layernorm_eps_is_1e_6_in_networks_and_1e_5_on_targets():
    x = (1e-3 * normal(5, 64)).astype(np.float32)  # variance 1e-6: eps decides
    centred = x - x.mean(-1, keepdims=True)
    variance = centred.astype(np.float64).var(-1, keepdims=True)
    plain = {"scale": np.ones(64, np.float32), "bias": np.zeros(64, np.float32)}
    inside, target = LayerNorm().apply({"params": plain}, x), base.TARGET_NORMS["layer_norm"](x)
    np.testing.assert_allclose(inside, centred / np.sqrt(variance + 1e-6), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(target, centred / np.sqrt(variance + 1e-5), rtol=1e-4, atol=1e-5)


def test_trap_03_layernorm_does_not_cancel_where_the_mean_is_large():
    x = (normal(8, 64) + 1000).astype(np.float32)
    exact = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-6)
    plain = {"scale": np.ones(64, np.float32), "bias": np.zeros(64, np.float32)}
    np.testing.assert_allclose(LayerNorm().apply({"params": plain}, x), exact, atol=1e-3)
    fast_variance = (x**2).mean(-1) - x.mean(-1) ** 2
    assert np.max(np.abs(np.sqrt(np.maximum(fast_variance, 0)) - 1)) > 0.01


def test_trap_04_the_position_table_has_columns_first_and_sines_before_cosines():
    table = sincos_table(8, 4).reshape(4, 4, 8)
    zero = [0, 0, 1, 1]
    for place in range(4):
        axis = [math.sin(place), math.sin(place / 100), math.cos(place), math.cos(place / 100)]
        np.testing.assert_allclose(table[0, place], [*axis, *zero], atol=1e-7)
        np.testing.assert_allclose(table[place, 0], [*zero, *axis], atol=1e-7)


def test_trap_05_patches_are_row_major_and_their_pixels_row_column_colour():
    images, kernel = normal(1, 8, 8, 3), normal(4, 4, 3, 12)
    encoder = vit.build(EncoderConfig(image_size=8, patch_size=4, width=12, depth=0, heads=1))
    params = {"patch_kernel": kernel, "patch_bias": normal(12)}
    params["norm"] = {"scale": np.ones(12, np.float32), "bias": np.zeros(12, np.float32)}
    _, stream = vit.encode_with_stream(encoder, params, images, np.arange(4)[None])
    for row in range(2):
        for column in range(2):
            window = images[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            expected = sum(
                window[y, x, c] * kernel[y, x, c]
                for y in range(4) for x in range(4) for c in range(3)
            )  # fmt: skip
            index = 2 * row + column
            expected = expected + params["patch_bias"] + sincos_table(12, 2)[index]
            np.testing.assert_allclose(stream[0, index], expected, rtol=1e-4, atol=1e-5)


def test_trap_06_heads_are_consecutive_slices_of_queries_keys_and_values():
    x, module = normal(1, 5, P), Attention(heads=2)
    params = parameters(module, x)
    q, k, v = (x[0] @ params[n]["kernel"] + params[n]["bias"] for n in "qkv")
    parts = []
    for head in (slice(0, P // 2), slice(P // 2, P)):
        weights = np.exp(q[:, head] @ k[:, head].T / math.sqrt(P // 2))
        parts.append(weights / weights.sum(-1, keepdims=True) @ v[:, head])
    out = params["out"]
    expected = np.concatenate(parts, -1) @ out["kernel"] + out["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x)[0], expected, atol=1e-5)


def test_trap_07_kernels_are_inputs_by_outputs():
    kernel = normal(6, 6)
    params = {"kernel": kernel, "bias": np.zeros(6, np.float32)}
    for i, unit in enumerate(np.eye(6, dtype=np.float32)):
        np.testing.assert_array_equal(Dense(6).apply({"params": params}, unit), kernel[i])


@pytest.fixture(scope="module")
def kernels():
    """Kernels of an encoder of twelve blocks as training starts with them."""
    encoder = vit.build(
        EncoderConfig(image_size=32, patch_size=8, width=96, depth=12, heads=3, mlp_width=384)
    )
    images = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    params = jax.jit(lambda: encoder.init(KEY, images)["params"])()
    return {name: np.asarray(x) for name, x in tree.flatten(params).items() if "kernel" in name}


def test_trap_08_kernels_have_std_002_and_are_not_truncated(kernels):
    every = np.concatenate([kernel.ravel() for kernel in kernels.values()])
    assert abs(every.std() / 0.02 - 1) < 0.01
    assert (np.abs(every) > 0.05).mean() == pytest.approx(math.erfc(2.5 / 2**0.5), rel=0.05)


def test_trap_09_output_kernels_are_not_rescaled_by_depth(kernels):
    for i in range(12):
        for name in ("mlp/fc2", "attn/out"):
            assert abs(kernels[f"block_{i}/{name}/kernel"].std() / 0.02 - 1) < 0.03


def test_trap_10_no_kernel_starts_with_an_outlier(kernels):
    assert max(np.max(np.abs(kernel)) for kernel in kernels.values()) < 0.2


def small_predictor():
    """A predictor without text, its parameters and inputs: three blocks of two tokens."""
    model = Predictor(4, 12, PredictorConfig(width=P, depth=2, heads=2), ConditionerConfig("none"))
    context, ctx_idx = normal(1, 3, 12), np.array([[0, 5, 9]], np.int32)
    tgt_idx = np.array([[[1, 2], [10, 11], [14, 15]]], np.int32)
    return model, parameters(model, context, ctx_idx, tgt_idx), context, ctx_idx, tgt_idx


def test_trap_15_each_target_block_is_a_sequence_of_its_own():
    model, params, context, ctx_idx, tgt_idx = small_predictor()
    apply = jax.jit(lambda index: model.apply({"params": params}, context, ctx_idx, index)[0])
    y, turned = apply(tgt_idx), apply(tgt_idx[:, [2, 0, 1]])
    np.testing.assert_allclose(turned, y[:, np.array([2, 0, 1])], atol=1e-5)
    np.testing.assert_allclose(apply(tgt_idx[:, :1]), y[:, :1], atol=1e-5)
    joint = apply(tgt_idx.reshape(1, 1, 6))
    assert float(jnp.max(jnp.abs(joint.reshape(y.shape) - y))) > 1e-3


def test_trap_23_padded_indices_are_zero_and_masked_whatever_they_point_at():
    encoder = vit.build(tiny().encoder)
    images, ctx_idx = normal(1, 32, 32, 3), np.array([[4, 6, 9, 0, 0]], np.int32)
    valid = np.array([[True, True, True, False, False]])
    params = parameters(encoder, images)
    apply = jax.jit(lambda index: encoder.apply({"params": params}, images, index, valid))
    other = np.where(valid, ctx_idx, 13)
    np.testing.assert_array_equal(apply(ctx_idx)[:, :3], apply(other)[:, :3])
    short = encoder.apply({"params": params}, images, ctx_idx[:, :3])
    np.testing.assert_allclose(apply(ctx_idx)[:, :3], short, atol=1e-5)


def test_trap_24_the_gradient_of_a_norm_at_zero_is_zero():
    target = normal(2, 3, P)
    grad = jax.grad(lambda z: jnp.sum(losses.l2(z, target)))(jnp.asarray(target))
    np.testing.assert_array_equal(grad, 0)
    assert np.isnan(jax.grad(jnp.linalg.norm)(jnp.zeros(3))).all()


def test_trap_25_the_cosine_of_a_zero_token_brings_no_large_gradient():
    mask, q = np.ones((B, N, S), bool), jnp.asarray(normal(B, 5, P))

    def total(k):
        logits = jnp.einsum("brp,bnsp->brns", q, k)
        return jnp.sum(paper_similarity(logits, q, k, mask.copy()))

    keys = normal(B, N, S, P)
    keys[:, :, 1:] = 0
    mask[:, :, 1:] = False
    grad = jax.grad(total)(jnp.asarray(keys))
    assert np.isfinite(grad).all() and not np.asarray(grad)[:, :, 1:].any()


def test_trap_26_a_caption_that_is_there_twice_gets_the_gradient_once():
    x, module, given = normal(B, 5, P), WordAttention(mlp_ratio=2.0), words()
    params = parameters(module, x, given)

    def grad(w):
        total = lambda s: jnp.sum(module.apply({"params": params}, x, w._replace(states=s))[0] ** 2)  # noqa: E731
        return np.asarray(jax.grad(total)(jnp.asarray(w.states)))

    twice = Words(*(np.concatenate([part, part[:, :1]], axis=1) for part in given[:3]))
    once, doubled = grad(given), grad(twice)
    np.testing.assert_allclose(doubled[:, :N], once, rtol=1e-4, atol=1e-6)
    assert np.any(once[:, 0]) and not np.any(doubled[:, N])


def test_trap_27_without_any_caption_attention_is_zero_and_finite():
    x, module = normal(B, 5, P), WordAttention(mlp_ratio=2.0)
    nothing = words(np.zeros((B, N, S), bool))
    params = parameters(module, x, nothing)

    def total(p, given):
        y, reading = module.apply({"params": p}, x, given)
        return jnp.sum(y**2) + jnp.sum(reading.similarity), (y, reading)

    grads, (y, reading) = jax.grad(total, has_aux=True)(params, nothing)
    moved = nothing._replace(states=1e4 * nothing.states)
    np.testing.assert_array_equal(y, total(params, moved)[1][0])
    assert not np.any(reading.similarity) and not np.any(reading.entropy)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((grads, y)))
    assert not np.any(grads["v"]["kernel"]) and np.any(grads["norm"]["scale"])


def test_trap_30_attention_to_keys_that_are_all_masked_is_finite():
    x, module = jnp.asarray(normal(B, 5, P)), Attention(heads=2)
    params, nothing = parameters(module, x), np.zeros((B, 5), bool)
    total = lambda p: jnp.sum(module.apply({"params": p}, x, key_valid=nothing) ** 2)  # noqa: E731
    value, grads = jax.value_and_grad(total)(params)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_trap_28_a_cosine_of_exactly_zero_has_gradient_zero():
    q = jnp.asarray([[[1.0, 0.0]]])
    k, mask = jnp.asarray([[[[0.0, 1.0]]]]), np.ones((1, 1, 1), bool)
    grad = jax.grad(lambda x: jnp.sum(paper_similarity(x, q, k, mask)))(jnp.zeros((1, 1, 1, 1)))
    np.testing.assert_array_equal(grad, 0)


def test_trap_29_layers_that_agree_have_no_gradient_in_the_consistency():
    o = jnp.full((3, 1, 1, 2, 1, S), 0.25)
    one = np.ones((1, 1), bool)
    consistency = lambda x: losses.sparsity_terms(Reading(x, x[..., 0], jnp.zeros(())), one)[1]  # noqa: E731
    np.testing.assert_array_equal(jax.grad(consistency)(o), 0)
    assert float(jax.grad(jnp.abs)(0.0)) == 1  # what the plain function would do
    np.testing.assert_array_equal(jax.grad(fast.absolute)(0.0), 0)


def loss_of(config):
    """``params, batch -> (loss, (metrics, aux))`` of an objective, with both arguments."""
    objective = objectives.build(config)
    batch = {n: jnp.ones(x.shape, x.dtype) for n, x in train_state.batch_spec(config).items()}
    batch["image"] = jax.random.bits(KEY, batch["image"].shape, jnp.uint8)
    batch["ctx_idx"] = batch["ctx_idx"] * jnp.arange(batch["ctx_idx"].shape[1])
    if "word_ids" in batch:
        batch["word_ids"] = batch["word_ids"] * (2 + jnp.arange(config.text.words))
    params = randomised(jax.eval_shape(lambda b: objective.init(KEY, b), batch), 0.2)

    def loss(p, b):
        value, metrics, aux = objective.loss(p, p["encoder"], {}, b, KEY, jnp.ones(()))
        return value, (metrics, aux)

    return loss, params, batch


def test_trap_31_every_product_takes_the_precision_that_is_asked_for():
    loss, params, batch = loss_of(tiny())
    with jax.default_matmul_precision("highest"):
        traced = jax.make_jaxpr(jax.value_and_grad(loss, has_aux=True))(params, batch)
    products = [e for e in equations(traced.jaxpr) if e.primitive.name == "dot_general"]
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert len(products) > 50
    assert all(e.params["precision"] == highest for e in products)


def test_trap_32_bfloat16_is_for_products_alone():
    values = {}
    for dtype in ("float32", "bfloat16"):
        loss, params, batch = loss_of(tiny(**{"train.dtype": dtype}))
        value, (_, aux) = jax.jit(loss)(params, batch)
        assert {str(x.dtype) for x in jax.tree.leaves(aux)} == {"float32"}
        values[dtype] = float(value)
    assert values["float32"] != values["bfloat16"]
    assert values["bfloat16"] == pytest.approx(values["float32"], rel=1e-2)


def test_trap_33_unscaled_logits_go_through_a_float32_softmax():
    x, module = jnp.asarray(normal(B, 5, P)), WordAttention(mlp_ratio=2.0, dtype=jnp.bfloat16)
    params, given = parameters(module, x, words()), words()
    traced = jax.make_jaxpr(lambda p: module.apply({"params": p}, x, given))(params)
    softmaxes = [e for e in equations(traced.jaxpr) if e.primitive.name == "exp"]
    assert softmaxes and all(e.invars[0].aval.dtype == jnp.float32 for e in softmaxes)


def test_trap_34_similarities_of_all_layers_are_kept_and_recomputation_changes_nothing():
    loss, params, batch = loss_of(tiny())
    plain = jax.jit(jax.value_and_grad(loss, has_aux=True))
    again = jax.jit(jax.value_and_grad(jax.checkpoint(loss), has_aux=True))
    (value, (_, aux)), grads = plain(params, batch)
    assert len(aux["reading"].similarity) == tiny().predictor.depth == 2
    (other, _), other_grads = again(params, batch)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(other_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.max(np.abs(a), initial=1e-3))


@pytest.fixture(scope="module")
def traced():
    """Equations of loss and gradient; words 20 wide, as nothing else; sizes by name."""
    config = tiny(**{"text.width": 20, "text.heads": 2})
    loss, params, batch = loss_of(config)
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, has_aux=True))(params, batch).jaxpr
    (b, m, c), k = batch["tgt_idx"].shape, batch["ctx_idx"].shape[1]
    words_given = b * config.text.captions * config.text.words
    sizes = {"P": config.predictor.width, "L": config.predictor.depth}
    return list(equations(jaxpr)), sizes | {"R": m * (k + c), "BNS": words_given}


def test_trap_35_no_cosine_is_made_by_broadcasting(traced):
    every, sizes = traced
    largest = max(v.aval.size for e in every for v in e.outvars if hasattr(v.aval, "size"))
    assert largest < sizes["R"] * sizes["BNS"] * sizes["P"]


def test_trap_36_keys_and_values_are_made_once_an_image(traced):
    every, sizes = traced
    made = [
        e.outvars[0].aval.size
        for e in every
        if e.primitive.name == "dot_general" and e.invars[1].aval.shape == (20, sizes["P"])
    ]
    assert made == [sizes["BNS"] * sizes["P"]] * 2 * sizes["L"]


def test_trap_38_all_three_distances_are_logged_and_lambda_is_tuned_to_the_norm():
    loss, params, batch = loss_of(tiny())
    metrics = jax.jit(loss)(params, batch)[1][0]
    assert {"distance/l2", "distance/smooth_l1", "distance/mse"} <= metrics.keys()
    assert float(metrics["loss/predict"]) == float(metrics["distance/l2"])
    a, b = normal(64, 768), normal(64, 768, seed=1)  # two unit normals: sqrt(2 x 768)
    assert float(jnp.mean(losses.l2(a, b))) == pytest.approx(math.sqrt(2 * 768), rel=0.02)
    assert float(jnp.mean(losses.l2(a, b) / losses.smooth_l1(a, b))) > 40
