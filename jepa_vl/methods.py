"""What sets the methods apart in a configuration: what each one reads, and its own rules."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from jepa_vl.errors import ConfigError, at_least, divides, one_of
from jepa_vl.schema import RANDOM, Config


@dataclass(frozen=True)
class Method:
    """What the rest of the house has to know of an objective before it is built.

    Attributes:
      distance: what ``loss.distance`` is where it is left empty.
      only_distance: whether it knows no other.
      conditioned: its predictor has conditioners, which read captions.
      reads_text: it reads captions, whatever the conditioner.
      masked: it reads multi-block masks.
      trains_images: an image encoder of its own is trained.
      text_frozen: of a pretrained text tower, what ``text.frozen`` is where it is left empty;
        ``always``: the built-in one is not trained either.
      check: refuses what it cannot do; called with a configuration that is whole.
    """

    distance: str
    only_distance: bool = False
    conditioned: bool = False
    reads_text: bool = False
    masked: bool = True
    trains_images: bool = True
    text_frozen: Literal["yes", "no", "always"] = "yes"
    check: Callable[[Config], None] = lambda config: None


METHODS: dict[str, Method] = {}


def method(objective: str) -> Method:
    """What is known of an objective.

    One that only its own file in ``objectives`` tells of is known once those are imported.

    Raises:
      ConfigError: there is none of that name.
    """
    if objective not in METHODS:
        import_module("jepa_vl.objectives")
    one_of("objective", objective, METHODS)
    return METHODS[objective]


def text_frozen(objective: str, kind: str) -> str:
    """yes or no: is the text tower left as it is, where the configuration does not say?"""
    rule = method(objective).text_frozen
    if rule == "always" or kind == "cached":
        return "yes"
    return "no" if kind == "hashed" else rule


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
    if method(c.objective).text_frozen == "always" and text.frozen != "yes":
        rule = f"objective {c.objective!r} allows 'yes' alone"
        raise ConfigError("text.frozen", text.frozen, rule)
    fixed = text.kind in ("hashed", "cached") and text_frozen(c.objective, text.kind)
    if fixed and text.frozen != fixed:
        raise ConfigError("text.frozen", text.frozen, f"kind {text.kind!r} allows {fixed!r} alone")
    most = text.captions * text.words
    if text.packed and text.kind in ("hashed", "cached"):
        raise ConfigError("text.packed", text.packed, f"0 with kind {text.kind!r}")
    if text.packed and not text.words <= text.packed <= most:
        rule = f"0, or from text.words ({text.words}) to text.captions x text.words ({most})"
        raise ConfigError("text.packed", text.packed, rule)


def check_mup(c: Config) -> None:
    """Refuses widths of a narrow model that could not be one of the same kind."""
    m = c.mup
    if not m.base_width:
        for name in ("base_predictor_width", "base_text_width"):
            if value := getattr(m, name):
                raise ConfigError(f"mup.{name}", value, "0 without mup.base_width")
        return
    if not method(c.objective).trains_images:
        rule = f"0 with objective {c.objective!r}, which trains no image encoder"
        raise ConfigError("mup.base_width", m.base_width, rule)
    for name in ("base_width", "base_predictor_width"):
        if getattr(m, name) % 4:
            rule = "divisible by 4, for the sin-cos position table"
            raise ConfigError(f"mup.{name}", getattr(m, name), rule)
    if m.base_text_width and c.text.kind != "hashed":
        rule = f"0 with text.kind {c.text.kind!r}, whose files say how wide it is"
        raise ConfigError("mup.base_text_width", m.base_text_width, rule)
    if m.base_predictor_width and 0 < m.base_predictor_width * c.conditioner.mlp_ratio < 1:
        rule = f"at least 1 / conditioner.mlp_ratio = {1 / c.conditioner.mlp_ratio:g}"
        raise ConfigError("mup.base_predictor_width", m.base_predictor_width, rule)


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


METHODS |= {
    "ijepa": Method("smooth_l1"),
    "tcjepa": Method("l2", conditioned=True),
    "tijepa": Method(
        "smooth_l1",
        reads_text=True,
        trains_images=False,
        text_frozen="always",
        check=_check_tijepa,
    ),
    "crossmodal": Method(
        "mse",
        only_distance=True,
        reads_text=True,
        masked=False,
        text_frozen="no",
        check=_check_crossmodal,
    ),
    "contrastive": Method(
        "none",
        only_distance=True,
        reads_text=True,
        masked=False,
        text_frozen="no",
        check=_check_contrastive,
    ),
}
