"""What sets the kinds of data sources apart in a configuration: the keys that each one reads."""

from jepa_vl.errors import ConfigError, one_of
from jepa_vl.schema import Config

# Each kind with the keys that mean something for it alone; others leave them empty.
KINDS: dict[str, tuple[str, ...]] = {
    "shapes_world": (),
    "tar": (),
    "folder": (),
    "class_folder": ("split",),
    "parquet": ("split",),
    "tfds": ("name", "split"),
    "array_record": (),
}
POOLS = ("raw", "synthetic", "both")


def check_data(c: Config) -> None:
    """Refuses unknown kinds, and keys that the kind does not read or needs.

    Raises:
      ConfigError: names the key, the value and the rule.
    """
    data = c.data
    one_of("data.kind", data.kind, KINDS)
    one_of("data.caption_pool", data.caption_pool, POOLS)
    if data.kind != "shapes_world" and not data.path:
        rule = f"kind {data.kind!r} needs the folder of the data"
        raise ConfigError("data.path", data.path, rule)
    given = {"data.name": data.name, "data.split": data.split, "eval.split": c.eval.split}
    for name, value in given.items():
        readers = [kind for kind, keys in KINDS.items() if name.split(".")[1] in keys]
        if value and data.kind not in readers:
            rule = f"empty with kind {data.kind!r}; for {', '.join(readers)} alone"
            raise ConfigError(name, value, rule)
    if data.kind == "tfds" and not data.name:
        raise ConfigError("data.name", "", "kind 'tfds' needs the name of the dataset")
    if data.caption_pool == "synthetic" and not data.captions_file:
        rule = "'synthetic' reads data.captions_file, which is empty"
        raise ConfigError("data.caption_pool", data.caption_pool, rule)
    for name in ("caption_keys", "image_keys"):
        names = getattr(data, name)
        if not names or not all(isinstance(item, str) and item for item in names):
            raise ConfigError(f"data.{name}", names, "one name or more, each a string")
