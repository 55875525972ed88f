"""What sets the methods apart in a configuration: what each one reads, and its own rules."""

from jepa_vl.errors import ConfigError, at_least, divides
from jepa_vl.schema import RANDOM, Config

# Each objective with its own distance; those of FIXED_DISTANCE know no other.
DISTANCES: dict[str, str] = {
    "ijepa": "smooth_l1",
    "tcjepa": "l2",
    "tijepa": "smooth_l1",
    "crossmodal": "mse",
    "contrastive": "none",
}
FIXED_DISTANCE = ("crossmodal", "contrastive")
CONDITIONED = ("tcjepa",)  # the predictor has conditioners
READS_TEXT = ("tijepa", "crossmodal", "contrastive")  # whatever the conditioner
TRAINS_IMAGES = ("ijepa", "tcjepa", "crossmodal", "contrastive")  # an image encoder of its own
MASKED = ("ijepa", "tcjepa", "tijepa")  # multi-block masks are read
FREEZE_TEXT = ("tijepa",)  # the text tower is never trained
TRAIN_TEXT = ("crossmodal", "contrastive")  # a pretrained text tower too, unless told otherwise


def text_frozen(objective: str, kind: str) -> str:
    """yes or no: is the text tower left as it is, where the configuration does not say?"""
    if objective in FREEZE_TEXT or kind == "cached":
        return "yes"
    return "no" if kind == "hashed" or objective in TRAIN_TEXT else "yes"


def tower_files(c: Config) -> dict[str, str]:
    """Configuration keys of the frozen towers that the objective reads, with their paths.

    Beside ``text.path``, which is read whatever the objective.
    """
    if c.objective != "tijepa":
        return {}
    paths = {"frozen.image": c.frozen.image, "frozen.text": c.frozen.text}
    return {name: path for name, path in paths.items() if path != RANDOM}


def check_text(c: Config) -> None:
    """Refuses a text tower without files, with files it does not read, or wrongly frozen."""
    text = c.text
    if text.kind == "hashed" and text.path:
        raise ConfigError("text.path", text.path, "kind 'hashed' reads no files; leave it empty")
    if text.kind != "hashed" and not text.path:
        raise ConfigError("text.path", text.path, f"kind {text.kind!r} needs it")
    if c.objective in FREEZE_TEXT and text.frozen != "yes":
        rule = f"objective {c.objective!r} allows 'yes' alone"
        raise ConfigError("text.frozen", text.frozen, rule)
    fixed = text.kind in ("hashed", "cached") and text_frozen(c.objective, text.kind)
    if fixed and text.frozen != fixed:
        raise ConfigError("text.frozen", text.frozen, f"kind {text.kind!r} allows {fixed!r} alone")


def _check_tijepa(c: Config) -> None:
    if c.tijepa.width == 0:
        rule = f"to be given with text.kind {c.text.kind!r} (published: the width of its words)"
        raise ConfigError("tijepa.width", 0, rule)
    for name in ("width", "depth", "heads"):
        at_least(f"tijepa.{name}", getattr(c.tijepa, name), 1)
    divides("tijepa.width", c.tijepa.width, c.tijepa.heads, "heads")
    if not c.frozen.image:
        rule = "a workdir of ours, a pretrained folder, or 'random' for an untrained tower"
        raise ConfigError("frozen.image", c.frozen.image, rule)
    if c.text.kind != "hashed" and c.frozen.text != RANDOM:
        rule = f"for text.kind 'hashed' alone; kind {c.text.kind!r} is read from text.path"
        raise ConfigError("frozen.text", c.frozen.text, rule)


def _check_crossmodal(c: Config) -> None:
    fraction = c.crossmodal.context_fraction
    if not 0 <= fraction < 1:
        raise ConfigError("crossmodal.context_fraction", fraction, "0 <= value < 1")
    if fraction and c.text.kind == "cached":
        rule = "0 with text.kind 'cached': the words shown have read those to be predicted"
        raise ConfigError("crossmodal.context_fraction", fraction, rule)
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
