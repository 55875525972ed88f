"""The contrastive control of TC-JEPA on CC12M + YFCC15M ("CC27M").

Command:    jepa-vl train --config configs/contrastive_cc27m.py:size=L14,loss=siglip \\
                --config.data.path=DIR --workdir W
            DIR holds WebDataset tars; size is B16 or L14, loss clip or siglip.
Hardware:   ours to find out; the batch is the negatives, so it is not split into parts.
Wall-clock: not run at this scale.
Published:  towers, batch, epochs and warm-up of TC-JEPA's run on these data; peak learning rate
            and weight decay of CLIP's ViT-B (arXiv 2103.00020).
Ours:       the combination, and a text transformer of CLIP's size on hashed word pieces. The same
            captions an image as TC-JEPA, read as one text.
We ran:     the method at toy size in tests; this file was traced, never trained.
"""

from ml_collections import ConfigDict

from jepa_vl.config import defaults, one_of, parse_arg

IMAGES, BATCH, EPOCHS, WARMUP = 27_000_000, 2048, 50, 10
SIZES = {"B16": ("B", 16), "L14": ("L", 14)}


def get_config(arg: str | None = None) -> ConfigDict:
    """``size=B16`` (default) or ``L14``; ``loss=clip`` (default) or ``siglip``."""
    given = parse_arg(arg, size="B16", loss="clip")
    one_of("size", given["size"], SIZES)
    variant, patch = SIZES[given["size"]]
    per_epoch = IMAGES // BATCH

    c = defaults()
    c.objective = "contrastive"
    c.contrastive.update(loss=given["loss"], width=512)
    c.data.kind, c.data.workers = "tar", 8
    c.data.crop_scale = (0.3, 1.0)
    c.encoder.update(variant=variant, patch_size=patch, image_size=224)
    c.text.update(captions=8, words=64, vocabulary=49_152, width=512, depth=12, heads=8)
    c.train.update(steps=EPOCHS * per_epoch, batch_size=BATCH, dtype="bfloat16")
    c.train.update(scan_layers=True, remat="dots")
    c.optim.update(lr=5e-4, start_lr=1e-6, final_lr=1e-6, warmup_steps=WARMUP * per_epoch)
    c.optim.update(weight_decay=0.2, final_weight_decay=0.2, b2=0.98, eps=1e-6)
    c.checkpoint.update(every=1000, keep_every=5 * per_epoch)
    c.log.update(every=50, diagnostics_every=1000, diagnostics_images=BATCH)
    c.eval.every = per_epoch
    return c
