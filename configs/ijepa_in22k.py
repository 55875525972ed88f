"""I-JEPA on ImageNet-22k (Assran et al. 2023, arXiv 2301.08243).

Command:    jepa-vl train --config configs/ijepa_in22k.py:size=g16 \\
                --config.data.path=DIR --workdir W
            DIR holds WebDataset tars; size is H14 or g16.
Hardware:   published: batches of 32 (H14) and 16 (g16) a GPU, 2048 in all. Both want
            --config.mesh.fsdp=8 or more.
Wall-clock: not run at this scale.
Published:  all values (the authors' yaml files).
Ours:       masks without the collator's bias by position; steps from 14.2 M images an epoch. The
            published equivalences (66 epochs as 900 of IN-1k, 44 as 600) would mean 17.5 M.
We ran:     the method at toy size (README.md); this file was traced, never trained.
"""

from ml_collections import ConfigDict

from jepa_vl.config import defaults, one_of, parse_arg

IMAGES, BATCH = 14_197_122, 2048
# variant, patch, predictor depth, epochs
SIZES = {"H14": ("H", 14, 12, 66), "g16": ("g", 16, 16, 44)}


def get_config(arg: str | None = None) -> ConfigDict:
    """``size=H14`` (default) or ``g16``."""
    size = parse_arg(arg, size="H14")["size"]
    one_of("size", size, SIZES)
    variant, patch, depth, epochs = SIZES[size]
    per_epoch = IMAGES // BATCH

    c = defaults()
    c.objective = "ijepa"
    c.data.kind, c.data.workers = "tar", 8
    c.data.crop_scale = (0.3, 1.0)
    c.encoder.update(variant=variant, patch_size=patch, image_size=224)
    c.predictor.update(width=384, depth=depth)
    c.train.update(steps=epochs * per_epoch, batch_size=BATCH, dtype="bfloat16")
    c.train.update(scan_layers=True, remat="dots")
    c.optim.update(lr=1e-3, start_lr=2e-4, final_lr=1e-6, warmup_steps=3 * per_epoch)
    c.optim.update(weight_decay=0.04, final_weight_decay=0.4, ema=0.996, final_ema=1.0)
    c.checkpoint.update(every=1000, keep_every=5 * per_epoch)
    c.log.update(every=50, diagnostics_every=1000, diagnostics_images=BATCH)
    c.eval.update(every=per_epoch, train_images=50_000, val_images=10_000)
    return c
