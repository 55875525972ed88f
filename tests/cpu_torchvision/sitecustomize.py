"""On the path of a fresh process: lets timm import where PyPI's torchvision is beside a CPU torch.

That wheel's operators are built for CUDA and do not load, and its import then stops as it describes
two of them. timm's vision transformer needs none; they are declared here, without a kernel.
"""

import torch

for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", signature)
