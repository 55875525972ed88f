"""Cross-modal TI-JEPA on COCO captions.

Command:    jepa-vl train --config configs/crossmodal_coco.py --config.data.path=DIR --workdir W
            DIR holds WebDataset tars of train2017 with their captions.
Hardware:   ours to find out; B/16 fits one accelerator of 80 GB at a smaller batch.
Wall-clock: not run at this scale.
Published:  nothing; this reading of TI-JEPA has no paper of its own.
Ours:       every value: I-JEPA's optimiser and schedules, a text transformer of CLIP's width that
            is trained from nothing on hashed word pieces.
We ran:     the method at toy size in tests; this file was traced, never trained.
"""

from ml_collections import ConfigDict

from jepa_vl.config import defaults, one_of, parse_arg

IMAGES, BATCH, EPOCHS = 118_287, 1024, 300
# predictor depth
SIZES = {"S": 6, "B": 6, "L": 12}


def get_config(arg: str | None = None) -> ConfigDict:
    """``size=S``, ``B`` (default) or ``L``, each with patches of 16."""
    size = parse_arg(arg, size="B")["size"]
    one_of("size", size, SIZES)
    per_epoch = IMAGES // BATCH

    c = defaults()
    c.objective = "crossmodal"
    c.data.kind, c.data.workers = "tar", 8
    c.data.crop_scale = (0.5, 1.0)  # captions name what a small crop would cut off
    c.encoder.update(variant=size, patch_size=16, image_size=224)
    c.text.update(captions=1, words=32, vocabulary=32_768, width=512, depth=6, heads=8)
    c.predictor.update(width=384, depth=SIZES[size])
    c.train.update(steps=EPOCHS * per_epoch, batch_size=BATCH, dtype="bfloat16")
    c.train.update(scan_layers=True, remat="dots")
    c.optim.update(lr=1e-3, start_lr=1e-4, final_lr=1e-6, warmup_steps=15 * per_epoch)
    c.optim.update(weight_decay=0.04, final_weight_decay=0.4, ema=0.996, final_ema=1.0)
    c.checkpoint.update(every=5 * per_epoch, keep_every=50 * per_epoch)
    c.log.update(every=50, diagnostics_every=per_epoch, diagnostics_images=BATCH)
    return c
