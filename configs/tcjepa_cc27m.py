"""TC-JEPA on CC12M + YFCC15M, "CC27M" (arXiv 2605.03245).

Command:    jepa-vl train --config configs/tcjepa_cc27m.py:size=L14 --config.data.path=DIR \\
                --workdir W
            DIR holds WebDataset tars, raw and generated captions together; size is B16 or L14.
            T5 is downloaded; offline, --config.text.path=FOLDER.
Hardware:   not published.
Wall-clock: not run at this scale.
Published:  sizes, 50 epochs with 10 of warm-up, batch, peak learning rate, weight decay, lambda and
            beta, 8 captions an image, a frozen T5 (IN-1k linear probe 77.3 and 81.9).
Ours:       what the paper leaves open: T5-base, 64 tokens, first learning rate and EMA of I-JEPA,
            predictor depth 12 for L14, lambda and beta ramped in over the warm-up; masks without
            the collator's bias by position.
We ran:     the method at toy size (README.md); this file was traced, never trained.
"""

from ml_collections import ConfigDict

from jepa_vl.config import defaults, one_of, parse_arg

IMAGES, BATCH, EPOCHS, WARMUP = 27_000_000, 2048, 50, 10
# variant, patch, predictor depth
SIZES = {"B16": ("B", 16, 6), "L14": ("L", 14, 12)}


def get_config(arg: str | None = None) -> ConfigDict:
    """``size=B16`` (default) or ``L14``."""
    size = parse_arg(arg, size="B16")["size"]
    one_of("size", size, SIZES)
    variant, patch, depth = SIZES[size]
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
    c.train.update(steps=EPOCHS * per_epoch, batch_size=BATCH, dtype="bfloat16")
    c.train.update(scan_layers=True, remat="dots")
    c.optim.update(lr=1e-3, start_lr=1e-4, final_lr=1e-6, warmup_steps=WARMUP * per_epoch)
    c.optim.update(weight_decay=0.04, final_weight_decay=0.4, ema=0.996, final_ema=1.0)
    c.checkpoint.update(every=1000, keep_every=5 * per_epoch)
    c.log.update(every=50, diagnostics_every=1000, diagnostics_images=BATCH)
    c.eval.every = per_epoch
    return c
