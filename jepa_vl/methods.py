"""What sets the methods apart in a configuration: what each one reads, and its own rules."""

from jepa_vl.errors import ConfigError, at_least, divides
from jepa_vl.schema import Config

# Each objective with the distances it can minimise; the first is its own.
DISTANCES: dict[str, tuple[str, ...]] = {
    "ijepa": ("smooth_l1", "l2", "mse"),
    "tcjepa": ("l2", "smooth_l1", "mse"),
    "tijepa": ("smooth_l1", "l2", "mse"),
    "crossmodal": ("mse",),
    "contrastive": ("none",),
}
CONDITIONED = ("tcjepa",)  # the predictor has conditioners
READS_TEXT = ("tijepa", "crossmodal", "contrastive")  # whatever the conditioner
MASKED = ("ijepa", "tcjepa", "tijepa")  # multi-block masks are read


def _check_tijepa(c: Config) -> None:
    for name in ("width", "depth", "heads"):
        at_least(f"tijepa.{name}", getattr(c.tijepa, name), 1)
    divides("tijepa.width", c.tijepa.width, c.tijepa.heads, "heads")
    if not c.frozen.image:
        rule = "the workdir of a run of ours, or 'random' for an untrained tower"
        raise ConfigError("frozen.image", c.frozen.image, rule)
    if c.tijepa.parity and c.tijepa.width != c.text.width:
        rule = f"text.width = {c.text.width}: with parity words are not projected"
        raise ConfigError("tijepa.width", c.tijepa.width, rule)


def _check_crossmodal(c: Config) -> None:
    fraction = c.crossmodal.context_fraction
    if not 0 <= fraction < 1:
        raise ConfigError("crossmodal.context_fraction", fraction, "0 <= value < 1")
    if c.crossmodal.text_to_image + c.crossmodal.image_to_text <= 0:
        rule = "one of text_to_image and image_to_text above 0"
        raise ConfigError("crossmodal.text_to_image", c.crossmodal.text_to_image, rule)


def _check_contrastive(c: Config) -> None:
    if c.train.micro_batches > 1:
        rule = "1 for the contrastive objective: each part would have its own, fewer negatives"
        raise ConfigError("train.micro_batches", c.train.micro_batches, rule)


CHECKS = {
    "tijepa": _check_tijepa,
    "crossmodal": _check_crossmodal,
    "contrastive": _check_contrastive,
}
