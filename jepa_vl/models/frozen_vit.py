"""Pretrained image towers: ViT, I-JEPA and DINOv2; what they are read from is :mod:`.intake`."""

import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jepa_vl import tree
from jepa_vl.config import ConfigError
from jepa_vl.models import fast, vit, weights
from jepa_vl.models.layers import EPS, NORMAL, Attention, LayerNorm, Mlp, gather, sincos_table
from jepa_vl.models.stack import Plan, run_blocks
from jepa_vl.models.weights import Rule, conv, dense, flat, norm, require
from jepa_vl.schema import EncoderConfig
from jepa_vl.shapes import Array, PyTree, check_shape
from jepa_vl.sharding import constrain

PREPROCESSOR = "preprocessor_config.json"


class VitShape(NamedTuple):
    """What a tower is built from.

    Attributes:
      grid: G, patches along a side.
      cls: class tokens before the patches, 0 or 1.
      layer_scale: whether branches are scaled channel by channel (DINOv2).
      mean, std: of the pixels in [0, 1] that it was trained with.
    """

    grid: int
    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    eps: float
    cls: int
    layer_scale: bool
    mean: tuple[float, float, float] = vit.IMAGENET_MEAN
    std: tuple[float, float, float] = vit.IMAGENET_STD

    @property
    def side(self) -> int:
        """Of the square input, pixels."""
        return self.grid * self.patch


class Scale(nn.Module):
    """LayerScale (arXiv 2103.17239): one factor a channel."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., D] float32."""
        return x.astype(jnp.float32) * self.param("scale", nn.initializers.ones, (x.shape[-1],))


class FrozenBlock(nn.Module):
    """Pre-norm block like ``layers.Block``, with the tower's eps and perhaps LayerScale."""

    shape: VitShape
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, key_valid: Array | None = None) -> Array:
        """[B, T, D], optional bool [B, T] -> [B, T, D] float32."""
        c = self.shape

        def add(x: Array, y: Array, number: int) -> Array:
            return x + (Scale(name=f"scale{number}")(y) if c.layer_scale else y.astype(jnp.float32))

        attention = Attention(c.heads, self.dtype, name="attn")
        x = add(x, attention(LayerNorm(c.eps, name="norm1")(x), key_valid), 1)
        x = add(x, Mlp(c.hidden, self.dtype, name="mlp")(LayerNorm(c.eps, name="norm2")(x)), 2)
        return constrain(x, "batch", None, "embed")


class FrozenViT(nn.Module):
    """A ViT with stored positions; its parameters are those of ``vit.ViT`` and more."""

    FEATURES: ClassVar[str] = "after the final LayerNorm"  # what is said beside numbers of them

    shape: VitShape
    dtype: Any = jnp.float32
    how: Plan = Plan()

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.shape.depth

    @property
    def eps(self) -> float:
        """Of its norms."""
        return self.shape.eps

    @nn.compact
    def __call__(
        self,
        images: Array,
        ctx_idx: Array | None = None,
        ctx_valid: Array | None = None,
        keep: int = 0,
    ) -> Any:
        """Encodes all patches, or the visible ones alone.

        Args:
          images: [B, H, W, 3], uint8 or normalised float32; H = W = grid x patch.
          ctx_idx: optional int32 [B, K], the visible patches; the others are never read.
          ctx_valid: optional bool [B, K], False where ctx_idx is padding.
          keep: how many of the last blocks' outputs to return too, at most the depth.

        Returns:
          [B, T, D] or [B, K, D] float32, after the final LayerNorm; with ``keep`` also a tuple of
          so many, as they leave the blocks, the last block last. The class token is left out.
        """
        c = self.shape
        check_shape("images", images, "B H W 3", H=c.side, W=c.side)
        kernel = self.param("patch_kernel", NORMAL, (c.patch, c.patch, 3, c.width))
        bias = self.param("patch_bias", nn.initializers.zeros, (c.width,))
        position = self.param("position", NORMAL, (c.cls + c.grid**2, c.width))
        patches = vit.patchify(vit.normalise(images, c.mean, c.std), c.patch)
        first, place = position[: c.cls].astype(jnp.float32), position[c.cls :].astype(jnp.float32)
        if ctx_idx is not None:
            patches, place = gather(patches, ctx_idx), place[ctx_idx]
        x = fast.dense(patches.astype(self.dtype), kernel.reshape(-1, c.width).astype(self.dtype))
        x = x.astype(jnp.float32) + bias + place
        if c.cls:
            first = first + self.param("cls", NORMAL, (c.width,))
            x = jnp.concatenate([jnp.broadcast_to(first, (len(x), *first.shape)), x], axis=1)
        if ctx_valid is not None:  # the class token always is
            ctx_valid = jnp.pad(ctx_valid, ((0, 0), (c.cls, 0)), constant_values=True)
        make = functools.partial(FrozenBlock, c, self.dtype)
        below = c.depth + 1 - max(keep, 1)
        kept = [run_blocks(self, make, below, x, ctx_valid, how=self.how)]
        for i in range(below, c.depth):
            kept.append(make(name=f"block_{i}")(kept[-1], ctx_valid))
        out = LayerNorm(c.eps, name="norm")(kept[-1])[:, c.cls :]
        return (out, tuple(one[:, c.cls :] for one in kept)) if keep else out


_VIT = r"(?:vit\.|ijepa\.|dinov2\.|backbone\.)?"
_LAYER = _VIT + r"(?:encoder\.)?layers?\.(\d+)\."  # of transformers 4 and 5
RULES = [
    Rule(_VIT + r"embeddings\.cls_token", ("cls",), flat),
    Rule(_VIT + r"embeddings\.position_embeddings", ("position",), flat),
    Rule(_VIT + r"embeddings\.patch_embeddings\.projection\.weight", ("patch_kernel",), conv),
    Rule(_VIT + r"embeddings\.patch_embeddings\.projection\.bias", ("patch_bias",)),
    *dense(_LAYER + r"attention\.(?:attention\.query|q_proj)", r"block_\1/attn/q"),
    *dense(_LAYER + r"attention\.(?:attention\.key|k_proj)", r"block_\1/attn/k"),
    *dense(_LAYER + r"attention\.(?:attention\.value|v_proj)", r"block_\1/attn/v"),
    *dense(_LAYER + r"attention\.(?:output\.dense|o_proj)", r"block_\1/attn/out"),
    *norm(_LAYER + r"(?:layernorm_before|norm1)", r"block_\1/norm1"),
    *norm(_LAYER + r"(?:layernorm_after|norm2)", r"block_\1/norm2"),
    *dense(_LAYER + r"(?:intermediate\.dense|mlp\.fc1)", r"block_\1/mlp/fc1"),
    *dense(_LAYER + r"(?:output\.dense|mlp\.fc2)", r"block_\1/mlp/fc2"),
    Rule(_LAYER + r"layer_scale1\.lambda1", (r"block_\1/scale1/scale",)),
    Rule(_LAYER + r"layer_scale2\.lambda1", (r"block_\1/scale2/scale",)),
    *norm(_VIT + "layernorm", "norm"),
    Rule(_VIT + r"(?:embeddings\.mask_token|pooler\..*)|classifier\..*"),
]


def read_shape(
    config: dict[str, Any], preprocessor: dict[str, Any], where: tuple[str, str]
) -> VitShape:
    """Reads a config.json; pixels are normalised as preprocessor_config.json says, if it does.

    Raises:
      ConfigError: a variant that is not here.
    """
    covered = {
        "model_type": ("vit", "ijepa", "dinov2"),
        "hidden_act": ("gelu",),
        "qkv_bias": (True,),
        "use_swiglu_ffn": (False,),
        "num_channels": (3,),
    }
    require(config, covered, where)
    dino = config["model_type"] == "dinov2"
    width = config["hidden_size"]
    hidden = int(width * config.get("mlp_ratio", 4)) if dino else config["intermediate_size"]
    mean = preprocessor.get("image_mean", vit.IMAGENET_MEAN)
    std = preprocessor.get("image_std", vit.IMAGENET_STD)
    return VitShape(
        grid=config["image_size"] // config["patch_size"],
        patch=config["patch_size"],
        width=width,
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=hidden,
        eps=config.get("layer_norm_eps", 1e-6 if dino else 1e-12),
        cls=0 if config["model_type"] == "ijepa" else 1,
        layer_scale=dino,
        mean=tuple(mean),
        std=tuple(std),
    )


def resize_positions(table: Array, cls: int, grid: int) -> Array:
    """Positions for another number of patches, as Hugging Face does it.

    Bicubic (Keys, a = -0.75), samples at pixel centres, edges repeated, no antialiasing.

    Args:
      table: [cls + g * g, D].
      cls: rows at the start that stay.
      grid: G, wanted.

    Returns:
      [cls + G * G, D] float32.
    """
    first, rest = np.asarray(table[:cls], np.float32), np.asarray(table[cls:], np.float32)
    old = round(len(rest) ** 0.5)
    if old == grid:
        return np.concatenate([first, rest])
    centre = (np.arange(grid) + 0.5) * old / grid - 0.5
    start = np.floor(centre).astype(int)
    matrix = np.zeros((grid, old))
    for tap in range(-1, 3):
        x = np.abs(centre - start - tap)
        near = (1.25 * x - 2.25) * x * x + 1
        far = ((-0.75 * x + 3.75) * x - 6) * x + 3
        column = np.clip(start + tap, 0, old - 1)
        np.add.at(matrix, (np.arange(grid), column), np.where(x <= 1, near, far))
    square = rest.reshape(old, old, -1).astype(np.float64)
    square = np.einsum("ry,cx,yxd->rcd", matrix, matrix, square, optimize=True)
    return np.concatenate([first, square.reshape(grid * grid, -1).astype(np.float32)])


def shape_of(encoder: EncoderConfig) -> VitShape:
    """What our own encoder is, as a tower: fixed positions, no class token."""
    c = encoder
    return VitShape(
        c.grid, c.patch_size, c.width, c.depth, c.heads, c.mlp_width, EPS, 0, layer_scale=False
    )


def expected(shape: VitShape) -> PyTree:
    """Shapes of a tower's parameters; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, shape.side, shape.side, 3), jnp.uint8)
    return weights.expected(FrozenViT(shape), images)


def untrained(shape: VitShape, rng: Array) -> PyTree:
    """Random weights, with the fixed positions of our own encoder."""
    images = jnp.zeros((1, shape.side, shape.side, 3), jnp.uint8)
    params = jax.jit(FrozenViT(shape).init)(rng, images)["params"]
    first = np.zeros((shape.cls, shape.width), np.float32)  # of the class token
    return {**params, "position": np.concatenate([first, sincos_table(shape.width, shape.grid)])}


def as_vit(params: PyTree, grid: int, where: tuple[str, str]) -> PyTree:
    """Parameters for ``vit.ViT``, whose positions are the fixed sin-cos table.

    Args:
      params: of a :class:`FrozenViT`, float32.
      grid: G.
      where: configuration key and path, for errors.

    Raises:
      ConfigError: it has a class token, LayerScale, or learned positions of its own.
    """
    foreign = [n for n in tree.flatten(params) if "/scale1/" in n or "/scale2/" in n or n == "cls"]
    table = sincos_table(params["patch_bias"].size, grid)
    if foreign or params["position"].shape != table.shape:
        raise ConfigError(
            *where, f"is no I-JEPA encoder: has {', '.join(foreign) or 'a [cls] row'}"
        )
    gap = float(np.max(np.abs(params["position"] - table)))
    if gap > 1e-5:
        raise ConfigError(*where, f"its positions are off the sin-cos table by {gap:.2g}")
    return {name: value for name, value in params.items() if name != "position"}
