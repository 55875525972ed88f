"""Hugging Face's IJepaModel: config.json, model.safetensors, preprocessor_config.json."""

from collections.abc import Iterable
from pathlib import Path

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
from jepa_vl.models.frozen_vit import PREPROCESSOR
from jepa_vl.models.layers import EPS, INIT_STD

BILINEAR = 2  # Pillow's number
LOAD = """\
import numpy as np
import torch
from transformers import AutoImageProcessor, IJepaModel

processor = AutoImageProcessor.from_pretrained(folder)
model, loaded = IJepaModel.from_pretrained(
    folder, add_pooling_layer=False, output_loading_info=True
)
assert not any(loaded.values()), loaded  # nothing missing, unexpected or misshapen
inputs = processor(list(images), return_tensors="pt")
with torch.no_grad():
    features = model.eval()(**inputs).last_hidden_state.numpy()
"""


def rows(depth: int) -> Iterable[Row]:
    """The names of transformers 4, which 5 reads and writes too."""
    yield Row("embeddings.position_embeddings", ("position",), lambda x: x[None])
    yield from patches("embeddings.patch_embeddings.projection")
    for i in range(depth):
        ours, theirs = f"block_{i}", f"encoder.layer.{i}"
        yield from norm(f"{theirs}.layernorm_before", f"{ours}/norm1")
        for name, part in (("query", "q"), ("key", "k"), ("value", "v")):
            yield from dense(f"{theirs}.attention.attention.{name}", f"{ours}/attn/{part}")
        yield from dense(f"{theirs}.attention.output.dense", f"{ours}/attn/out")
        yield from norm(f"{theirs}.layernorm_after", f"{ours}/norm2")
        yield from dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/fc1")
        yield from dense(f"{theirs}.output.dense", f"{ours}/mlp/fc2")
    yield from norm("layernorm", "norm")


def write(encoder: Encoder, folder: Path) -> None:
    """The three files of a model of the hub."""
    c = encoder.config.encoder
    config = {
        "architectures": ["IJepaModel"],
        "model_type": "ijepa",
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "intermediate_size": c.mlp_width,
        "hidden_act": "gelu",
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "layer_norm_eps": EPS,  # the class's own default is 1e-12
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": INIT_STD,
        "dtype": "float32",
    }
    write_json(folder / "config.json", config)
    # Without this file transformers would take a mean and a deviation of 0.5.
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": c.image_size},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": c.image_size, "width": c.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": vit.IMAGENET_MEAN,
        "image_std": vit.IMAGENET_STD,
    }
    write_json(folder / PREPROCESSOR, processor)
    write_weights(encoder, folder, rows(c.depth))


FORMAT = Format(
    about="An IJepaModel of transformers, without a pooler",
    needs=("torch",),
    library=("transformers", "torch"),
    write=write,
    load=LOAD,
)
