"""What captions bring on a small set of captioned photographs: one arm of a study a run.

Command:    jepa-vl train --config configs/rsicd_study.py:arm=own \\
                --config.data.path=RSICD/train --workdir W
            arm is a name of ARMS; `python studies/rsicd.py` runs many of them and tabulates.
Hardware:   2 CPU cores, 2 GB of memory.
Wall-clock: minutes an arm; studies/rsicd.py measures it.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from jepa_vl.config import one_of, parse_arg

QUICKSTART = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))

# Dotted keys that set an arm apart from `own`: TC-JEPA with the quickstart's network and recipe,
# N = 5 captions. Arms with the same values are one run under two names.
ARMS: dict[str, dict] = {
    "own": {},
    "ijepa": {"objective": "ijepa", "loss.distance": "l2"},  # TC-JEPA's distance
    "shuffled": {"data.captions": "shuffled"},
    # Other controls. I-JEPA as published minimises another distance.
    "ijepa_smooth_l1": {"objective": "ijepa", "loss.distance": "smooth_l1"},
    "empty": {"data.captions": "empty"},
    "random": {"data.captions": "random"},
    # What the recipe adds to TC-JEPA.
    "published": {"loss.contrast": 0.0, "text.dropout": 0.0, "loss.regulariser": "paper"},
    "no_contrast": {"loss.contrast": 0.0},
    "no_dropout": {"text.dropout": 0.0},
    # The regulariser on similarities.
    "centred": {"loss.regulariser": "centred"},
    "paper": {"loss.regulariser": "paper"},
    "entropy": {"loss.regulariser": "entropy"},
    "off": {"loss.regulariser": "off"},
    # Captions an image and step.
    "n1": {"text.captions": 1},
    "n5": {"text.captions": 5},
    # How they enter the predictor, and how several of them are fused.
    "caption_attention": {"conditioner.kind": "caption_attention"},
    "adaln": {"conditioner.kind": "adaln", "conditioner.scale_logits": False},
    "feature": {"conditioner.kind": "feature", "conditioner.scale_logits": False},
    "sequence": {"conditioner.kind": "sequence", "conditioner.scale_logits": False},
    "mean": {"conditioner.fusion": "mean"},
    # A lighter conditioner; launch/pods.md has what that saves on a pod.
    "light_mlp": {"conditioner.mlp_ratio": 1.0},
    "no_mlp": {"conditioner.mlp_ratio": 0.0},
    # The masks of I-JEPA's collator, biases included; its min_keep of 10 is of 14 x 14 patches.
    "parity_masks": {"masks.mode": "reference", "masks.context_tokens": 0, "masks.min_keep": 3},
}


def get_config(arg: str | None = None) -> ConfigDict:
    """``arm=own`` (default) or another name of :data:`ARMS`; all need ``data.path``."""
    arm = parse_arg(arg, arm="own")["arm"]
    one_of("arm", arm, ARMS)
    c = QUICKSTART["get_config"]("data=tar")
    c.text.captions = 5
    c.train.steps = 1000
    c.log.diagnostics_every, c.checkpoint.every = 250, 250
    c.update_from_flattened_dict(ARMS[arm])
    return c
