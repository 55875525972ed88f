"""How do I-JEPA and TC-JEPA scale on the built-in scenes? 4 sizes, 4 budgets, 2 seeds, 2 arms.

Command:    jepa-vl scaling run --study studies/scaling.py --out runs/scaling
Hardware:   one core, some hours: small encoders on images of 64 pixels.

The same command goes on after any stop; `jepa-vl scaling plan` tells beforehand what would run.
"""

from typing import Any


def get_study() -> dict[str, Any]:
    """Values of the study; see jepa_vl/scaling/study.py."""
    return {
        "name": "shapes",
        "config": "../configs/quickstart.py",
        "arms": {"ijepa": {"objective": "ijepa"}, "tcjepa": {"objective": "tcjepa"}},
        "sizes": ("32x2", "48x3", "64x3", "96x4"),
        "budgets": (2.4e11, 4.8e11, 9.6e11, 1.92e12),
        "seeds": (0, 1),
        "grid": "full",  # where the best size lies was not known
        # Many small steps, as the quickstart has them.
        "batch_size": 16,
        "lr": 1e-3,
        "ema_half_life": 1100.0,  # images: the quickstart's 0.98 at 32 images a step
        "warmup": 0.06,
        "optimum_size": 1.2e5,
        "optimum_compute": 9.6e11,
        "least_steps": 25,
        "most_epochs": 11.0,
        "values": {
            # On one core a worker takes what the step needs.
            "data.workers": 0, "data.threads": 1,
            # The quality is measured at the end, so the run itself looks at little.
            "eval.every": 10**6, "eval.train_images": 40, "eval.val_images": 20,
            "log.diagnostics_every": 10**6, "log.diagnostics_images": 64,
            "log.tensorboard": False, "log.every": 50,
            "checkpoint.every": 500, "checkpoint.keep_last": 1, "checkpoint.keep_best": 0,
        },
        "evaluation": {"eval.train_images": 2000, "eval.val_images": 2000},
        "tasks": ("knn", "fewshot"),
        "quality": "knn_error",
    }  # fmt: skip
