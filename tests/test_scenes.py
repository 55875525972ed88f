"""Scenes as drawn: equal areas, hard outlines, a mosaic of the other colours, textures unlike."""

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


def test_the_mosaic_holds_every_other_colour_and_never_that_of_the_objects():
    named = np.array(list(scenes.COLOURS.values()))
    tones = np.linspace(scenes._SHADE, 1, 17)[:, None, None, None]
    for scene in drawn(100):
        tiles = np.array(scene.background.tiles)
        assert len(tiles) == scenes.TILES[scene.background.kind] ** 2
        errors = np.abs(tiles[:, None] - tones * named).max(-1).min(0)  # [tile, colour]
        assert errors.min(1).max() < 0.055
        shares = np.bincount(errors.argmin(1), minlength=8) / len(tiles)
        own = list(scenes.COLOURS).index(scene.objects[0].colour)
        assert shares[own] == 0 and np.sort(shares)[1] > 0.07 and shares.max() < 0.25


def test_tiles_are_as_bright_as_textures_on_average():
    tones = [
        np.array(tile) / scenes.COLOURS["white"]
        for scene in drawn(100)
        for tile in scene.background.tiles
        if np.ptp(tile) < 0.1  # the white ones
    ]
    assert abs(np.mean(tones) - (1 + scenes._SHADE) / 2) < 0.01


def test_pixels_of_an_object_have_its_tint_and_its_outline_mixes_no_colours():
    shades = []
    for scene in drawn(100):
        image, mask = scenes.render(scene, 64)
        empty, _ = scenes.render(dataclasses.replace(scene, objects=()), 64)
        assert np.array_equal(image[mask == 0], empty[mask == 0])
        for number, o in enumerate(scene.objects, 1):
            assert np.abs(np.subtract(o.tint, scenes.COLOURS[o.colour])).max() <= 0.04 + 1e-9
            inside = image[mask == number] / 255
            shade = (inside @ o.tint) / np.dot(o.tint, o.tint)
            assert np.abs(inside - shade[:, None] * o.tint).max() < 1 / 255
            assert shade.min() > scenes._SHADE - 0.01 and shade.max() < 1.01
            shades.append(shade.mean())
    assert abs(np.mean(shades) - (1 + scenes._SHADE) / 2) < 0.01


def test_three_objects_are_placed_even_where_more_do_not_fit():
    places = scenes._places(np.random.default_rng(0), [(0.17, 0.27)] * 5)
    assert len(places) == 3
    for i, (x, y) in enumerate(places):
        assert all(np.hypot(x - a, y - b) > 0.439 for a, b in places[:i])
        assert min(x, y, 1 - x, 1 - y) >= 0.27


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
        shown = dataclasses.replace(item, texture=texture)
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
