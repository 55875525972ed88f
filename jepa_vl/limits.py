"""The least and the most that a value of the configuration may be.

The most is not what a machine can train, which ``jepa-vl compile`` tells: beyond it a run could not
even be planned within seconds and a gigabyte, or would not fit the types that hold it.
"""

import math
from typing import Any

from jepa_vl.errors import ConfigError
from jepa_vl.schema import Config

INT32 = 2**31 - 1
FLOAT32, SMALLEST = 3.4028234e38, 1.1754944e-38  # the largest, and the least that is not 0
LETTERS = 1024
PATCHES_A_SIDE = 128
PROJECT, NOT_IN_PROJECT = 128, "/\\#?%:"  # letters of a name at Weights & Biases
NAME = 255  # bytes of a file's name that file systems hold
PATHS = (
    "init_from", "data.path", "data.captions_file", "eval.path", "text.path", "frozen.image",
    "frozen.text", "train.compile_cache",
)  # fmt: skip
TABLE = 2**26  # numbers in a table of positions, patches x width

AT_LEAST_1 = (
    "data.train_size", "data.prefetch", "data.threads", "data.max_pixels",
    "text.captions", "text.words", "text.width", "text.heads",
    "crossmodal.energy_masks", "contrastive.width",
    "encoder.mlp_width", "masks.target_blocks", "optim.warmup_steps",
    "loss.ramp_steps", "loss.contrast_images",
    "train.batch_size", "train.micro_batches", "train.max_bad_steps",
    "checkpoint.every", "checkpoint.keep_last", "log.proof_every",
    "log.every", "log.diagnostics_every", "log.diagnostics_images",
    "health.patience", "health.lull",
    "eval.every", "eval.k", "eval.train_images", "eval.val_images", "eval.batch_size",
    "eval.decoder_steps", "eval.decoder_batch", "eval.decoder_layers", "eval.beam",
)  # fmt: skip
NOT_NEGATIVE = (
    "data.workers", "text.depth", "text.packed", "checkpoint.keep_every",
    "eval.crops", "eval.probe_steps", "eval.probe_batch", "eval.shots",
    "checkpoint.keep_best", "checkpoint.every_minutes", "checkpoint.patience_minutes",
    "train.spike_z", "train.max_rewinds", "train.watchdog_minutes",
    "mup.base_width", "mup.base_predictor_width", "mup.base_text_width", "conditioner.mlp_ratio",
    "loss.sparse", "loss.consistency", "loss.contrast",
    "crossmodal.text_to_image", "crossmodal.image_to_text",
    "optim.start_lr", "optim.final_lr", "optim.weight_decay", "optim.final_weight_decay",
    "anticollapse.variance", "anticollapse.covariance", "anticollapse.rank", "anticollapse.sigreg",
)  # fmt: skip
POSITIVE = (
    "optim.lr", "optim.eps", "optim.schedule_scale", "eval.temperature",
    "health.rewind_lr",
)  # fmt: skip
AT_MOST: dict[str, float] = {
    # Each block is traced on its own, and parameters are made for each.
    **dict.fromkeys(("text.depth", "encoder.depth", "predictor.depth", "tijepa.depth"), 64),
    **dict.fromkeys(("text.width", "encoder.width", "predictor.width", "tijepa.width"), 16_384),
    **dict.fromkeys(("mup.base_width", "mup.base_predictor_width", "mup.base_text_width"), 16_384),
    "contrastive.width": 65_536,
    "encoder.mlp_width": 131_072,
    "encoder.image_size": 16_384,
    "conditioner.mlp_ratio": 64,
    "text.vocabulary": 2**24,
    "text.captions": 1024,
    "text.words": 32_768,
    "masks.target_blocks": 256,  # the plan draws them
    "loss.contrast_images": 64,  # a loop that is not rolled up
    "crossmodal.energy_masks": 1024,
    "train.batch_size": 2**20,
    "eval.batch_size": 2**20,
    "log.diagnostics_images": 2**20,
    "data.train_size": 10**8,  # orders of the images are arrays
    "eval.train_images": 10**8,
    "eval.val_images": 10**8,
    "eval.crops": 1024,
    "eval.probe_batch": 2**20,
    "eval.decoder_batch": 2**20,
    "eval.decoder_layers": 64,
    "eval.beam": 1024,
    "data.workers": 1024,
    "data.threads": 1024,
    "data.prefetch": 4096,
}


def check_representable(values: dict[str, Any]) -> None:
    """Refuses numbers that int32 and float32 do not hold, and texts that are none.

    Args:
      values: all values by dotted key.

    Raises:
      ConfigError: names the key, the value and the rule.
    """
    for name, value in values.items():
        for item in value if isinstance(value, tuple) else (value,):
            rule = _why_not(item) or (_path_why_not(item) if name in PATHS else "")
            if rule and name != "seed":  # has a rule of its own
                raise ConfigError(name, value, rule)


def _why_not(item: Any) -> str:
    if isinstance(item, bool | tuple | list):  # a tuple in a tuple: no key allows it
        return ""
    if isinstance(item, int):
        return "" if abs(item) <= INT32 else f"from -{INT32} to {INT32}"
    if isinstance(item, float):
        if not math.isfinite(item):
            return "must be finite"
        return "" if abs(item) <= FLOAT32 else f"at most {FLOAT32:g}, as float32 holds"
    if len(item) > LETTERS:
        return f"has {len(item)} letters, at most {LETTERS}"
    control = any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in item)
    return "must be text without control characters" if control else ""


def _path_why_not(path: str) -> str:
    longest = max(len(part.encode()) for part in path.split("/"))
    return f"a name in it has {longest} bytes, at most {NAME}" if longest > NAME else ""


def check_limits(c: Config) -> None:
    """Refuses sizes that could not be planned.

    Args:
      c: values filled in.

    Raises:
      ConfigError: names the key, the value and the rule.
    """
    for name, most in AT_MOST.items():
        section, last = name.split(".")
        value = getattr(getattr(c, section), last)
        if value > most:
            raise ConfigError(name, value, f"at most {most}")
    project = c.log.wandb
    if len(project) > PROJECT or set(project) & set(NOT_IN_PROJECT):
        rule = f"a project's name, at most {PROJECT} letters, none of {' '.join(NOT_IN_PROJECT)}"
        raise ConfigError("log.wandb", project, rule)
    grid = c.encoder.grid
    if grid > PATCHES_A_SIDE:
        rule = f"at most {PATCHES_A_SIDE} patches of {c.encoder.patch_size} along a side"
        raise ConfigError("encoder.image_size", c.encoder.image_size, rule)
    for name in ("encoder", "predictor"):
        width = getattr(c, name).width
        if width * grid**2 > TABLE:
            rule = f"at most {TABLE // grid**2} with {grid} x {grid} patches"
            raise ConfigError(f"{name}.width", width, rule)
    hidden = c.predictor.width * c.conditioner.mlp_ratio
    if 0 < hidden < 1:
        rule = f"0, or at least 1 / predictor.width = {1 / c.predictor.width:.3g}"
        raise ConfigError("conditioner.mlp_ratio", c.conditioner.mlp_ratio, rule)
    if not 1 <= c.train.steps * c.optim.schedule_scale <= INT32:
        rule = f"with train.steps = {c.train.steps} schedules must be 1 to {INT32} steps long"
        raise ConfigError("optim.schedule_scale", c.optim.schedule_scale, rule)
