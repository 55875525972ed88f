"""How do I-JEPA and TC-JEPA scale on the built-in scenes? 4 sizes, 4 budgets, 2 seeds, 2 arms.

Command:    jepa-vl scaling run --study studies/scaling.py --out runs/scaling
Hardware:   one core; small encoders on images of 64 pixels.

The same command goes on after any stop; `jepa-vl scaling plan` tells beforehand what would run.
"""

from typing import Any

OBJECTIVES = {"ijepa": "ijepa", "tcjepa": "tcjepa"}


def get_study() -> dict[str, Any]:
    """Values of the study; see jepa_vl/scaling/study.py."""
    return {
        "name": "shapes-2026",
        "config": "../configs/quickstart.py",
        "arms": {arm: {"objective": objective} for arm, objective in OBJECTIVES.items()},
        "sizes": ("32x2", "48x3", "64x3", "96x4", "128x5"),
        "budgets": (2e11, 4e11, 8e11, 1.6e12),
        "seeds": (0, 1),
        "grid": "full",
        "batch_size": 32,
        "lr": 1.3e-3,
        "lr_width": 96,
        "lr_exponent": 0.0,
        "ema_half_life": 1100.0,
        "warmup": 0.06,
        "optimum_size": 1.6e5,
        "optimum_compute": 4e11,
        "least_steps": 100,
        "most_epochs": 10.0,
    }
