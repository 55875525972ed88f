"""Our encoder against ``IJepaModel`` of transformers, another implementation of the same maths.

Random weights with non-trivial biases and LayerNorm scales; that model's position table, trainable
there, is overwritten with ours. It drops no patches: embeddings, gather and layers are put together
by hand for the context encoder.
"""

import jax
import numpy as np
import pytest

from jepa_vl.models import vit
from jepa_vl.models.layers import sincos_table
from jepa_vl.schema import EncoderConfig

torch = pytest.importorskip("torch", reason="needs the extra [parity]")

SIZES = [
    EncoderConfig(image_size=32, patch_size=8, width=24, depth=2, heads=3, mlp_width=96),
    EncoderConfig(image_size=48, patch_size=16, width=40, depth=3, heads=2, mlp_width=60),
    EncoderConfig(image_size=42, patch_size=14, width=16, depth=1, heads=4, mlp_width=64),
]
DENSE = {
    "attn/q": "attention.q_proj", "attn/k": "attention.k_proj", "attn/v": "attention.v_proj",
    "attn/out": "attention.o_proj", "mlp/fc1": "mlp.fc1", "mlp/fc2": "mlp.fc2",
}  # fmt: skip
NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}


def ours(config, seed):
    """Random parameters, biases and LayerNorm scales included."""
    encoder = vit.build(config)
    images = np.zeros((1, config.image_size, config.image_size, 3), np.uint8)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), images)["params"])
    rng = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(shapes)
    drawn = [rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves]
    return encoder, structure.unflatten(drawn)


def theirs(config, params):
    """The same function in torch: eager attention, eps 1e-6."""
    from transformers import IJepaConfig, IJepaModel

    model = IJepaModel(
        IJepaConfig(
            hidden_size=config.width, num_hidden_layers=config.depth,
            num_attention_heads=config.heads, intermediate_size=config.mlp_width,
            image_size=config.image_size, patch_size=config.patch_size, layer_norm_eps=1e-6,
            attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    weights = {
        "embeddings.position_embeddings": sincos_table(config.width, config.grid)[None],
        "embeddings.patch_embeddings.projection.weight": params["patch_kernel"].transpose(
            3, 2, 0, 1
        ),
        "embeddings.patch_embeddings.projection.bias": params["patch_bias"],
        "layernorm.weight": params["norm"]["scale"],
        "layernorm.bias": params["norm"]["bias"],
    }
    for i in range(config.depth):
        block = params[f"block_{i}"]
        for name, torch_name in DENSE.items():
            first, second = name.split("/")
            leaf = block[first][second]
            weights[f"layers.{i}.{torch_name}.weight"] = leaf["kernel"].T
            weights[f"layers.{i}.{torch_name}.bias"] = leaf["bias"]
        for name, torch_name in NORMS.items():
            weights[f"layers.{i}.{torch_name}.weight"] = block[name]["scale"]
            weights[f"layers.{i}.{torch_name}.bias"] = block[name]["bias"]
    state = {name: torch.tensor(np.ascontiguousarray(w)) for name, w in weights.items()}
    model.load_state_dict(state, strict=True)
    return model


def case(config, seed=0):
    """Both models, normalised images [B, H, W, 3], and context indices [B, K] in any order."""
    encoder, params = ours(config, seed)
    rng = np.random.default_rng(seed + 100)
    side, cells = config.image_size, config.grid**2
    images = rng.normal(size=(2, side, side, 3)).astype(np.float32)
    ctx_idx = np.stack([rng.permutation(cells)[: cells // 2] for _ in range(2)]).astype(np.int32)
    return encoder, params, theirs(config, params), images, ctx_idx


def their_context(model, images, ctx_idx, mask=None):
    """Embeddings, gather, layers, LayerNorm; ``mask`` is added to the attention logits."""
    nchw = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        x = model.embeddings(nchw)
        x = torch.stack([x[i, torch.tensor(index).long()] for i, index in enumerate(ctx_idx)])
        for layer in model.layers:
            x = layer(x, mask)
        return model.layernorm(x).numpy()


def assert_close(a, b):
    """Largest difference over the largest magnitude."""
    assert np.max(np.abs(np.asarray(a) - b)) <= 1e-5 * np.max(np.abs(b))


@pytest.mark.parametrize("size", range(len(SIZES)))
def test_the_whole_image_gives_the_same_features(size):
    encoder, params, model, images, _ = case(SIZES[size], size)
    with torch.no_grad():
        expected = model(torch.tensor(images.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    with jax.default_matmul_precision("highest"):
        assert_close(encoder.apply({"params": params}, images), expected)


@pytest.mark.parametrize("size", range(len(SIZES)))
def test_the_visible_patches_alone_give_the_same_features(size):
    encoder, params, model, images, ctx_idx = case(SIZES[size], size)
    expected = their_context(model, images, ctx_idx)
    with jax.default_matmul_precision("highest"):
        assert_close(encoder.apply({"params": params}, images, ctx_idx), expected)


def test_padded_contexts_give_the_features_of_the_shorter_ones():
    encoder, params, model, images, ctx_idx = case(SIZES[0])
    valid = np.arange(ctx_idx.shape[1]) < np.array([[5], [8]])
    mask = torch.where(torch.tensor(valid)[:, None, None], 0.0, -torch.inf)
    expected = their_context(model, images, ctx_idx, mask)
    with jax.default_matmul_precision("highest"):
        features = np.asarray(encoder.apply({"params": params}, images, ctx_idx, valid))
    assert_close(features[valid], expected[valid])
    short = their_context(model, images[:1], ctx_idx[:1, :5])
    assert_close(features[0, :5], short[0])
