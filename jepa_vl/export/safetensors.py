"""Plain safetensors under our own names; a reader in sixty lines of numpy is beside them."""

from pathlib import Path

from jepa_vl.export.base import WEIGHTS, Encoder, Format, write_json
from jepa_vl.models import tensors, vit
from jepa_vl.models.layers import EPS

READER = "encoder.py"
READER_SOURCE = '''"""Encodes images by numpy; scipy and safetensors are all it needs beside."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from scipy.special import erf


class Encoder:
    """uint8 images [n, H, W, 3] of the right size -> float32 features [n, patches, width]."""

    def __init__(self, folder):
        self.shape = json.loads((Path(folder) / "config.json").read_text())
        self.p = load_file(Path(folder) / "model.safetensors")

    def __call__(self, images):
        s = self.shape
        x = images.astype(np.float32) / np.float32(255)
        x = (x - np.float32(s["image_mean"])) / np.float32(s["image_std"])
        n, side, patch = len(x), s["image_size"] // s["patch_size"], s["patch_size"]
        x = x.reshape(n, side, patch, side, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        kernel = self.p["patch_kernel"].reshape(-1, s["width"])
        x = x.reshape(n, side * side, -1) @ kernel + self.p["patch_bias"] + self.p["position"]
        for i in range(s["depth"]):
            x = x + self.attention(f"block_{i}/attn", self.norm(f"block_{i}/norm1", x))
            x = x + self.mlp(f"block_{i}/mlp", self.norm(f"block_{i}/norm2", x))
        return self.norm("norm", x)

    def dense(self, name, x):
        return x @ self.p[f"{name}/kernel"] + self.p[f"{name}/bias"]

    def norm(self, name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + np.float32(self.shape["eps"]))
        return x * self.p[f"{name}/scale"] + self.p[f"{name}/bias"]

    def attention(self, name, x):
        n, t, width = x.shape
        heads = self.shape["heads"]
        split = (n, t, heads, width // heads)
        q, k, v = (self.dense(f"{name}/{part}", x).reshape(split) for part in "qkv")
        logits = np.einsum("bqhd,bkhd->bhqk", q, k) * np.float32((width // heads) ** -0.5)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self.dense(f"{name}/out", np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))

    def mlp(self, name, x):
        x = self.dense(f"{name}/fc1", x)
        return self.dense(f"{name}/fc2", 0.5 * x * (1 + erf(x * np.float32(0.5**0.5))))
'''
LOAD = """\
import sys

sys.path.insert(0, folder)
from encoder import Encoder

features = Encoder(folder)(images)
"""


def write(encoder: Encoder, folder: Path) -> None:
    """model.safetensors, config.json and a reader."""
    c = encoder.config.encoder
    shape = {
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "width": c.width,
        "depth": c.depth,
        "heads": c.heads,
        "mlp_width": c.mlp_width,
        "eps": EPS,
        "image_mean": vit.IMAGENET_MEAN,
        "image_std": vit.IMAGENET_STD,
        "branch": encoder.facts["branch"],
    }
    write_json(folder / "config.json", shape)
    (folder / READER).write_text(READER_SOURCE)
    params = {**encoder.params, "position": encoder.position()}
    metadata = {"format": "np", "branch": encoder.facts["branch"]}
    tensors.write(folder / WEIGHTS, params, metadata, "--out")


FORMAT = Format(
    about="Safetensors under the names of jepa_vl, with a reader in numpy",
    needs=(),
    library=("numpy", "safetensors", "scipy"),
    write=write,
    load=LOAD,
)
