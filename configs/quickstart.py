"""A TC-JEPA that learns on a laptop.

Command:    jepa-vl train --config configs/quickstart.py --workdir runs/quickstart
Hardware:   2 CPU cores, 2 GB of memory.
Wall-clock: minutes; README.md holds the measured table.
"""

from ml_collections import ConfigDict

from jepa_vl.config import defaults, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """``data=shapes_world`` (default) or another kind of source, which needs ``data.path``."""
    given = parse_arg(arg, data="shapes_world")
    c = defaults()
    c.objective = "tcjepa"
    c.data.kind = given["data"]

    c.encoder.update(image_size=64, patch_size=8, width=96, depth=4, heads=4)
    c.predictor.update(width=64, depth=3, heads=4)
    c.text.update(width=64, captions=2, depth=1)
    # N(0, 0.02) and unscaled logits are tuned to widths of some hundreds.
    c.train.init = "fan_in"
    c.conditioner.update(scale_logits=True, mlp_ratio=2.0)
    # Captions must fit their image, and the predictor often does without: RESULTS.md says why.
    c.loss.update(regulariser="off", contrast=4.0)
    c.text.dropout = 0.75
    c.masks.context_tokens = 24
    # Read by other objectives alone (--config.objective=...).
    c.frozen.image = "random"
    c.tijepa.update(variant="", width=96, depth=2, heads=4)
    c.contrastive.width = 64

    # Many small steps and a fast target: in a short run the number of steps counts more than
    # their size. The loss falls tenfold at once; a second moment that remembers the gradients of
    # those steps (0.999) delays the turn that README.md describes by hundreds of steps.
    c.train.update(steps=1000, batch_size=32)
    c.optim.update(lr=1.3e-3, b2=0.95, ema=0.98, warmup_steps=60)
    c.optim.update(weight_decay=0.04, final_weight_decay=0.04)
    c.data.crop_scale = (0.5, 1.0)
    c.log.diagnostics_every, c.checkpoint.every = 200, 400
    if c.data.kind != "shapes_world":
        c.text.captions, c.text.dropout = 3, 0.5
        c.train.steps = 4000
        c.optim.update(lr=1e-3, b2=0.999, ema=0.99, warmup_steps=0)
        c.data.crop_scale = (0.3, 1.0)
        c.eval.train_images = 4000
        c.log.diagnostics_every, c.checkpoint.every = 500, 1000
    return c
