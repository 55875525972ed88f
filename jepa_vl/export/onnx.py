"""ONNX, through the twin in torch: the Hugging Face export, traced in a process of its own."""

import tempfile
from pathlib import Path

from jepa_vl.export import huggingface
from jepa_vl.export.base import Encoder, Format, write_json
from jepa_vl.export.process import run
from jepa_vl.models import vit

PROGRAM = "encoder.onnx"
TRACE = """\
import onnx
import torch
from transformers import IJepaModel


class Features(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = IJepaModel.from_pretrained(twin, add_pooling_layer=False).eval()

    def forward(self, pixels):
        return self.model(pixels).last_hidden_state


config = IJepaModel.config_class.from_pretrained(twin)
pixels = torch.zeros(2, 3, config.image_size, config.image_size)
batch = torch.export.Dim("batch")
torch.onnx.export(
    Features(), (pixels,), program, dynamo=True, input_names=["pixels"],
    output_names=["features"], dynamic_shapes=({0: batch},), external_data=True, verbose=False,
)
# Each node tells the line it comes from, with the paths of this machine.
model = onnx.load(program, load_external_data=False)
for part in (model, model.graph, *model.graph.node, *model.graph.value_info):
    del part.metadata_props[:]
onnx.save(model, program)
"""
LOAD = """\
import json

import numpy as np
import onnxruntime

config = json.load(open(f"{folder}/preprocessor.json"))
mean, std = (np.array(config[name], np.float32) for name in ("image_mean", "image_std"))
pixels = ((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
session = onnxruntime.InferenceSession(
    f"{folder}/encoder.onnx", providers=["CPUExecutionProvider"]
)
features = session.run(["features"], {"pixels": pixels})[0]
one = session.run(["features"], {"pixels": pixels[:1]})[0]  # any number of images
assert one.shape == (1, *features.shape[1:])
"""


def write(encoder: Encoder, folder: Path) -> None:
    """encoder.onnx, its weights beside it, and how pixels are normalised."""
    with tempfile.TemporaryDirectory() as scratch:
        huggingface.write(encoder, Path(scratch))
        run("onnx", TRACE, {"twin": scratch, "program": str(folder / PROGRAM)})
    pixels = {"image_mean": vit.IMAGENET_MEAN, "image_std": vit.IMAGENET_STD}
    write_json(folder / "preprocessor.json", pixels)


FORMAT = Format(
    about="An ONNX program of normalised pixels [n, 3, H, W], any batch",
    needs=("torch", "onnx", "onnxscript", "onnxruntime"),
    library=("onnxruntime",),
    write=write,
    load=LOAD,
)
