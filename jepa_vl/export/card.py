"""The model card: what an exported folder says about itself."""

import json
from typing import Any

from jepa_vl.config import to_dict
from jepa_vl.export.base import Encoder, Format
from jepa_vl.models import vit

BRANCHES = {
    "target": "the EMA target encoder, which is evaluated",
    "context": "the context encoder, which gradients train",
}
LIBRARIES = {"hf": "transformers", "timm": "timm", "onnx": "onnx", "stablehlo": "jax"}


def write(encoder: Encoder, name: str, form: Format, told: dict[str, Any]) -> str:
    """Markdown with the front matter of the hub.

    Args:
      encoder: its ``facts`` are told.
      name, form: the format.
      told: what the check found; see ``write.Told``.
    """
    facts, c = encoder.facts, encoder.config
    versions = ", ".join(f"{package} {version}" for package, version in told["versions"].items())
    lines = [
        "---",
        *([f"library_name: {LIBRARIES[name]}"] if name in LIBRARIES else []),
        "pipeline_tag: image-feature-extraction",
        "tags: [jepa]" if "origin" in facts else f"tags: [jepa, {c.objective}]",
        "---",
        "",
        f"# {_title(encoder)}",
        "",
        f"{form.about}: {_origin(facts)}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in _table(encoder).items()),
        "",
        "## Use",
        "",
        "`folder` is this one, `images` are uint8 [n, H, W, 3] of the size above.",
        "",
        "```python",
        form.load.rstrip(),
        "```",
        "",
        "## Compared with jepa_vl",
        "",
        f"The lines above, run in a process of their own on {facts['compared_on']}; features of "
        "all patches after the final LayerNorm, float32, on a CPU.",
        "",
        "| | |",
        "|---|---|",
        f"| largest difference | {told['largest']:.3g} |",
        f"| mean difference | {told['mean']:.3g} |",
        f"| largest feature | {told['scale']:.3g} |",
        f"| with | {versions} |",
        "",
        "## Results",
        "",
        *_results(facts["results"], facts["branch"]),
        "",
        *([] if "origin" in facts else ["## Configuration", "", "```json"]),
        *([] if "origin" in facts else [json.dumps(to_dict(c), indent=1), "```"]),
    ]
    return "\n".join(lines) + "\n"


def _table(encoder: Encoder) -> dict[str, Any]:
    facts, e = encoder.facts, encoder.config.encoder
    mean, std = (" ".join(map(str, x)) for x in (vit.IMAGENET_MEAN, vit.IMAGENET_STD))
    return {
        "branch": facts["branch"],
        "image size, patch": f"{e.image_size}, {e.patch_size} pixels",
        "width, depth, heads, MLP": f"{e.width}, {e.depth}, {e.heads}, {e.mlp_width}",
        "pixels": f"RGB / 255, mean {mean}, std {std}",
        "features": "of all patches, [n, patches, width], no class token",
        **_training(facts),
    }


def _training(facts: dict[str, Any]) -> dict[str, Any]:
    if "origin" in facts:
        return {"comes from": facts["origin"]}
    commit = f"{facts['step']}, {facts['config_hash']}, {facts['git']}"
    return {"trained on": facts["data"], "step, configuration, commit": commit}


def _title(encoder: Encoder) -> str:
    what = "An encoder" if "origin" in encoder.facts else encoder.config.objective
    return f"{what}, ViT of {encoder.config.encoder.depth} blocks"


def _origin(facts: dict[str, Any]) -> str:
    """Where it comes from: a step of a run of ours, or files."""
    if "origin" in facts:
        return f"written from {facts['origin']}"
    images = f"({facts['images']:,} images)"
    return f"{BRANCHES[facts['branch']]}, after step {facts['step']:,} {images}"


def _images(result: dict[str, Any]) -> str:
    of = result["protocol"]["held_out"]
    return f"{of['images']:,} of {of['name']}"


def _results(results: list[dict[str, Any]], branch: str) -> list[str]:
    """One row a number that `jepa-vl eval` measured of this checkpoint and branch."""
    if not results:
        return [f"None were measured of this checkpoint's {branch} branch."]
    head = ["| task | number | | images |", "|---|---|---|---|"]
    rows = [
        f"| {result['task']} | {score} | {value:.4g} | {_images(result)} |"
        for result in results
        for score, value in result["metrics"].items()
    ]
    return head + rows
