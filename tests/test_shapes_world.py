"""shapes_world: what it shows is a function of (seed, split, index), and what it says is true."""

import hashlib
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest

from jepa_vl.data import scenes, shapes_world
from jepa_vl.data.captions import words
from jepa_vl.data.shapes_world import ShapesWorld
from tests.test_scenes import drawn

# Words of captions by what they claim; written out here, apart from the tables that make them.
CLAIMS = {
    "shape": {
        "circle": "circle disc disk",
        "square": "square box",
        "triangle": "triangle triangular",
        "star": "star",
        "cross": "cross plus",
        "ring": "ring hoop",
        "heart": "heart",
        "crescent": "crescent moon",
    },
    "size": {"small": "small tiny little", "large": "large big huge"},
    "texture": {
        "banded": "banded layered",
        "barred": "barred fluted",
        "hatched": "hatched",
        "slanted": "slanted oblique",
        "checkered": "checkered chequered checked",
        "dotted": "dotted spotted",
        "gridded": "gridded latticed",
        "speckled": "speckled mottled blotchy",
    },
    "colour": {
        "red": "red crimson",
        "green": "green",
        "blue": "blue",
        "yellow": "yellow",
        "purple": "purple violet",
        "orange": "orange",
        "cyan": "cyan turquoise",
        "grey": "grey gray",
    },
}
CLAIM_OF = {
    word: (kind, value)
    for kind, values in CLAIMS.items()
    for value, said in values.items()
    for word in said.split()
}
TEXTURE_WORDS = {word for word, (kind, _) in CLAIM_OF.items() if kind == "texture"}
FILLERS = {"shape", "sign"}  # second words of "star shape", "plus sign"
NUMBERS = {"two": 2, "three": 3}
SIZE, SEEN, HELD_OUT = 64, 2000, 500
AXES = {
    "left": lambda a, b: b.x - a.x,
    "right": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "higher": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
    "lower": lambda a, b: a.y - b.y,
}


@pytest.fixture(scope="module")
def annotated() -> list[dict]:
    world = ShapesWorld(0, SEEN, SIZE)
    return [world.annotate(i) for i in range(SEEN)]


def _told(annotated: list[dict]) -> Iterator[tuple[dict, str, list[str], list[int]]]:
    """Every caption: its scene, itself, its words and the objects that they name."""
    for item in annotated:
        for caption, named in zip(item["captions"], item["word_objects"], strict=True):
            yield item, caption, words(caption), named


def test_items_are_the_same_bytes_on_every_run_and_machine():
    digest = hashlib.sha256()
    for split in ("train", "val"):
        for index in (0, 1, 2, 3, 5, 8, 13, 987654):
            item = ShapesWorld(7, 1_000_000, 48, split).annotate(index)
            digest.update(item["image"].tobytes() + item["mask"].tobytes())
            digest.update(repr((item["captions"], item["word_objects"], item["label"])).encode())
    assert digest.hexdigest() == "90f951e026db4b3dfd06da08ae3e3b1d6000f5bf6c47ea6374b31fa7a24fd4e0"


def test_an_item_depends_on_neither_length_nor_earlier_reads():
    short, long = ShapesWorld(3, 10, 40), ShapesWorld(3, 1000, 40)
    long[0]
    first, second, again = short[9], long[9], long[9]
    for other in (second, again):
        assert np.array_equal(first["image"], other["image"])
        assert {**first, "image": 0} == {**other, "image": 0}


def test_an_item_holds_an_image_captions_a_label_and_a_key():
    world = ShapesWorld(0, 5, 24)
    item = world[np.int64(2)]
    assert set(item) == {"image", "captions", "label", "key"}
    assert item["image"].shape == (24, 24, 3) and item["image"].dtype == np.uint8
    assert type(item["label"]) is int and type(item["key"]) is str
    assert len({world[i]["key"] for i in range(5)}) == 5


@pytest.mark.parametrize("index", [-1, 5, 6])
def test_an_index_out_of_range_is_an_index_error(index):
    with pytest.raises(IndexError):
        ShapesWorld(0, 5, 24)[index]


@pytest.mark.parametrize("args", [(0, 5, 24, "test"), (-1, 5, 24), (0, -5, 24), (0, 5, 0)])
def test_bad_arguments_are_refused(args):
    with pytest.raises(ValueError, match=r"split|too small"):
        ShapesWorld(*args)


def test_captions_are_5_to_9_and_different_with_at_most_16_words(annotated):
    counts = set()
    for item in annotated:
        counts.add(len(item["captions"]))
        assert len(set(item["captions"])) == len(item["captions"])
        assert max(len(words(caption)) for caption in item["captions"]) <= 16
    assert counts == {5, 6, 7, 8, 9}


def test_word_objects_has_one_number_for_each_word_of_each_caption(annotated):
    for item, _, said, named in _told(annotated):
        assert len(said) == len(named)
        assert set(named) <= set(range(len(item["objects"]) + 1))


def test_attribute_words_and_no_others_name_an_object_that_has_the_attribute(annotated):
    used = set()
    for item, caption, said, named in _told(annotated):
        for word, number in zip(said, named, strict=True):
            if word in CLAIM_OF:
                kind, value = CLAIM_OF[word]
                assert getattr(item["objects"][number - 1], kind) == value, caption
                assert number > 0 or kind == "texture", caption
                used.add(word if number else "")
            else:
                assert number == 0 or word in FILLERS, (caption, word)
    assert used == {"", *CLAIM_OF}, "a word is never said"


def test_a_texture_said_of_all_objects_names_none_and_said_of_one_names_it(annotated):
    told = Counter()
    for _, caption, said, named in _told(annotated):
        shared = bool({"shapes", "things", "are", "every", "each"} & set(said)) and said[0] != "one"
        textures = {n for w, n in zip(said, named, strict=True) if w in TEXTURE_WORDS}
        assert textures == {0} if shared else 0 not in textures, caption
        told[shared] += 1
    assert min(told.values()) > 0.2 * told.total()


def test_most_captions_name_the_texture(annotated):
    told = [bool(TEXTURE_WORDS & set(said)) for _, _, said, _ in _told(annotated)]
    assert np.mean(told) > 0.6


def test_numbers_and_grains_in_captions_are_true(annotated):
    told = set()
    kinds = {id(i): s.background.kind for i, s in zip(annotated, drawn(400), strict=False)}
    for item, caption, said, _ in _told(annotated[:400]):
        for word in set(said) & {*NUMBERS, *scenes.TILES}:
            told.add(word)
            assert len(item["objects"]) == NUMBERS.get(word, len(item["objects"])), caption
            assert word in (*NUMBERS, kinds[id(item)]), caption
        assert not {"four", "five"} & set(said)
    assert told == {*NUMBERS, *scenes.TILES}


@pytest.mark.parametrize("draw", [0.0, 0.59, 0.999])
def test_the_making_of_captions_ends_even_if_the_generator_repeats_itself(draw):
    class Stuck:
        def random(self, size=None):
            return draw if size is None else np.full(size, draw)

    for scene in drawn(20):
        made = shapes_world._captions(scene, cast(np.random.Generator, Stuck()))
        assert 5 <= len(made) <= 9


def test_a_noun_names_one_object_of_a_scene(annotated):
    for item in annotated:
        assert len({o.shape for o in item["objects"]}) == len(item["objects"])


def test_relation_captions_agree_with_positions(annotated):
    told = set()
    for item, caption, said, named in _told(annotated):
        for word in set(said) & set(AXES):
            first, second = (item["objects"][n - 1] for n in dict.fromkeys(n for n in named if n))
            if "has" in said:  # "the circle has a star on its right": the star is right of it
                first, second = second, first
            assert AXES[word](first, second) >= 0.15, caption
            told.add((word, "has" in said))
    assert len(told) == 10


def test_the_label_is_the_texture_of_all_objects(annotated):
    for item in annotated:
        assert {o.texture for o in item["objects"]} == {ShapesWorld.classes[item["label"]]}


def test_a_scene_has_2_or_3_objects(annotated):
    counts = Counter(len(item["objects"]) for item in annotated)
    assert set(counts) == {2, 3} and min(counts.values()) > 0.4 * SEEN


def test_classes_shapes_and_textures_are_about_equally_frequent_and_sizes_both_common(annotated):
    labels = Counter(item["label"] for item in annotated)
    assert len(labels) == 8 and min(labels.values()) > 0.8 * SEEN / 8
    objects = [o for item in annotated for o in item["objects"]]
    for name, choices, least in (("shape", 8, 0.9), ("colour", 8, 0.9), ("size", 2, 0.5)):
        counts = Counter(getattr(o, name) for o in objects)
        assert len(counts) == choices
        assert min(counts.values()) > least * len(objects) / choices


def test_shape_colour_and_size_tell_nothing_about_the_texture(annotated):
    for name in ("shape", "colour", "size"):
        pairs = [(getattr(o, name), o.texture) for item in annotated for o in item["objects"]]
        table = Counter(pairs)
        rows, columns = (Counter(pair[side] for pair in pairs) for side in (0, 1))
        expected = {(r, c): rows[r] * columns[c] / len(pairs) for r in rows for c in columns}
        chi = sum((table[cell] - e) ** 2 / e for cell, e in expected.items())
        freedom = (len(rows) - 1) * (len(columns) - 1)
        assert chi < freedom + 4 * np.sqrt(2 * freedom), name


def _views(items: list[dict]) -> tuple[np.ndarray, ...]:
    """Joint colour histograms (4 bins a channel), fine ones (32 bins), mean colours, pixels."""
    images = np.stack([item["image"] for item in items]).astype(int)
    flat = images.reshape(len(items), -1, 3)
    coarse = flat // 64 @ np.array([16, 4, 1])
    fine = flat // 8 + 32 * np.arange(3)
    views = [
        np.stack([np.bincount(row.ravel(), minlength=size) for row in bins])
        for bins, size in ((coarse, 64), (fine, 96))
    ]
    pixels = images.reshape(len(items), 16, SIZE // 16, 16, SIZE // 16, 3).mean((2, 4))
    return *(v.astype(float) for v in views), flat.mean(1), pixels.reshape(len(items), -1)


def test_neither_colour_histograms_nor_the_mean_colour_nor_raw_pixels_tell_the_label(annotated):
    world = ShapesWorld(0, HELD_OUT, SIZE, "val")
    held_out = [world[i] for i in range(HELD_OUT)]
    labels, truth = (np.array([x["label"] for x in part]) for part in (annotated, held_out))
    for known, asked in zip(_views(annotated), _views(held_out), strict=True):
        order = np.argsort((known**2).sum(1) - 2 * asked @ known.T, axis=1)
        for neighbours in (1, 20):
            votes = [np.bincount(labels[row[:neighbours]], minlength=8) for row in order]
            assert np.mean(np.argmax(votes, axis=1) == truth) < 0.25  # chance is 0.125


def test_masks_number_the_objects_and_cover_the_centres_of_solid_shapes(annotated):
    for item in annotated:
        mask = item["mask"]
        assert mask.dtype == np.uint8 and set(np.unique(mask)) == {*range(len(item["objects"]) + 1)}
        for number, o in enumerate(item["objects"], 1):
            if o.shape in ("circle", "square", "triangle", "star", "cross", "heart"):
                assert mask[int(o.y * SIZE), int(o.x * SIZE)] == number
            rows, columns = np.nonzero(mask == number)
            away = np.hypot((rows + 0.5) / SIZE - o.y, (columns + 0.5) / SIZE - o.x)
            assert away.max() < scenes.BOUND * o.radius + 1 / SIZE


def test_every_object_is_visible_whole_and_away_from_the_edge(annotated):
    seen = []
    for item in annotated:
        mask = item["mask"]
        assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
        for number, o in enumerate(item["objects"], 1):
            seen.append(np.mean(mask == number) / (np.pi * o.radius**2))
    assert min(seen) > 0.85 and abs(np.mean(seen) - 1) < 0.01


def test_objects_cover_about_a_fifth_of_the_image(annotated):
    covered = [np.mean(item["mask"] > 0) for item in annotated]
    assert abs(np.mean(covered) - 0.21) < 0.02 and min(covered) > 0.11 and max(covered) < 0.3


def test_the_scene_does_not_depend_on_the_image_size():
    small, large = ShapesWorld(1, 40, 48), ShapesWorld(1, 40, 144)
    agree, seen = [], []
    for i in range(40):
        a, b = small.annotate(i), large.annotate(i)
        for name in ("objects", "captions", "word_objects", "label", "key"):
            assert a[name] == b[name]
        agree.append(np.mean(a["mask"] == b["mask"][1::3, 1::3]))
        seen.append(np.abs(b["image"][1::3, 1::3].astype(int) - a["image"]).mean())
    assert min(agree) > 0.99
    assert np.mean(seen) < 3  # of 255: textures are sharper in larger images


def test_train_and_val_show_different_scenes():
    train, val = ShapesWorld(0, 50, 24), ShapesWorld(0, 50, 24, "val")
    images = {
        item["image"].tobytes()
        for world in (train, val)
        for item in map(world.__getitem__, range(50))
    }
    assert len(images) == 100
    assert (train.name, val.name) == ("shapes_world/train", "shapes_world/val")


def test_the_fingerprint_names_every_argument():
    args = [(0, 9, 24), (1, 9, 24), (0, 8, 24), (0, 9, 32), (0, 9, 24, "val")]
    prints = [ShapesWorld(*a).fingerprint for a in args]
    assert len(set(prints)) == len(args) and all(len(p) == 16 for p in prints)
    assert ShapesWorld(0, 9, 24).fingerprint == prints[0]
    int(prints[0], 16)


def test_the_source_can_be_pickled():
    world = pickle.loads(pickle.dumps(ShapesWorld(4, 9, 24, "val")))
    assert np.array_equal(world[3]["image"], ShapesWorld(4, 9, 24, "val")[3]["image"])
    assert len(world) == 9


def test_the_source_does_not_import_jax():
    code = (
        "import sys; from jepa_vl.data.shapes_world import ShapesWorld; ShapesWorld(0, 1, 24)[0];"
        "sys.exit(bool({'jax', 'flax', 'scipy', 'PIL', 'ml_collections'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
