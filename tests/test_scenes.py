"""Scenes as drawn: equal areas, a mosaic of grey tiles, textures unlike."""

import dataclasses
import itertools

import numpy as np
import pytest

from jepa_vl.data import scenes
from jepa_vl.data.textures import TEXTURES


def drawn(count: int) -> list[scenes.Scene]:
    """The scenes of ``ShapesWorld(0, count, ...)``, drawn without it."""
    seeds = (np.random.SeedSequence((0, 0, i)) for i in range(count))
    return [scenes.random_scene(np.random.Generator(np.random.Philox(s))) for s in seeds]


def test_tiles_of_the_mosaic_are_grey_and_span_their_range_of_brightness():
    low, high = scenes._TONES
    for scene in drawn(100):
        tiles = np.array(scene.background.tiles)
        assert len(tiles) == scenes.TILES[scene.background.kind] ** 2
        assert low <= tiles.min() < low + 0.05 and high - 0.05 < tiles.max() <= high
        image, _ = scenes.render(dataclasses.replace(scene, objects=()), 48)
        assert (image == image[:, :, :1]).all()


def test_mosaic_and_objects_are_about_equally_bright_on_average():
    tiles = np.mean([tile for scene in drawn(100) for tile in scene.background.tiles])
    tints = np.mean(list(scenes.COLOURS.values()))
    assert abs(tiles - tints) < 0.01


def test_pixels_of_an_object_have_its_tint_and_lie_between_the_two_tones():
    shades = []
    for scene in drawn(100):
        image, mask = scenes.render(scene, 64)
        for number, o in enumerate(scene.objects, 1):
            assert np.abs(np.subtract(o.tint, scenes.COLOURS[o.colour])).max() <= 0.04 + 1e-9
            inside = image[~_grown(_grown(mask != number))] / 255  # soft outlines mix colours
            shade = (inside @ o.tint) / np.dot(o.tint, o.tint)
            assert np.abs(inside - shade[:, None] * o.tint).max() < 1 / 255
            assert shade.min() > scenes._SHADE - 0.01 and shade.max() < 1.01
            shades.append(shade.mean())
    assert abs(np.mean(shades) - (1 + scenes._SHADE) / 2) < 0.01


def _grown(mask: np.ndarray) -> np.ndarray:
    """bool [H, W], and the eight neighbours of each pixel."""
    padded = np.pad(mask, 1)
    h, w = mask.shape
    return np.any([padded[i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=0)


def test_two_objects_are_placed_even_where_more_do_not_fit():
    places = scenes._places(np.random.default_rng(0), [(0.185, 0.292)] * 5)
    (a, b), (c, d) = places
    assert np.hypot(a - c, b - d) > 0.185 + 0.292  # whatever their shapes
    assert min(*places[0], *(1 - np.array(places[1]))) >= 0.292


def test_all_shapes_cover_the_same_area():
    item = drawn(1)[0].objects[0]
    areas = []
    for shape in scenes.SHAPES:
        shown = dataclasses.replace(item, shape=shape, x=0.5, y=0.5, radius=0.25)
        _, mask = scenes.render(scenes.Scene(drawn(1)[0].background, (shown,)), 256)
        areas.append(np.mean(mask == 1))
        assert not mask[0].any() and not mask[-1].any() and not mask[:, [0, -1]].any()
    assert np.allclose(areas, np.pi * 0.25**2, rtol=0.01)


def test_up_is_a_smaller_y_and_shapes_stand_upright():
    scene = drawn(1)[0]
    upright = dataclasses.replace(scene.objects[0], x=0.5, y=0.5, tilt=0.0, radius=0.25)
    for shape, upper_is_wider in (("triangle", False), ("heart", True)):
        shown = dataclasses.replace(upright, shape=shape)
        _, mask = scenes.render(scenes.Scene(scene.background, (shown,)), 64)
        widths = mask.sum(1)[mask.any(1)]
        assert (widths[3] > widths[-4]) == upper_is_wider


@pytest.mark.parametrize("size", [1, 7, 24, 333, 512])
def test_any_image_size_can_be_drawn(size):
    image, mask = scenes.render(drawn(1)[0], size)
    assert image.shape == (size, size, 3) and mask.shape == (size, size)


def _dark(draw: int, size: int, radius: float) -> dict[str, np.ndarray]:
    """Darkness in [0, 1] of the pixels of a disc, for each texture at the same turn and phase."""
    rng = np.random.default_rng(draw)
    item = dataclasses.replace(scenes.random_scene(rng).objects[0], shape="circle", radius=radius)
    grid = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    out = {}
    for texture in TEXTURES:
        shown = dataclasses.replace(item, texture=texture, grain=TEXTURES[texture].angle)
        coverage, shade = scenes._cover(shown, grid, grid[:, None], size)
        out[texture] = (1 - shade[coverage > 0.5]) / (1 - scenes._SHADE)
    return out


def test_both_tones_of_a_texture_cover_about_one_half():
    shown = [_dark(draw, 128, 0.16) for draw in range(60)]
    for texture in TEXTURES:
        assert abs(np.mean([one[texture].mean() for one in shown]) - 0.5) < 0.03, texture


@pytest.mark.parametrize("size", [48, 64, 128])
def test_textures_of_one_object_differ_at_every_image_size(size):
    for draw in range(30):
        shown = _dark(draw, size, 0.1)
        for a, b in itertools.combinations(TEXTURES, 2):
            assert np.abs(shown[a] - shown[b]).mean() > 0.2, (a, b)
