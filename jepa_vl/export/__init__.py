"""Trained encoders for other libraries: files, a check in their own process, a card."""

from jepa_vl.export import huggingface, onnx, safetensors, stablehlo, timm
from jepa_vl.export.base import Format

FORMATS: dict[str, Format] = {
    "safetensors": safetensors.FORMAT,
    "hf": huggingface.FORMAT,
    "timm": timm.FORMAT,
    "stablehlo": stablehlo.FORMAT,
    "onnx": onnx.FORMAT,
}
