"""Grounding: who points at what a word names, held to planted maps, masks and plain counts."""

import dataclasses

import jax
import numpy as np
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.config import ConfigError
from jepa_vl.data import captions, naming, pipeline, sources
from jepa_vl.data.shapes_world import ShapesWorld
from jepa_vl.evaluators import grounding
from jepa_vl.evaluators.joint import Joint
from jepa_vl.evaluators.truths import scenes
from jepa_vl.evaluators.wordmaps import WordMaps
from jepa_vl.schema import MeshConfig
from tests.shared import shared
from tests.tiny import tiny

GRID = 4


@pytest.fixture(scope="module")
def world():
    config = tiny(**{"text.captions": 3, "text.words": 30, "data.holdout": 0.5})
    found = scenes(config, ShapesWorld(0, 60, 32, "val"), range(60))
    return found, captions.build(config.text)


def perfect(found, reader):
    """Maps that are bright where the word's object is, for the rows' own images alone."""

    def draw(batch, rows):
        maps = np.zeros((len(rows), 3, 30, GRID, GRID), np.float32)
        for i, row in enumerate(rows):
            if np.array_equal(batch["image"][i], found[row].image):
                for word in found[row].words:
                    owners = [t.word for t in reader.tokens(found[row].texts[word.row])]
                    for piece in np.flatnonzero(np.array(owners, float) == word.places[0]):
                        maps[i, word.row, piece] = word.own
        return WordMaps(maps, maps, maps)

    return draw


def means(words, name):
    pairs = np.array([word[name] for word in words], float)
    return pairs.mean(axis=0)


def test_an_oracle_reaches_the_ceiling_and_its_words_on_other_images_do_not(world):
    found, reader = world
    words = grounding.play(perfect(found, reader), reader, found, 7)
    assert len(words) == sum(len(scene.words) for scene in found) > 100
    np.testing.assert_array_equal(means(words, "maps"), 1.0)
    assert means(words, "another_image")[0] == 0  # it knows its own images alone
    assert means(words, "shuffled_captions")[0] < 0.7
    prior = [w.own[GRID // 2, GRID // 2] for scene in found for w in scene.words]
    assert means(words, "centre")[0] == np.mean(prior)


def test_noise_is_at_chance(world):
    found, reader = world
    rng = np.random.default_rng(0)

    def draw(batch, rows):
        maps = rng.random((len(rows), 3, 30, GRID, GRID))
        return WordMaps(maps, maps, maps)

    words = grounding.play(draw, reader, found, 7)
    chance = np.mean([word["chance"] for word in words])
    for name in ("maps", "another_image", "shuffled_captions"):
        assert abs(means(words, name)[0] - chance) < 4 * np.sqrt(chance / len(words))


def test_iou_counts_patches_and_a_flat_map_takes_none():
    own = np.array([[True, True], [False, False]])
    assert grounding.iou(np.array([[1.0, 0.4], [0.6, 0.0]]), own) == 1 / 3
    assert grounding.iou(np.zeros((2, 2)), own) == 0
    assert grounding.iou(own.astype(float), own) == 1


def test_numbers_are_the_same_for_any_batch_and_any_mesh(quick_compilation):
    config = tiny(**{"eval.val_images": 9, "text.words": 24})
    objective = objectives.build(config)
    _, held_out = sources.open_sources(config)
    batch = next(pipeline.eval_batches(config, held_out, range(4), 4))
    params = jax.jit(objective.init)(jax.random.key(1), batch)
    weights = params, objective.target_of(params)

    def measured(size, devices):
        changed = dataclasses.replace(config.eval, batch_size=size)
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
        c = dataclasses.replace(config, eval=changed)
        return grounding.Grounding(c, Joint(c, objective, {}, mesh, held_out, held_out))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grounding, "DRAWS", 2)
        first, other = (measured(*how) for how in ((7, 1), (64, 8)))
        one, two = first.measure(weights), other.measure(weights)
    assert first.protocol == other.protocol and first.protocol["words"] > 30
    assert one.scores == two.scores and one.ci == two.ci
    assert one.baselines == two.baselines
    low, high = one.ci["pointing"]
    assert low <= one.scores["pointing"] <= high


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two men on bikes near a bus", ["person", "bicycle", "bus"]),
        ("a dining table, a hot dog and a dog", ["dining table", "hot dog", "dog"]),
        ("busy buses; women's ponies and traffic lights", ["bus", "person", "traffic light"]),
        ("a category of cars", ["car"]),
        ("Teddy bears and a bear on the couch", ["teddy bear", "bear", "couch"]),
    ],
)
def test_names_plurals_and_synonyms_are_found_as_whole_words(text, expected):
    classes = ("", "person", "bicycle", "bus", "dining table", "hot dog", "dog", "traffic light",
               "car", "cat", "bear", "teddy bear", "couch")  # fmt: skip
    assert [classes[number] for number, _ in naming.named(text, classes)] == expected


def test_words_of_photographs_own_the_patches_that_their_masks_cover():
    folder = str(shared("data/coco"))
    config = tiny(**{"data.kind": "mask_folder", "data.path": folder, "text.captions": 5,
                     "text.words": 24, "data.holdout": 0.4})  # fmt: skip
    _, held_out = sources.open_sources(config)
    found = scenes(config, held_out, range(len(held_out)))
    assert len(found) > 20 and all(scene.image.shape == (32, 32, 3) for scene in found)
    source = held_out
    names = source.segment_classes
    for scene in found[:5]:
        mask = source.segments(scene.index)
        side = min(mask.shape)
        top, left = ((n - side) // 2 for n in mask.shape)
        square = mask[top : top + side, left : left + side]
        for word in scene.words:
            rows, columns = np.nonzero(square == names.index(word.kind))
            hit = np.zeros((GRID, GRID), bool)
            hit[rows * GRID // side, columns * GRID // side] = True
            assert word.own.any() and not np.any(word.own & ~hit)
            said = captions.words(scene.texts[word.row])
            assert " ".join(said[p] for p in word.places)


def test_objectives_and_data_that_cannot_serve_are_refused_in_one_line(tmp_path):
    def refused(rule, **overrides):
        config = tiny(**overrides)
        objective, mesh = objectives.build(config), sharding.make_mesh(MeshConfig())
        train, held_out = sources.open_sources(config)
        with pytest.raises(ConfigError, match=rule) as error:
            grounding.Grounding(config, Joint(config, objective, {}, mesh, train, held_out))
        assert "\n" not in str(error.value)

    refused("reads captions", objective="ijepa")
    refused("maps of words", objective="crossmodal")
    config = tiny()

    class Bare(ShapesWorld):
        annotate, segment_classes = property(), ()  # pyright: ignore

    with pytest.raises(ConfigError, match="grounding needs masks"):
        scenes(config, Bare(0, 4, 32), range(4))
    with pytest.raises(ConfigError, match="two images"):
        scenes(config, ShapesWorld(0, 4, 32), range(1))


def test_the_score_is_a_mean_over_words_and_its_interval_draws_images():
    low, high = grounding._interval(np.array([1, 1, 1, 0]), np.array([0, 0, 0, 1]))
    assert (low, high) == (0.0, 1.0)
