"""Recipes of configs/ with one to four values changed, for hypothesis.

As a tree or on the command line, to odd values of the right type or to wrong ones; and keys that
are misspelt, added or removed.
"""

import copy
import dataclasses
import functools
import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from jepa_vl.cli import configs
from jepa_vl.config import CHOICES, Config, flat
from jepa_vl.methods import METHODS
from jepa_vl.models.conditioner import CONDITIONERS, FUSIONS, REGULARISERS
from tests.test_recipes import CASES, ROOT

WORLD = ("quickstart", "data=shapes_world")
# Each recipe with towers of two layers, which is traced soon; test_recipes traces the whole ones.
RECIPES = [(name, arg, "", True) for name, arg in CASES]
RECIPES += 6 * [(*WORLD, name, True) for name in METHODS] + [(*WORLD, "", False)]
NAMES = {
    **CHOICES,
    "objective": tuple(METHODS),
    "conditioner.kind": tuple(CONDITIONERS),
    "conditioner.fusion": tuple(FUSIONS),
    "loss.regulariser": tuple(REGULARISERS),
    "loss.distance": (*(known.distance for known in METHODS.values()), ""),
    "encoder.variant": ("Ti", "S", "B", "L", "H", "g", ""),
    "tijepa.variant": ("small", "medium", "large", ""),
    "data.kind": ("shapes_world", "tar", "folder", "parquet", "tfds", "mixture", "mask_folder"),
    "frozen.image": ("random", ""),
}
INTEGERS = (0, 1, 2, 3, 4, 7, 8, 12, 16, 24, 64, 100, 127, 128, 129, 256, 1000, 1024, 4096, 65_536)
INTEGERS += (10**6, 2**31 - 1, 2**31, 2**32, 2**63, 10**18, 10**30, 10**400)
INTEGERS += (-1, -2, -8, -(2**31), -(10**30))
FLOATS = (0.0, -0.0, 1e-9, 0.1, 0.5, 0.999, 1.0, 1.5, 4.0, 100.0, 1e6, 1e38, 1e300, 1e-45, 1e-320)
FLOATS += (-1.0, -1e300, math.inf, -math.inf, math.nan)
TEXTS = ("", " ", "x", "random", "none", "off", "漢字 ü", "a\nb", "a\0b", "\ud800", "x" * 5000, "/")
TEXTS += ("~nobody_here/x", "/dev/null", "package:", "package:json", "package:..", "hub:", "hub:a")
TEXTS += ("nowhere://x", "a" * 300 + "/b", "{}", "%s%n", "-1", "true", "..", "\u202e")
NAN, INF, HUGE = math.nan, math.inf, 10**400
TUPLES = ((), (0.5,), (0.5, 1.0), (1.0, 0.5), (0, 1), (-1, 1), (0.1, 0.2), (0.9, 1.0), (1, 1))
TUPLES += ((2, 3), (NAN, 1), (0.1, INF), (True, True), (None, 1), ((0.1, 0.2), 1), (1e-300, 1.0))
TUPLES += ((HUGE, HUGE), (1, HUGE), (1e-9, 1e9), (0.1, 0.2, 0.3), (1j, 1), ("0.1", "0.2"), (b"x",))
TUPLES += (("a",), ("a", "b"), ("",), ("shapes_world@1", "tar:/x@1"), ("tar:/y@1/0", "tar:/x@1"))
TUPLES += (("shapes_world@nan", "tar:/x@1"), ("shapes_world@1e999", "tar:/x@1"), ({},))
WRONG = (None, True, 0, 1.5, "word", "", [], [0.5, 1], (), {}, {"a": 1}, {1: 2}, b"x", 1j, NAN)
WRONG += (set(), object(), np.float32(0.5), np.int64(8), np.ones((2, 1)), range(3), len, Config)
WORDS = ("1e400", "((((", "(" * 5000, "[" * 90 + "]" * 90, "9" * 5000, "__import__('os')", "1,2")
WORDS += ("\\", "[1,2", "{}", "lambda: 0", "None", " 3 ", "0x10", "1_000", "--1", "=", "a=b", "inf")
WORDS += ("(0.1, nan)", "1e-400", "True", "no", "[[1]]", "'a','b'", "b'x'", "1 2", "(1,)*9", "'")
ODD_NAMES = ("", "x", "train", "Train", "steps", "data.kind", "__class__", "to_dict", "漢字", "\0")
ODD_KEYS = (*ODD_NAMES, 1, None, ("a", "b"), 1.5, b"x")
# What is done to a value of a tree, and on the command line.
TREE_CHANGES = ("value",) * 8 + ("wrong", "remove", "misspell", "add", "section")
WORD_CHANGES = ("value",) * 8 + ("misspell", "switch", "off", "odd", "apart")
HOW_MANY = st.sampled_from([1, 1, 1, 2, 3, 4])


@functools.cache
def recipe(name: str, arg: str, objective: str, shallow: bool) -> Config:
    path = [configs.Override("data.path", "somewhere")] if (name, arg) != WORLD else []
    other = [configs.Override("objective", objective)] if objective else []
    config = configs.load(f"{ROOT / name}.py:{arg}", [*path, *other])
    if not shallow:
        return config
    change = dataclasses.replace
    return change(
        config,
        encoder=change(config.encoder, variant="", depth=2),
        predictor=change(config.predictor, depth=2),
        text=change(config.text, depth=min(config.text.depth, 1)),
        tijepa=change(config.tijepa, variant="", depth=min(config.tijepa.depth, 2)),
    )


@st.composite
def other_value(draw, name: str, value: Any) -> Any:
    """Another value of a key and its type: near the old one, at a boundary, or odd."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        near = (value + 1, value - 1, 2 * value, 4 * value, value // 2)
        return draw(st.sampled_from(near) | st.sampled_from(INTEGERS) | st.integers())
    if isinstance(value, float):
        near = (2 * value, value / 2, -value)
        return draw(st.sampled_from(near) | st.sampled_from(FLOATS) | st.floats())
    if isinstance(value, tuple):
        return draw(st.sampled_from(TUPLES))
    if name in NAMES and draw(st.booleans()):
        return draw(st.sampled_from(NAMES[name]))
    near = (value.upper(), value[:-1], value + "s", value[1:] + value[:1])
    return draw(st.sampled_from(near + TEXTS) | st.text(max_size=20))


def holder(tree: dict, name: str) -> tuple[dict, str]:
    """The section that a dotted key stands in, and its name there; a new one if it is gone."""
    *sections, last = name.split(".")
    for section in sections:
        tree = tree.get(section, {})
    return tree if isinstance(tree, dict) else {}, last


@st.composite
def trees(draw) -> dict:
    """The tree of a recipe with one to four mutations."""
    base = dataclasses.asdict(recipe(*draw(st.sampled_from(RECIPES))))
    leaves, tree = flat(base), copy.deepcopy(base)
    for _ in range(draw(HOW_MANY)):
        name = draw(st.sampled_from(sorted(leaves)))
        section, last = holder(tree, name)
        change = draw(st.sampled_from(TREE_CHANGES))
        if change == "value":
            section[last] = draw(other_value(name, leaves[name]))
        elif change == "wrong":
            section[last] = draw(st.sampled_from(WRONG))
        elif change == "misspell":
            section[last[:-1] + draw(st.sampled_from("xyz_"))] = section.pop(last, 0)
        elif change == "add":
            section[draw(st.sampled_from(ODD_KEYS))] = draw(st.sampled_from(WRONG))
        elif change == "remove":
            section.pop(last, None)
        elif draw(st.booleans()):
            tree.pop(name.split(".")[0], None)
        else:
            tree[name.split(".")[0]] = draw(st.sampled_from(WRONG))
    return tree


def written(value: Any) -> str:
    """As one would write it on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@st.composite
def commands(draw) -> tuple[Config, list[str]]:
    """A recipe, and words of the command line that change one to four of its values."""
    base = recipe(*draw(st.sampled_from(RECIPES)))
    leaves, words = flat(dataclasses.asdict(base)), []
    for _ in range(draw(HOW_MANY)):
        name = draw(st.sampled_from(sorted(leaves)))
        plain = written(draw(other_value(name, leaves[name])))
        odd = st.sampled_from(WORDS) | st.text(max_size=12)
        value = plain if draw(st.integers(0, 2)) else draw(odd)
        words += {
            "value": [f"--config.{name}={value}"],
            "misspell": [f"--config.{name[:-1]}={value}"],
            "switch": [f"--config.{name}"],
            "off": [f"--noconfig.{name}"],
            "odd": [f"--config.{draw(st.sampled_from(ODD_NAMES))}={value}"],
            "apart": [f"--config.{name}", value],
        }[draw(st.sampled_from(WORD_CHANGES))]
    return base, words
