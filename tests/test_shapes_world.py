"""shapes_world: what it shows is a function of (seed, split, index), and what it says is true."""

import dataclasses
import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from jepa_vl.data import scenes, shapes_world
from jepa_vl.data.captions import words
from jepa_vl.data.shapes_world import ShapesWorld

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
        "striped": "striped stripy banded",
        "checkered": "checkered chequered checked",
        "dotted": "dotted spotted",
        "gridded": "gridded latticed",
        "ringed": "ringed hooped",
        "zigzag": "zigzag chevron",
        "rayed": "rayed sunburst",
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
        "white": "white",
    },
}
CLAIM_OF = {
    word: (kind, value)
    for kind, values in CLAIMS.items()
    for value, said in values.items()
    for word in said.split()
}
FILLERS = {"shape", "sign"}  # second words of "star shape", "plus sign"
NUMBERS = {"three": 3, "four": 4, "five": 5}
SURFACES = {"flat": "plain", "shaded": "gradient", "cloudy": "textured"}
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
    world = ShapesWorld(0, 400, 32)
    return [world.annotate(i) for i in range(len(world))]


def test_items_are_the_same_bytes_on_every_run_and_machine():
    digest = hashlib.sha256()
    for split in ("train", "val"):
        for index in (0, 1, 2, 3, 5, 8, 13, 987654):
            item = ShapesWorld(7, 1_000_000, 48, split).annotate(index)
            digest.update(item["image"].tobytes() + item["mask"].tobytes())
            digest.update(repr((item["captions"], item["word_objects"], item["label"])).encode())
    assert digest.hexdigest() == "6549d438e31ad5a5a060b4a638d1851e6870a8e6fb566138a9fa4d23c2639634"


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


def test_the_scene_does_not_depend_on_the_image_size():
    small, large = ShapesWorld(1, 40, 32), ShapesWorld(1, 40, 96)
    agree, seen = [], []
    for i in range(40):
        a, b = small.annotate(i), large.annotate(i)
        for name in ("objects", "captions", "word_objects", "label", "key"):
            assert a[name] == b[name]
        agree.append(np.mean(a["mask"] == b["mask"][1::3, 1::3]))
        shrunk = b["image"].reshape(32, 3, 32, 3, 3).mean((1, 3))
        seen.append(np.abs(shrunk - a["image"]).mean())
    assert min(agree) > 0.95 and np.mean(agree) > 0.98
    assert np.mean(seen) < 8  # of 255


@pytest.mark.parametrize("size", [1, 7, 24, 333, 512])
def test_any_image_size_can_be_drawn(size):
    item = ShapesWorld(0, 1, size).annotate(0)
    assert item["image"].shape == (size, size, 3) and item["mask"].shape == (size, size)


def test_captions_are_5_to_9_and_different_with_at_most_16_words(annotated):
    counts = set()
    for item in annotated:
        counts.add(len(item["captions"]))
        assert len(set(item["captions"])) == len(item["captions"])
        assert max(len(words(caption)) for caption in item["captions"]) <= 16
    assert counts == {5, 6, 7, 8, 9}


def test_word_objects_has_one_number_for_each_word_of_each_caption(annotated):
    for item in annotated:
        assert len(item["captions"]) == len(item["word_objects"])
        for caption, named in zip(item["captions"], item["word_objects"], strict=True):
            assert len(words(caption)) == len(named)
            assert set(named) <= set(range(len(item["objects"]) + 1))


def test_attribute_words_and_no_others_name_an_object_that_has_the_attribute(annotated):
    used = set()
    for item in annotated:
        for caption, named in zip(item["captions"], item["word_objects"], strict=True):
            for word, number in zip(words(caption), named, strict=True):
                if word in CLAIM_OF:
                    kind, value = CLAIM_OF[word]
                    assert getattr(item["objects"][number - 1], kind) == value
                    assert number > 0 or kind == "texture"
                    used.add((word, number > 0))
                else:
                    assert number == 0 or word in FILLERS, (caption, word)
    assert {word for word, one in used if one} == set(CLAIM_OF), "a word is never said"


def test_a_texture_said_of_all_objects_names_none_and_said_of_one_names_it(annotated):
    told = set()
    for item in annotated:
        for caption, named in zip(item["captions"], item["word_objects"], strict=True):
            said = words(caption)
            shared = bool({"shapes", "things", "all", "every"} & set(said)) and said[0] != "one"
            for word, number in zip(said, named, strict=True):
                if CLAIM_OF.get(word, ("",))[0] == "texture":
                    assert (number == 0) == shared, caption
                    told.add(shared)
    assert told == {True, False}


def test_most_captions_name_the_texture(annotated):
    shares = [
        np.mean([
            any(CLAIM_OF.get(w) == ("texture", item["objects"][0].texture) for w in words(caption))
            for caption in item["captions"]
        ])
        for item in annotated
    ]  # fmt: skip
    assert np.mean(shares) > 0.7


@pytest.mark.parametrize("draw", [0.0, 0.59, 0.999])
def test_captions_end_at_5_even_if_the_generator_repeats_itself(draw):
    class Stuck:
        def random(self, size=None):
            return draw if size is None else np.full(size, draw)

    for scene in _scenes(20):
        made = shapes_world._captions(scene, Stuck())
        assert 5 <= len(made) <= 9


def test_a_noun_names_one_object_of_a_scene(annotated):
    for item in annotated:
        assert len({o.shape for o in item["objects"]}) == len(item["objects"])


def test_relation_captions_agree_with_positions(annotated):
    told = set()
    for item in annotated:
        for caption, named in zip(item["captions"], item["word_objects"], strict=True):
            said = words(caption)
            for word in set(said) & set(AXES):
                first, second = (
                    item["objects"][n - 1] for n in dict.fromkeys(n for n in named if n)
                )
                if "has" in said:  # "the circle has a star on its right": the star is right of it
                    first, second = second, first
                assert AXES[word](first, second) >= 0.15, caption
                told.add((word, "has" in said))
    assert len(told) == 10


def test_numbers_and_surfaces_in_captions_are_true(annotated):
    for item, scene in zip(annotated, _scenes(len(annotated)), strict=True):
        assert list(scene.objects) == item["objects"]
        for caption in item["captions"]:
            said = words(caption)
            for word in set(said) & set(NUMBERS):
                assert len(item["objects"]) == NUMBERS[word], caption
            for word in set(said) & set(SURFACES):
                assert scene.background.kind == SURFACES[word], caption


def _scenes(count: int) -> list[scenes.Scene]:
    """The scenes of ``ShapesWorld(0, count, ...)``, drawn without it."""
    seeds = (np.random.SeedSequence((0, 0, i)) for i in range(count))
    return [scenes.random_scene(np.random.Generator(np.random.Philox(s))) for s in seeds]


def test_the_label_is_the_texture_that_all_objects_share(annotated):
    for item in annotated:
        assert {o.texture for o in item["objects"]} == {ShapesWorld.classes[item["label"]]}


def test_classes_shapes_colours_sizes_and_counts_are_all_common():
    drawn = _scenes(2000)
    labels = [scene.objects[0].texture for scene in drawn]
    assert np.unique(labels, return_counts=True)[1].min() > 0.8 * 2000 / 8
    objects = [o for scene in drawn for o in scene.objects]
    for name, choices in (("shape", 8), ("colour", 8), ("size", 2)):
        _, counts = np.unique([getattr(o, name) for o in objects], return_counts=True)
        assert len(counts) == choices and counts.min() > 0.8 * len(objects) / choices
    counts = np.bincount([len(scene.objects) for scene in drawn])
    assert len(counts) == 6 and not counts[:3].any() and counts[3:].min() > 0.8 * 2000 / 3


def test_objects_lie_apart_and_inside_and_cover_a_fifth_to_a_third_of_the_image():
    lost, covered = [], []
    for scene in _scenes(60):
        _, mask = scenes.render(scene, 96)
        covered.append(np.mean(mask > 0))
        assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
        for number, o in enumerate(scene.objects, 1):
            _, alone = scenes.render(dataclasses.replace(scene, objects=(o,)), 96)
            lost.append(1 - np.sum(mask == number) / alone.sum())
            assert 0.11 <= o.radius <= 0.17
    assert max(lost) < 0.05 and np.mean(lost) < 1e-3
    assert min(covered) > 0.19 and max(covered) < 0.36


def test_three_objects_are_placed_even_where_five_do_not_fit():
    places = scenes._places(np.random.default_rng(0), [(0.17, 0.27)] * 5)
    assert len(places) == 3
    for i, (x, y) in enumerate(places):
        assert all(np.hypot(x - a, y - b) > 0.439 for a, b in places[:i])
        assert min(x, y, 1 - x, 1 - y) >= 0.27


@pytest.mark.parametrize("texture", ShapesWorld.classes)
def test_both_tones_of_a_texture_cover_one_half(texture):
    item = dataclasses.replace(_scenes(1)[0].objects[0], texture=texture, shape="circle")
    rng, shares = np.random.default_rng(0), []
    for _ in range(60):
        shown = dataclasses.replace(
            item, x=0.5, y=0.5, radius=0.16, grain=6 * rng.random(), phase=tuple(rng.random(2))
        )
        image, mask = scenes.render(scenes.Scene(_scenes(1)[0].background, (shown,)), 128)
        bright = image.sum(-1) > 0.5 * (1 + scenes._SHADE) * 255 * sum(item.tint)
        shares.append(bright[mask > 0].mean())
    assert abs(np.mean(shares) - 0.5) < 0.03


def test_all_shapes_cover_the_same_area():
    item = _scenes(1)[0].objects[0]
    areas = []
    for shape in scenes.SHAPES:
        shown = dataclasses.replace(item, shape=shape, x=0.5, y=0.5, radius=0.25)
        _, mask = scenes.render(scenes.Scene(_scenes(1)[0].background, (shown,)), 256)
        areas.append(np.mean(mask == 1))
        assert not mask[0].any() and not mask[-1].any() and not mask[:, [0, -1]].any()
    assert np.allclose(areas, np.pi * 0.25**2, rtol=0.01)


def _nearest(features: list[np.ndarray], labels: list[int]) -> float:
    """Accuracy of the nearest neighbour of the second half among the first."""
    x, y, half = np.stack(features), np.array(labels), len(labels) // 2
    distance = [np.abs(x[:half] - row).sum(-1).argmin() for row in x[half:]]
    return float(np.mean(y[:half][distance] == y[half:]))


def test_neither_a_colour_histogram_nor_pixels_tell_the_label():
    world = ShapesWorld(2, 1200, 64)
    colours, pixels, labels = [], [], []
    for i in range(len(world)):
        item = world[i]
        bins = (item["image"] // 64).astype(int) @ np.array([16, 4, 1])
        colours.append(np.bincount(bins.ravel(), minlength=64) / bins.size)
        pixels.append(item["image"].reshape(16, 4, 16, 4, 3).mean((1, 3)).ravel())
        labels.append(item["label"])
    assert abs(_nearest(colours, labels) - 1 / 8) < 0.045  # three standard errors
    assert abs(_nearest(pixels, labels) - 1 / 8) < 0.045


@pytest.mark.parametrize("size", [48, 64, 128])
def test_the_surface_of_one_object_tells_the_label(size):
    # The counterpart of the histogram: of 8 textures laid over a disc, the one that it resembles.
    hits, drawn = 0, _scenes(60)
    for scene in drawn:
        item = dataclasses.replace(scene.objects[0], shape="circle")
        seen, _ = scenes.render(dataclasses.replace(scene, objects=(item,)), size)
        errors = {}
        for texture in ShapesWorld.classes:
            ideal = dataclasses.replace(item, texture=texture)
            image, _ = scenes.render(dataclasses.replace(scene, objects=(ideal,)), size)
            errors[texture] = np.abs(image.astype(float) - seen).sum()
        best, second = sorted(errors.values())[:2]
        hits += best == 0 and second > 0.15 * np.pi * item.radius**2 * size**2 * 255
    assert hits == len(drawn)


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


def test_masks_number_the_objects_and_cover_the_centres_of_solid_shapes(annotated):
    for item in annotated:
        mask = item["mask"]
        assert mask.dtype == np.uint8 and set(np.unique(mask)) == set(
            range(len(item["objects"]) + 1)
        )
        for number, o in enumerate(item["objects"], 1):
            if o.shape in ("circle", "square", "triangle", "star", "cross", "heart"):
                assert mask[int(o.y * 32), int(o.x * 32)] == number
            rows, columns = np.nonzero(mask == number)
            assert np.hypot((rows + 0.5) / 32 - o.y, (columns + 0.5) / 32 - o.x).max() < (
                scenes.BOUND * o.radius + 1 / 32
            )


def test_pixels_of_an_object_have_its_colour():
    world = ShapesWorld(0, 60, 64)
    for i in range(60):
        item = world.annotate(i)
        for number, o in enumerate(item["objects"], 1):
            inside = item["image"][item["mask"] == number].astype(float) / 255
            brightest = inside[inside.sum(-1).argsort()[-len(inside) // 8 :]].mean(0)
            nearest = min(
                scenes.COLOURS, key=lambda c: float(np.abs(brightest - scenes.COLOURS[c]).sum())
            )
            assert nearest == o.colour


def test_up_is_a_smaller_y_and_shapes_stand_upright():
    scene = _scenes(1)[0]
    upright = dataclasses.replace(scene.objects[0], x=0.5, y=0.5, tilt=0.0, radius=0.25)
    for shape, upper_is_wider in (("triangle", False), ("heart", True)):
        shown = dataclasses.replace(upright, shape=shape)
        _, mask = scenes.render(scenes.Scene(scene.background, (shown,)), 64)
        widths = mask.sum(1)[mask.any(1)]
        assert (widths[3] > widths[-4]) == upper_is_wider


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
