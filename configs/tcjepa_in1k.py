"""TC-JEPA on ImageNet-1k with generated captions (arXiv 2605.03245).

Command:    jepa-vl train --config configs/tcjepa_in1k.py:size=L --config.data.path=DIR --workdir W
            DIR holds WebDataset tars, each image with its captions; size is B, L or H14. T5 is
            downloaded; offline, --config.text.path=FOLDER.
Hardware:   not published; a little more than I-JEPA. H14 wants --config.mesh.fsdp=8 or more.
Wall-clock: not run at this scale.
Published:  sizes, epochs, batch, peak learning rate, weight decay, lambda and beta, 8 captions an
            image, a frozen T5 (IN-1k linear probe 75.8, 79.6 and 80.4). The captions, sentences
            written by ShareGPT4V, 8.3 an image, are not.
Ours:       what the paper leaves open: T5-base, 64 tokens, warm-up and EMA of I-JEPA, lambda and
            beta ramped in over the warm-up; masks without the collator's bias by position.
We ran:     the method at toy size (README.md); this file was traced, never trained.
"""

from ml_collections import ConfigDict

from jepa_vl.config import defaults, one_of, parse_arg

IMAGES, BATCH = 1_281_167, 2048
# variant, patch, predictor depth, epochs, epochs of warm-up, first learning rate
SIZES = {
    "B": ("B", 16, 6, 600, 15, 1e-4),
    "L": ("L", 16, 12, 600, 15, 1e-4),
    "H14": ("H", 14, 12, 300, 40, 2e-4),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """``size=B`` (default), ``L`` or ``H14``."""
    size = parse_arg(arg, size="B")["size"]
    one_of("size", size, SIZES)
    variant, patch, depth, epochs, warmup, start_lr = SIZES[size]
    per_epoch = IMAGES // BATCH

    c = defaults()
    c.objective = "tcjepa"
    c.data.kind, c.data.workers = "tar", 8
    c.data.crop_scale = (0.3, 1.0)
    c.encoder.update(variant=variant, patch_size=patch, image_size=224)
    c.predictor.update(width=384, depth=depth)
    c.text.update(kind="t5", path="hub:google-t5/t5-base", captions=8, words=64)
    c.conditioner.update(kind="word_attention", mlp_ratio=4.0, scale_logits=False)
    c.loss.update(regulariser="paper", sparse=0.1, consistency=0.5)
    c.train.update(steps=epochs * per_epoch, batch_size=BATCH, dtype="bfloat16")
    c.train.update(scan_layers=True, remat="dots")
    c.optim.update(lr=1e-3, start_lr=start_lr, final_lr=1e-6, warmup_steps=warmup * per_epoch)
    c.optim.update(weight_decay=0.04, final_weight_decay=0.4, ema=0.996, final_ema=1.0)
    c.checkpoint.update(every=per_epoch, keep_every=50 * per_epoch)
    c.log.update(every=50, diagnostics_every=per_epoch, diagnostics_images=BATCH)
    c.eval.update(every=10 * per_epoch, train_images=50_000, val_images=10_000)
    return c
