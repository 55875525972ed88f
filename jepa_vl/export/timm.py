"""timm: a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jepa_vl.export.base import (
    Encoder,
    Format,
    Row,
    dense,
    norm,
    patches,
    write_json,
    write_weights,
)
from jepa_vl.models import vit
from jepa_vl.schema import EncoderConfig

# The name alone says little: its arguments are all overridden. (timm's vit_base_patch16_gap_224
# would load B/16 without a word and compute with 16 heads.)
ARCHITECTURE = "vit_base_patch16_224"
LOAD = """\
import timm
import torch

model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
config = model.pretrained_cfg
mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
inputs = ((torch.tensor(images) / 255 - mean) / std).permute(0, 3, 1, 2)
with torch.no_grad():
    features = model.forward_features(inputs)
    pooled = model(inputs)
assert torch.allclose(pooled, features.mean(dim=1), atol=1e-5)
features = features.numpy()
"""


def rows(depth: int) -> Iterable[Row]:
    """timm's names; queries, keys and values are one matrix."""
    yield Row("pos_embed", ("position",), lambda x: x[None])
    yield from patches("patch_embed.proj")
    for i in range(depth):
        ours, theirs = f"block_{i}", f"blocks.{i}"
        yield from norm(f"{theirs}.norm1", f"{ours}/norm1")
        yield from dense(f"{theirs}.attn.qkv", *(f"{ours}/attn/{part}" for part in "qkv"))
        yield from dense(f"{theirs}.attn.proj", f"{ours}/attn/out")
        yield from norm(f"{theirs}.norm2", f"{ours}/norm2")
        yield from dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1")
        yield from dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2")
    yield from norm("norm", "norm")


def arguments(c: EncoderConfig) -> dict[str, Any]:
    """Of timm's VisionTransformer."""
    ratio = c.mlp_width / c.width
    while int(c.width * ratio) < c.mlp_width:  # timm cuts the product
        ratio = math.nextafter(ratio, math.inf)
    return {
        "img_size": c.image_size,
        "patch_size": c.patch_size,
        "embed_dim": c.width,
        "depth": c.depth,
        "num_heads": c.heads,
        "mlp_ratio": ratio,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        "num_classes": 0,
    }


def write(encoder: Encoder, folder: Path) -> None:
    """config.json with all arguments, and model.safetensors."""
    c = encoder.config.encoder
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": c.width,
        "global_pool": "avg",
        "model_args": arguments(c),
        "pretrained_cfg": {
            "input_size": [3, c.image_size, c.image_size],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": vit.IMAGENET_MEAN,
            "std": vit.IMAGENET_STD,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    write_json(folder / "config.json", config)
    write_weights(encoder, folder, rows(c.depth))


FORMAT = Format(
    about="A VisionTransformer of timm, average-pooled",
    needs=("torch", "timm"),
    library=("timm", "torch"),
    write=write,
    load=LOAD,
    extra="timm",
)
