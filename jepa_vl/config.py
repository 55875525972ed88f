"""What a configuration means: typed, checked and completed before anything runs.

Files in ``configs/`` start from :func:`defaults`, change values and return a ``ConfigDict``; the
command line overrides single values; :func:`resolve` then checks types and meaning, fills in what
is derived (``0`` and ``""`` stand for "derive it") and returns a frozen :class:`Config`.
"""

import dataclasses
import difflib
import hashlib
import json
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from jepa_vl.errors import ConfigError as ConfigError
from jepa_vl.errors import at_least, divides
from jepa_vl.errors import one_of as one_of
from jepa_vl.kinds import check_data
from jepa_vl.limits import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    POSITIVE,
    SMALLEST,
    check_limits,
    check_representable,
)
from jepa_vl.methods import check_mup, check_text, method, text_frozen
from jepa_vl.schema import (
    CROSSERS,
    LEARNED,
    PREDICTOR_DEPTHS,
    VARIANTS,
    EncoderConfig,
    TextConfig,
    TIJepaConfig,
)
from jepa_vl.schema import Config as Config
from jepa_vl.schema_health import ACTIONS, RULES, SHORTEST_LULL


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


def defaults() -> Any:
    """A ``ConfigDict`` of all keys with their defaults, to be changed by a file in ``configs/``.

    Typed as Any: the attributes of a ConfigDict have no static types.
    """
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


def from_dict(tree: Any) -> Config:
    """Builds the schema from nested dictionaries, refusing unknown keys and wrong types.

    Raises:
      ConfigError: names the key (and the nearest known one), the value and the rule.
    """
    return _build(Config, tree.to_dict() if isinstance(tree, ConfigDict) else tree, "")


def _build(schema: type, tree: Any, prefix: str) -> Any:
    if not isinstance(tree, dict):
        name = prefix.rstrip(".") or "configuration"
        raise ConfigError(name, tree, "holds keys of its own, not a value")
    hints, values = get_type_hints(schema), {}
    for name, value in tree.items():
        if not isinstance(name, str):
            raise ConfigError(f"{prefix}{name!r}", value, "no such key; keys are strings")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            hint = (
                f"; did you mean {prefix}{near[0]}?"
                if near
                else f"; known here: {', '.join(hints)}"
            )
            raise ConfigError(prefix + name or repr(name), value, f"no such key{hint}")
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _build(hints[name], value, f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]
        else:
            values[name] = _typed(prefix + name, value, hints[name])
    return schema(**values)


def _typed(name: str, value: Any, hint: type) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(name, value, "must be finite") from None
    if hint is tuple and isinstance(value, tuple | list):
        value = _tuples(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(name, value, f"must be {hint.__name__}, not {type(value).__name__}")
    if isinstance(value, tuple) and not _plain(value):
        raise ConfigError(name, value, "holds words or numbers alone")
    return value


def _tuples(value: Any) -> Any:
    """Lists become tuples at every depth: a file of JSON reads back as what was written."""
    return tuple(map(_tuples, value)) if isinstance(value, tuple | list) else value


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return isinstance(value, str | int | float)


# Objects that are chosen by name and can be added to (the conditioner and its fusion, the distance,
# the regulariser) are checked by objectives.check, against what is registered.
CHOICES: dict[str, tuple[str, ...]] = {
    "data.captions": ("own", "shuffled", "empty", "random"),
    "data.decoder": ("pillow", "turbo"),
    "text.kind": ("hashed", "t5", "bert", "gte", "cached"),
    "text.frozen": ("yes", "no"),
    "text.weights_dtype": ("float32", "bfloat16"),
    "text.cache_dtype": ("float16", "bfloat16", "float32"),
    "crossmodal.targets": ("tokens", "pooled"),
    "contrastive.loss": ("clip", "siglip"),
    "encoder.positions": ("fixed", LEARNED),
    "init_branch": ("target", "context"),
    "conditioner.layers": ("all", "one"),
    "conditioner.pool": ("before_mlp", "after_mlp"),
    "loss.target_norm": ("layer_norm", "none"),
    "masks.mode": ("production", "reference"),
    "train.init": ("normal", "fan_in"),
    "train.dtype": ("float32", "bfloat16"),
    "train.remat": ("none", "dots", "full"),
    "train.gather": ("layer", "step"),
    "log.progress": ("auto", "lines", "json", "off"),
    "health.action": ACTIONS,
}
DERIVED_MESH = {  # axis -> the number that stands for "derive it", and what it gives
    "data": (-1, "all devices that remain"),
    "fsdp": (0, "what suits the chip"),
    "tensor": (1, "one device"),
}
RANGES: dict[str, float | None] = {  # key of (low, high) -> the most that high may be
    "data.crop_scale": 1.0,
    "data.crop_ratio": None,
    "masks.target_scale": 1.0,
    "masks.target_aspect": None,
    "masks.context_scale": 1.0,
}

# A resumed run may change these: they alter neither the model, the data order nor the schedules.
# (What lies at text.path and in frozen is compared by its content.)
RESUMABLE = (
    "text.path", "frozen.", "data.workers", "data.prefetch", "data.threads", "data.max_bad_share",
    "mesh.", "checkpoint.", "log.", "health.", "eval.", "train.compile_cache",
    "train.max_bad_steps", "train.max_rewinds", "train.spike_z", "train.watchdog_minutes",
    "train.remat", "train.scan_layers", "train.gather", "text.packed",
)  # fmt: skip


def reads_text(config: Config) -> bool:
    """Does the objective read captions?"""
    conditioned = method(config.objective).conditioned and config.conditioner.kind != "none"
    return conditioned or method(config.objective).reads_text


def reads_masks(config: Config) -> bool:
    """Does the objective read multi-block masks?"""
    return method(config.objective).masked


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
    check_representable(flat(dataclasses.asdict(config)))
    known = method(config.objective)
    encoder = _resolve_encoder(config.encoder)
    steps = config.train.steps
    at_least("train.steps", steps, 1)
    replace = dataclasses.replace
    predictor = replace(
        config.predictor,
        depth=config.predictor.depth or PREDICTOR_DEPTHS.get(encoder.variant, 6),
        heads=config.predictor.heads or encoder.heads,
    )
    at_least("predictor.depth", predictor.depth, 1)
    at_least("predictor.width", predictor.width, 1)
    divides("predictor.width", predictor.width, predictor.heads, "heads")
    if predictor.width % 4:
        raise ConfigError(
            "predictor.width", predictor.width, "divisible by 4, for the sin-cos position table"
        )
    optim = replace(config.optim, warmup_steps=config.optim.warmup_steps or max(1, steps // 10))
    loss = replace(
        config.loss,
        distance=config.loss.distance or known.distance,
        ramp_steps=config.loss.ramp_steps or optim.warmup_steps,
    )
    evaluation = replace(
        config.eval,
        every=config.eval.every or max(1, steps // 4),
        batch_size=config.eval.batch_size or config.train.batch_size,
    )
    text = replace(
        config.text,
        frozen=config.text.frozen or text_frozen(config.objective, config.text.kind),
    )
    conditioner = config.conditioner
    if not known.conditioned:
        conditioner = replace(conditioner, kind="none")
    config = replace(
        config,
        text=text,
        encoder=encoder,
        predictor=predictor,
        optim=optim,
        loss=loss,
        eval=evaluation,
        conditioner=conditioner,
        tijepa=_resolve_crosser(config.tijepa, config.text),
        health=replace(config.health, lull=config.health.lull or max(SHORTEST_LULL, steps // 2)),
    )
    _check_meaning(config)
    return config


def resume_diff(saved: dict[str, Any], config: Config) -> list[str]:
    """Lines ``key: saved -> now`` for values that a resumed run may not change.

    A key that has come since the run began counts as its default.
    """
    old, new = flat(to_dict(Config())) | flat(saved), flat(to_dict(config))
    keys = [name for name in sorted(old.keys() | new.keys()) if not name.startswith(RESUMABLE)]
    return [
        f"{k}: {old.get(k, 'absent')!r} -> {new.get(k, 'absent')!r}"
        for k in keys
        if old.get(k) != new.get(k)
    ]


def _resolve_encoder(encoder: EncoderConfig) -> EncoderConfig:
    names = ("width", "depth", "heads", "mlp_width")
    encoder = _from_variant("encoder", encoder, names, VARIANTS)
    for name in ("width", "depth", "heads", "patch_size", "image_size"):
        at_least(f"encoder.{name}", getattr(encoder, name), 1)
    encoder = dataclasses.replace(encoder, mlp_width=encoder.mlp_width or 4 * encoder.width)
    divides("encoder.image_size", encoder.image_size, encoder.patch_size, "patch_size")
    divides("encoder.width", encoder.width, encoder.heads, "heads")
    if encoder.width % 4:
        raise ConfigError(
            "encoder.width", encoder.width, "divisible by 4, for the sin-cos position table"
        )
    return encoder


def _resolve_crosser(crosser: TIJepaConfig, text: TextConfig) -> TIJepaConfig:
    crosser = _from_variant("tijepa", crosser, ("depth", "heads"), CROSSERS)
    known = text.width if text.kind == "hashed" else 0  # of others, in their files
    return dataclasses.replace(crosser, width=crosser.width or known)


def _from_variant(section: str, values: Any, names: tuple, table: dict[str, tuple]) -> Any:
    """Fills in what a named size stands for; values that contradict it are refused."""
    if not values.variant:
        return values
    one_of(f"{section}.variant", values.variant, table)
    preset = dict(zip(names, table[values.variant], strict=True))
    for name, value in preset.items():
        given = getattr(values, name)
        if given not in (0, value):
            rule = f"variant {values.variant!r} has {value}; set variant=''"
            raise ConfigError(f"{section}.{name}", given, rule)
    return dataclasses.replace(values, **preset)


def _check_meaning(config: Config) -> None:
    values = flat(dataclasses.asdict(config))
    for name, choices in CHOICES.items():
        one_of(name, values[name], choices)
    for names, least in ((AT_LEAST_1, 1), (NOT_NEGATIVE, 0), (("text.vocabulary",), 3)):
        for name in names:
            at_least(name, values[name], least)
    for name in POSITIVE:
        if values[name] < SMALLEST:
            raise ConfigError(name, values[name], f"above 0 (and what float32 holds: {SMALLEST:g})")
    for name in ("optim.b1", "optim.b2", "text.dropout", "health.rewind_lr"):
        if not 0 <= values[name] < 1:
            raise ConfigError(name, values[name], "0 <= value < 1")
    for name, upper in RANGES.items():
        _check_range(name, values[name], upper)
    for name in ("init_parts", "init_allow", "eval.tasks"):
        if not all(isinstance(word, str) and word for word in values[name]):
            raise ConfigError(name, values[name], "holds names alone")
    if config.init_from and not method(config.objective).trains_images:
        rule = f"empty with objective {config.objective!r}, which trains no image encoder"
        raise ConfigError("init_from", config.init_from, rule)
    for name in config.health.mute:
        one_of("health.mute", name, RULES)
    if not 0 <= config.seed < 2**32:
        raise ConfigError("seed", config.seed, "0 <= seed < 2**32")
    if not 0 < config.data.holdout < 1:
        raise ConfigError("data.holdout", config.data.holdout, "between 0 and 1")
    if not 0 <= config.data.max_bad_share <= 1:
        raise ConfigError("data.max_bad_share", config.data.max_bad_share, "a share, 0 to 1")
    for name, (derived, means) in DERIVED_MESH.items():
        size = getattr(config.mesh, name)
        if size < 1 and size != derived:
            rule = f"at least 1, or {derived}: {means}"
            raise ConfigError(f"mesh.{name}", size, rule)
    check_limits(config)
    _check_relations(config)


def _check_relations(c: Config) -> None:
    known = method(c.objective)
    if known.only_distance:
        one_of("loss.distance", c.loss.distance, (known.distance,))
    divides("text.width", c.text.width, c.text.heads, "heads")
    check_text(c)
    check_mup(c)
    check_data(c)
    divides("train.batch_size", c.train.batch_size, c.train.micro_batches, "micro_batches")
    if c.data.captions != "own" and not reads_text(c):
        rule = f"'own' with objective {c.objective!r}, which reads no captions"
        raise ConfigError("data.captions", c.data.captions, rule)
    if not 0 < c.optim.ema <= c.optim.final_ema <= 1:
        rule = f"0 < ema <= final_ema = {c.optim.final_ema} <= 1"
        raise ConfigError("optim.ema", c.optim.ema, rule)
    if c.optim.warmup_steps >= c.train.steps * c.optim.schedule_scale and c.train.steps > 1:
        lower = f"--config.optim.warmup_steps={c.train.steps // 10}"
        rule = f"below train.steps = {c.train.steps}, as in {lower}"
        raise ConfigError("optim.warmup_steps", c.optim.warmup_steps, rule)
    known.check(c)


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
