"""How do I-JEPA and TC-JEPA scale on aerial photographs? 4 sizes, 4 budgets, 2 seeds, 2 arms.

Command:    jepa-vl scaling run --study studies/scaling_rsicd.py --out runs/scaling_rsicd
            RSICD, here or a link to it, holds WebDataset tars in its folder train.
Hardware:   one core, some hours: small encoders on images of 64 pixels.

Rules, sizes and seeds are those of studies/scaling.py; what differs is said below.
"""

import runpy
from pathlib import Path
from typing import Any

SHAPES = runpy.run_path(str(Path(__file__).with_name("scaling.py")))


def get_study() -> dict[str, Any]:
    """Values of the study; see jepa_vl/scaling/study.py."""
    study = SHAPES["get_study"]()
    study["values"] |= {"data.path": "RSICD/train"}
    return study | {
        "name": "rsicd",
        "config": "../configs/rsicd_study.py",
        "arms": {
            "ijepa": {"objective": "ijepa", "loss.distance": "l2"},  # TC-JEPA's distance
            # One of an image's five captions a step: five cost twice the FLOPs of a step.
            "tcjepa": {"objective": "tcjepa", "text.captions": 1},
        },
        "budgets": (1.6e11, 3.2e11, 6.4e11, 1.28e12),
        "optimum_compute": 6.4e11,
        "most_epochs": 20.0,  # of 7,834 photographs
        "evaluation": {"eval.train_images": 4000, "eval.val_images": 900},
    }
