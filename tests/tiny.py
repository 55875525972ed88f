"""The smallest configuration that trains: two seconds of compute a run."""

from ml_collections import ConfigDict

from jepa_vl.config import Config, defaults, resolve


def tiny_config(**overrides) -> ConfigDict:
    """32 px, 16 patches, 8 images a step, 6 steps, no worker, all devices, not a word on stdout.

    Args:
      **overrides: nested keys with dots (``**{"train.steps": 3}``) or top-level ones (``seed=1``).
    """
    c = defaults()
    c.encoder.image_size, c.encoder.patch_size = 32, 8
    c.encoder.width, c.encoder.depth, c.encoder.heads = 32, 1, 2
    c.predictor.width, c.predictor.depth, c.predictor.heads = 16, 2, 2
    c.conditioner.mlp_ratio = 2.0
    c.loss.regulariser = "paper"
    c.frozen.image, c.contrastive.width = "random", 16
    c.tijepa.variant, c.tijepa.depth, c.tijepa.heads = "", 1, 2
    c.text.captions, c.text.words, c.text.vocabulary = 2, 12, 512
    c.text.width, c.text.depth, c.text.heads = 16, 0, 2
    c.data.train_size, c.data.workers, c.data.threads = 64, 0, 2
    c.train.steps, c.train.batch_size, c.train.compile_cache = 6, 8, "off"
    c.log.every, c.log.diagnostics_every, c.log.diagnostics_images = 1, 3, 8
    c.log.progress, c.log.tensorboard = "off", False
    c.eval.every, c.eval.train_images, c.eval.val_images, c.eval.k = 3, 32, 16, 5
    c.health.data_images = 8
    c.checkpoint.every, c.checkpoint.keep_best = 3, 0
    c.update_from_flattened_dict(overrides)
    return c


def tiny(**overrides) -> Config:
    """:func:`tiny_config`, resolved."""
    return resolve(tiny_config(**overrides))
