"""What sets the kinds of data sources apart in a configuration: the keys that each one reads."""

import re
from fractions import Fraction
from typing import NamedTuple

from jepa_vl.errors import ConfigError, one_of
from jepa_vl.schema import Config

MIXTURE = "mixture"

# Each kind with the keys that mean something for it alone; others leave them empty.
KINDS: dict[str, tuple[str, ...]] = {
    "shapes_world": (),
    "tar": (),
    "folder": ("split",),
    "class_folder": ("split",),
    "mask_folder": ("split",),
    "parquet": ("split",),
    "tfds": ("name", "split"),
    "array_record": (),
    "mvsa": (),
    "coco_captions": ("split",),
    "vqa": ("split",),
    MIXTURE: ("mixture",),
}
POOLS = ("raw", "synthetic", "both")

_PORTION = re.compile(r"(\w+)(?::(.+))?@([^@]+)")


class Portion(NamedTuple):
    """A source of a mixture."""

    kind: str
    path: str
    weight: Fraction  # as written: 0.1 is a tenth
    text: str


def read_mixture(texts: tuple) -> list[Portion]:
    """The sources that ``data.mixture`` names.

    Raises:
      ConfigError: fewer than two, one twice, or one that is not KIND:PATH@WEIGHT.
    """
    found = [_read_portion(text) for text in texts]
    if len(found) < 2:
        raise ConfigError("data.mixture", texts, "two sources or more; one alone needs no mixture")
    seen: set[tuple[str, str]] = set()
    for portion in found:
        if portion[:2] in seen:
            raise ConfigError("data.mixture", portion.text, "stands there twice; add the weights")
        seen.add(portion[:2])
    return found


def _read_portion(text: object) -> Portion:
    key, form = "data.mixture", "KIND:PATH@WEIGHT, as in tar:/data/a@0.7"
    match = _PORTION.fullmatch(text) if isinstance(text, str) else None
    if not isinstance(text, str) or match is None:
        raise ConfigError(key, text, f"each source is {form}")
    kind, path, weight = match.groups(default="")
    one_of(key, kind, [name for name in KINDS if name != MIXTURE])
    if (kind == "shapes_world") == bool(path):
        need = "lies nowhere: shapes_world@WEIGHT" if path else f"needs the folder: {form}"
        raise ConfigError(key, text, f"kind {kind!r} {need}")
    try:
        value = Fraction(weight)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if value <= 0:
        raise ConfigError(key, text, f"the weight {weight!r} is no number above 0")
    return Portion(kind, path, value, text)


def batch_counts(mixture: list[Portion], batch_size: int) -> list[int]:
    """Images of each source in a global batch: the weights, rounded by largest remainders.

    Raises:
      ConfigError: a source would have none.
    """
    total = sum(portion.weight for portion in mixture)
    exact = [portion.weight / total * batch_size for portion in mixture]
    counts = [int(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])  # of equals, the first
    for i in by_rest[: batch_size - sum(counts)]:
        counts[i] += 1
    for portion, share, count in zip(mixture, exact, counts, strict=True):
        if not count:
            rule = f"is {float(share):.2g} images of a batch of {batch_size}, rounded to none"
            raise ConfigError("data.mixture", portion.text, f"{rule}; raise weight or batch_size")
    return counts


def check_data(c: Config) -> None:
    """Refuses unknown kinds, and keys that the kind does not read or needs.

    Raises:
      ConfigError: names the key, the value and the rule.
    """
    data = c.data
    one_of("data.kind", data.kind, KINDS)
    one_of("data.caption_pool", data.caption_pool, POOLS)
    kinds = {data.kind}
    if data.kind == MIXTURE:
        mixture = read_mixture(data.mixture)
        batch_counts(mixture, c.train.batch_size)
        kinds |= {portion.kind for portion in mixture}
        if data.path:
            rule = "empty with kind 'mixture': paths stand in data.mixture"
            raise ConfigError("data.path", data.path, rule)
        if c.eval.path and mixture[0].kind == "shapes_world":
            rule = "is of the kind of the first source, and shapes_world lies nowhere"
            raise ConfigError("eval.path", c.eval.path, rule)
    elif data.kind != "shapes_world" and not data.path:
        rule = f"kind {data.kind!r} needs the folder of the data"
        raise ConfigError("data.path", data.path, rule)
    given = {"data.name": data.name, "data.split": data.split, "eval.split": c.eval.split}
    for name, value in {**given, "data.mixture": data.mixture}.items():
        readers = [kind for kind, keys in KINDS.items() if name.split(".")[1] in keys]
        if value and not kinds.intersection(readers):
            rule = f"empty with kind {data.kind!r}; for {', '.join(readers)} alone"
            raise ConfigError(name, value, rule)
    if "tfds" in kinds and not data.name:
        raise ConfigError("data.name", "", "kind 'tfds' needs the name of the dataset")
    if data.caption_pool == "synthetic" and not data.captions_file:
        rule = "'synthetic' reads data.captions_file, which is empty"
        raise ConfigError("data.caption_pool", data.caption_pool, rule)
    for name in ("caption_keys", "image_keys"):
        names = getattr(data, name)
        if not names or not all(isinstance(item, str) and item for item in names):
            raise ConfigError(f"data.{name}", names, "one name or more, each a string")
