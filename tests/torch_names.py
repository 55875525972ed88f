"""I-JEPA's PyTorch names and layouts -> our parameter tree, for the golden files."""

import numpy as np


def _dense(weights, name):
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def _norm(weights, name):
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def _block(weights, name):
    q, k, v = np.split(weights[f"{name}.attn.qkv.weight"], 3)
    bq, bk, bv = np.split(weights[f"{name}.attn.qkv.bias"], 3)
    return {
        "norm1": _norm(weights, f"{name}.norm1"),
        "attn": {
            "q": {"kernel": q.T, "bias": bq},
            "k": {"kernel": k.T, "bias": bk},
            "v": {"kernel": v.T, "bias": bv},
            "out": _dense(weights, f"{name}.attn.proj"),
        },
        "norm2": _norm(weights, f"{name}.norm2"),
        "mlp": {
            "fc1": _dense(weights, f"{name}.mlp.fc1"),
            "fc2": _dense(weights, f"{name}.mlp.fc2"),
        },
    }


def encoder(weights, depth):
    """Weights of the reference's encoder as our ``encoder`` subtree."""
    tree = {f"block_{i}": _block(weights, f"blocks.{i}") for i in range(depth)}
    return tree | {
        "patch_kernel": weights["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "patch_bias": weights["patch_embed.proj.bias"],
        "norm": _norm(weights, "norm"),
    }


def predictor(weights, depth):
    """Weights of the reference's predictor as our ``predictor`` subtree."""
    tree = {f"block_{i}": _block(weights, f"predictor_blocks.{i}") for i in range(depth)}
    return tree | {
        "mask_token": weights["mask_token"].reshape(-1),
        "embed": _dense(weights, "predictor_embed"),
        "norm": _norm(weights, "predictor_norm"),
        "project": _dense(weights, "predictor_proj"),
    }


def crosser(weights, depth):
    """Weights of TI-JEPA's text-to-image crosser as our ``crosser`` subtree, in parity mode."""
    tree = {"project": _dense(weights, "vision_proj"), "norm": _norm(weights, "vision_norm")}
    for i in range(depth):
        name, theirs = f"blocks.{i}", ("query", "key", "value", "proj")
        tree[f"block_{i}"] = {
            "norm1": _norm(weights, f"{name}.norm1"),
            "attn": {
                our: _dense(weights, f"{name}.cross_attn.{their}")
                for our, their in zip(("q", "k", "v", "out"), theirs, strict=True)
            },
            "norm2": _norm(weights, f"{name}.norm2"),
            "mlp": {
                "fc1": _dense(weights, f"{name}.mlp.fc1"),
                "fc2": _dense(weights, f"{name}.mlp.fc2"),
            },
        }
    return tree
