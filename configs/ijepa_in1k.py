"""I-JEPA on ImageNet-1k (Assran et al. 2023, arXiv 2301.08243).

Command:    jepa-vl train --config configs/ijepa_in1k.py:size=H14 --config.data.path=DIR --workdir W
            DIR holds WebDataset tars; size is B, L, H14 (224 px) or H16_448.
Hardware:   published: 16 A100 for H14. H14 and H16_448 want --config.mesh.fsdp=8 or more.
Wall-clock: not run at this scale.
Published:  all values for H14 and H16_448 (the authors' yaml files; IN-1k linear probe of
            H14: 79.3); for B and L sizes, 600 epochs, 15 of warm-up from 1e-4 (their appendix A.1;
            72.9 and 77.5), the rest as H14.
Ours:       masks without the collator's bias by position (masks.mode = "production").
We ran:     the method at toy size (README.md); this file was traced, never trained.
"""

from ml_collections import ConfigDict

from jepa_vl.config import defaults, one_of, parse_arg

IMAGES, BATCH = 1_281_167, 2048
# variant, patch, pixels, predictor depth, epochs, epochs of warm-up, first learning rate
SIZES = {
    "B": ("B", 16, 224, 6, 600, 15, 1e-4),
    "L": ("L", 16, 224, 12, 600, 15, 1e-4),
    "H14": ("H", 14, 224, 12, 300, 40, 2e-4),
    "H16_448": ("H", 16, 448, 12, 300, 40, 2e-4),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """``size=B`` (default), ``L``, ``H14`` or ``H16_448``."""
    size = parse_arg(arg, size="B")["size"]
    one_of("size", size, SIZES)
    variant, patch, pixels, depth, epochs, warmup, start_lr = SIZES[size]
    per_epoch = IMAGES // BATCH

    c = defaults()
    c.objective = "ijepa"
    c.data.kind, c.data.workers = "tar", 8
    c.data.crop_scale = (0.3, 1.0)
    c.encoder.update(variant=variant, patch_size=patch, image_size=pixels)
    c.predictor.update(width=384, depth=depth)
    c.train.update(steps=epochs * per_epoch, batch_size=BATCH, dtype="bfloat16")
    c.train.update(scan_layers=True, remat="dots")
    c.optim.update(lr=1e-3, start_lr=start_lr, final_lr=1e-6, warmup_steps=warmup * per_epoch)
    c.optim.update(weight_decay=0.04, final_weight_decay=0.4, ema=0.996, final_ema=1.0)
    c.checkpoint.update(every=per_epoch, keep_every=50 * per_epoch)
    c.log.update(every=50, diagnostics_every=per_epoch, diagnostics_images=BATCH)
    c.eval.update(every=10 * per_epoch, train_images=50_000, val_images=10_000)
    return c
