"""What a configuration means: typed, checked and completed before anything runs.

Files in ``configs/`` start from :func:`defaults`, change values and return a ``ConfigDict``; the command
line overrides single values; :func:`resolve` then checks types and meaning, fills in what is derived
(``0`` and ``""`` stand for "derive it") and returns a frozen :class:`Config`.
"""

import dataclasses
import difflib
import hashlib
import json
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from jepa_vl.schema import VARIANTS, EncoderConfig
from jepa_vl.schema import Config as Config


class ConfigError(ValueError):
    """Bad input of the user: one line that names the key, the value and the rule. Exit code 5."""

    def __init__(self, key: str, value: Any, rule: str):
        self.key, self.value, self.rule = key, value, rule
        super().__init__(f"{key} = {value!r}: {rule}")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionary, fit for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(config: Config) -> str:
    """12 hex digits that name the resolved configuration."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:12]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"encoder": {"width": 96}}`` as ``{"encoder.width": 96}``."""
    out: dict[str, Any] = {}
    for name, value in tree.items():
        out.update(
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return out


def defaults() -> ConfigDict:
    """All keys with their defaults, to be changed by a file in ``configs/``."""
    return ConfigDict(dataclasses.asdict(Config()), convert_dict=True)


def parse_arg(arg: str | None, **choices: str) -> dict[str, str]:
    """Reads the argument of a config file, as in ``configs/quickstart.py:data=tar,size=96``.

    Args:
      arg: comma-separated ``name=value``; None or empty for none.
      **choices: the names known to the file, with their defaults.

    Raises:
      ConfigError: an unknown name, or no ``=``.
    """
    values = dict(choices)
    for item in filter(None, (arg or "").split(",")):
        name, equals, value = item.partition("=")
        if not equals or name not in choices:
            raise ConfigError(
                "config argument", item, f"give name=value with a name from {', '.join(choices)}"
            )
        values[name] = value
    return values


def one_of(name: str, value: str, choices: Any) -> None:
    """Refuses a value outside the choices, naming the nearest one."""
    names = list(choices)
    if value in names:
        return
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ConfigError(name, value, f"one of {', '.join(map(repr, names))}{hint}")


def from_dict(tree: Any) -> Config:
    """Builds the schema from nested dictionaries, refusing unknown keys and wrong types.

    Raises:
      ConfigError: names the key (and the nearest known one), the value and the rule.
    """
    return _build(Config, tree.to_dict() if isinstance(tree, ConfigDict) else dict(tree), "")


def _build(schema: type, tree: Any, prefix: str) -> Any:
    if not isinstance(tree, dict):
        raise ConfigError(prefix.rstrip("."), tree, "holds keys of its own, not a value")
    hints, values = get_type_hints(schema), {}
    for name, value in tree.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            hint = (
                f"; did you mean {prefix}{near[0]}?"
                if near
                else f"; known here: {', '.join(hints)}"
            )
            raise ConfigError(prefix + name, value, f"no such key{hint}")
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _build(hints[name], value, f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]
        else:
            values[name] = _typed(prefix + name, value, hints[name])
    return schema(**values)


def _typed(name: str, value: Any, hint: type) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is tuple and isinstance(value, list):
        return tuple(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(name, value, f"must be {hint.__name__}, not {type(value).__name__}")
    return value


OBJECTIVES = ("ijepa", "tcjepa")
DISTANCES = {"ijepa": "smooth_l1", "tcjepa": "l2"}

# Keys that a resumed run may change: they alter neither the model, the data order nor the schedules.
RESUMABLE = ("data.workers", "data.prefetch", "data.threads", "mesh.", "checkpoint.", "log.", "eval.",
             "train.compile_cache", "train.max_bad_steps")  # fmt: skip


def reads_text(config: Config) -> bool:
    """Does the objective read captions?"""
    return config.objective != "ijepa" and config.conditioner.kind != "none"


def resolve(tree: Any) -> Config:
    """Checks types and meaning, and fills in derived values.

    Args:
      tree: a ``ConfigDict`` or nested dictionaries, overrides already applied.

    Returns:
      The final configuration; ``resolve(to_dict(c)) == c`` for each result c.

    Raises:
      ConfigError: names the key, the value and the rule.
    """
    config = from_dict(tree)
    one_of("objective", config.objective, OBJECTIVES)
    encoder = _resolve_encoder(config.encoder)
    steps = config.train.steps
    _at_least("train.steps", steps, 1)
    replace = dataclasses.replace
    predictor = replace(config.predictor, heads=config.predictor.heads or encoder.heads)
    _at_least("predictor.depth", predictor.depth, 1)
    _divides("predictor.width", predictor.width, predictor.heads, "heads")
    if predictor.width % 4:
        raise ConfigError(
            "predictor.width", predictor.width, "divisible by 4, for the sin-cos position table"
        )
    optim = replace(config.optim, warmup_steps=config.optim.warmup_steps or max(1, steps // 10))
    loss = replace(
        config.loss,
        distance=config.loss.distance or DISTANCES[config.objective],
        ramp_steps=config.loss.ramp_steps or optim.warmup_steps,
    )
    evaluation = replace(
        config.eval,
        every=config.eval.every or max(1, steps // 4),
        batch_size=config.eval.batch_size or config.train.batch_size,
    )
    conditioner = (
        replace(config.conditioner, kind="none")
        if config.objective == "ijepa"
        else config.conditioner
    )
    config = replace(
        config,
        encoder=encoder,
        predictor=predictor,
        optim=optim,
        loss=loss,
        eval=evaluation,
        conditioner=conditioner,
    )
    _check_meaning(config)
    return config


def resume_diff(saved: dict[str, Any], config: Config) -> list[str]:
    """Lines ``key: saved -> now`` for values that a resumed run may not change."""
    old, new = flat(saved), flat(to_dict(config))
    keys = [name for name in sorted(old.keys() | new.keys()) if not name.startswith(RESUMABLE)]
    return [
        f"{k}: {old.get(k, 'absent')!r} -> {new.get(k, 'absent')!r}"
        for k in keys
        if old.get(k) != new.get(k)
    ]


def _resolve_encoder(encoder: EncoderConfig) -> EncoderConfig:
    if encoder.variant:
        one_of("encoder.variant", encoder.variant, VARIANTS)
        preset = dict(
            zip(("width", "depth", "heads", "mlp_width"), VARIANTS[encoder.variant], strict=True)
        )
        for name, value in preset.items():
            given = getattr(encoder, name)
            if given not in (0, value):
                raise ConfigError(
                    f"encoder.{name}",
                    given,
                    f"variant {encoder.variant!r} has {value}; set variant=''",
                )
        encoder = dataclasses.replace(encoder, **preset)
    for name in ("width", "depth", "heads"):
        _at_least(f"encoder.{name}", getattr(encoder, name), 1)
    encoder = dataclasses.replace(encoder, mlp_width=encoder.mlp_width or 4 * encoder.width)
    _at_least("encoder.patch_size", encoder.patch_size, 1)
    _divides("encoder.image_size", encoder.image_size, encoder.patch_size, "patch_size")
    _divides("encoder.width", encoder.width, encoder.heads, "heads")
    if encoder.width % 4:
        raise ConfigError(
            "encoder.width", encoder.width, "divisible by 4, for the sin-cos position table"
        )
    return encoder


def _check_meaning(config: Config) -> None:
    c = config
    one_of("data.kind", c.data.kind, ("shapes_world", "tar", "folder"))
    one_of("text.kind", c.text.kind, ("hashed",))
    one_of("conditioner.kind", c.conditioner.kind, ("word_attention", "none"))
    one_of("loss.distance", c.loss.distance, sorted(set(DISTANCES.values())))
    one_of("loss.regulariser", c.loss.regulariser, ("paper", "centred", "off"))
    one_of("masks.mode", c.masks.mode, ("production", "reference"))
    one_of("train.dtype", c.train.dtype, ("float32", "bfloat16"))
    one_of("log.progress", c.log.progress, ("auto", "lines", "off"))
    positive = ("text.captions", "text.words", "text.width", "train.batch_size", "train.micro_batches",
                "train.max_bad_steps", "checkpoint.every", "checkpoint.keep_last", "log.every",
                "log.diagnostics_every", "log.diagnostics_images", "eval.k", "eval.train_images",
                "eval.val_images", "masks.target_blocks", "data.prefetch", "data.threads", "data.train_size")  # fmt: skip
    for name in positive:
        section, leaf = name.split(".")
        _at_least(name, getattr(getattr(c, section), leaf), 1)
    for name in (
        "data.workers",
        "checkpoint.keep_every",
        "loss.sparse",
        "loss.consistency",
        "text.depth",
    ):
        section, leaf = name.split(".")
        _at_least(name, getattr(getattr(c, section), leaf), 0)
    _at_least("text.vocabulary", c.text.vocabulary, 3)
    _divides("text.width", c.text.width, c.text.heads, "heads")
    _divides("train.batch_size", c.train.batch_size, c.train.micro_batches, "micro_batches")
    if c.data.kind != "shapes_world" and not c.data.path:
        raise ConfigError(
            "data.path", c.data.path, f"kind {c.data.kind!r} needs the folder of the data"
        )
    if not 0 < c.optim.ema <= c.optim.final_ema <= 1:
        raise ConfigError(
            "optim.ema", c.optim.ema, f"0 < ema <= final_ema = {c.optim.final_ema} <= 1"
        )
    if not 0 < c.data.holdout < 1:
        raise ConfigError("data.holdout", c.data.holdout, "between 0 and 1")
    if c.optim.warmup_steps >= c.train.steps * c.optim.schedule_scale and c.train.steps > 1:
        raise ConfigError(
            "optim.warmup_steps", c.optim.warmup_steps, f"below train.steps = {c.train.steps}"
        )
    for name in ("data.crop_scale", "data.crop_ratio", "masks.target_scale", "masks.target_aspect",
                 "masks.context_scale"):  # fmt: skip
        section, leaf = name.split(".")
        _check_range(
            name, getattr(getattr(c, section), leaf), upper=1.0 if leaf.endswith("scale") else None
        )
    for name in ("data", "fsdp", "tensor"):
        size = getattr(c.mesh, name)
        if size < 1 and not (name == "data" and size == -1):
            raise ConfigError(
                f"mesh.{name}", size, "at least 1 (data may be -1: all devices that remain)"
            )


def _check_range(name: str, value: tuple, upper: float | None) -> None:
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
    if (
        len(value) != 2
        or not numbers
        or not 0 < value[0] <= value[1]
        or (upper and value[1] > upper)
    ):
        raise ConfigError(
            name, value, f"two numbers, 0 < low <= high{f' <= {upper:g}' if upper else ''}"
        )


def _at_least(name: str, value: float, least: int) -> None:
    if value < least:
        raise ConfigError(name, value, f"at least {least}")


def _divides(name: str, value: int, divisor: int, divisor_name: str) -> None:
    if divisor < 1 or value % divisor:
        raise ConfigError(name, value, f"a multiple of {divisor_name} = {divisor}")
