"""Names of timm's ViT, which the public code of I-JEPA has too, and our own."""

from jepa_vl.models.weights import Rule, conv, dense, flat, norm

TIMM = [
    Rule("cls_token", ("cls",), flat),
    Rule("pos_embed", ("position",), flat),
    Rule(r"patch_embed\.proj\.weight", ("patch_kernel",), conv),
    Rule(r"patch_embed\.proj\.bias", ("patch_bias",)),
    *norm(r"blocks\.(\d+)\.norm1", r"block_\1/norm1"),
    *dense(r"blocks\.(\d+)\.attn\.qkv", *(rf"block_\1/attn/{part}" for part in "qkv")),
    *dense(r"blocks\.(\d+)\.attn\.proj", r"block_\1/attn/out"),
    *norm(r"blocks\.(\d+)\.norm2", r"block_\1/norm2"),
    *dense(r"blocks\.(\d+)\.mlp\.fc1", r"block_\1/mlp/fc1"),
    *dense(r"blocks\.(\d+)\.mlp\.fc2", r"block_\1/mlp/fc2"),
    Rule(r"blocks\.(\d+)\.ls1\.gamma", (r"block_\1/scale1/scale",)),
    Rule(r"blocks\.(\d+)\.ls2\.gamma", (r"block_\1/scale2/scale",)),
    *norm("norm", "norm"),
    Rule(r"head\..*|mask_token"),
]

# Of facebookresearch/ijepa. The table of positions is fixed and ours computes the same.
PREDICTOR = [
    Rule("mask_token", ("mask_token",), flat),
    Rule("predictor_pos_embed"),
    *dense("predictor_embed", "embed"),
    *(
        row._replace(pattern=rf"predictor_{row.pattern}")
        for row in TIMM
        if row.pattern.startswith("blocks")
    ),
    *norm("predictor_norm", "norm"),
    *dense("predictor_proj", "project"),
]

OURS = [Rule("(.+)", (r"\1",))]
