"""What training images and captions tell before the first step."""

import dataclasses
from unittest import mock

import numpy as np
import pytest

from jepa_vl.data import sources
from jepa_vl.data.pipeline import TrainElement
from jepa_vl.training import data_health
from tests.tiny import tiny


def measured(**settings) -> dict[str, float]:
    """Of shapes_world."""
    config = tiny(**{"data.train_size": 600, "health.data_images": 400} | settings)
    return data_health.measure(config, sources.open_sources(config)[0])


@pytest.fixture(scope="module")
def own():
    return measured()


def test_captions_that_belong_to_their_images_are_told_from_those_of_others(own):
    assert own["data/images"] == 400 and own["data/spread"] > 0.05
    assert own["data/pairing"] > 4
    assert abs(measured(**{"data.captions": "shuffled"})["data/pairing"]) < 2.5


def test_it_is_the_same_with_any_number_of_threads(own):
    assert measured(**{"data.threads": 5}) == own


def test_without_captions_or_with_few_images_there_is_no_pairing():
    for settings in ({"data.captions": "empty"}, {"health.data_images": 399},
                     {"data.train_size": 100}, {"conditioner.kind": "none"}):  # fmt: skip
        found = measured(**settings)
        assert set(found) == {"data/images", "data/spread"}, settings
    assert measured(**{"health.data_images": 0}) == {}
    assert "health.data_images=0" in data_health.told({}, tiny())


def test_few_images_are_said_to_be_too_few_for_a_pairing():
    found = {"data/images": 100.0, "data/spread": 0.25}
    words = "100 training images: spread 0.250 of their pixels (0: all one)"
    few = f"{words}; whether captions are theirs is tested from 400 images on"
    assert data_health.told(found, tiny()) == few
    assert data_health.told(found, tiny(objective="ijepa")) == words
    assert data_health.told(found, tiny(**{"data.captions": "empty"})) == words
    enough = {"data/images": 400.0, "data/spread": 0.25, "data/pairing": 7.0}
    assert "z = 7.0 (about 0: they do not)" in data_health.told(enough, tiny())


@pytest.mark.parametrize("kind", ["grey", "one picture", "each of one colour"])
def test_images_without_content_have_no_spread(kind):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (32, 32, 3), np.uint8)

    def crop(element, record, rng):
        if kind == "each of one colour":
            return np.full((32, 32, 3), record["label"] * 30, np.uint8)
        return picture if kind == "one picture" else np.full((32, 32, 3), 127, np.uint8)

    with mock.patch.object(TrainElement, "crop", crop):
        found = measured(**{"health.data_images": 32})
    assert found["data/spread"] < 1e-4


def test_the_dependence_is_that_of_the_criterion_and_none_where_nothing_differs():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 5))
    y = np.concatenate([x[:, :1] ** 3, rng.normal(size=(300, 3))], axis=1)
    assert data_health.dependence(x, y, rng) > 10
    assert abs(data_health.dependence(x, rng.normal(size=(300, 4)), rng)) < 4
    assert np.isnan(data_health.dependence(x, np.ones((300, 4)), rng))
    # Against the formula, tr(K H L H), with the same orders.
    h = np.eye(300) - 1 / 300
    k, l = x @ x.T, y @ y.T  # noqa: E741
    orders = np.random.default_rng(2)
    chance = [orders.permutation(300) for _ in range(data_health.PERMUTATIONS)]
    values = np.array([np.trace(k @ h @ l[np.ix_(o, o)] @ h) for o in [np.arange(300), *chance]])
    wanted = (values[0] - values[1:].mean()) / values[1:].std()
    found = data_health.dependence(x, y, np.random.default_rng(2))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_embeddings_of_captions_do_as_well_as_words():
    states = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
    found = data_health.of_captions({"word_states": states, "word_mask": mask})
    np.testing.assert_allclose(found, states.astype(np.float64)[mask].mean(axis=0))
    np.testing.assert_array_equal(
        data_health.of_captions({"word_states": states, "word_mask": mask & False}), np.zeros(4)
    )
    assert data_health.of_captions({"image": np.zeros(3)}) is None


def test_a_feature_of_an_image_says_where_and_how_it_waves():
    x = np.arange(64) / 64
    across = np.repeat(np.sin(2 * np.pi * 10 * x)[None, :, None], 64, 0).repeat(3, 2)
    bands = data_health.of_image(across.astype(np.float32))[-20:].reshape(5, 4)
    assert np.unravel_index(bands.argmax(), bands.shape) == (2, 0)  # 10/64 lies in 0.1 to 0.18
    turned = data_health.of_image(across.transpose(1, 0, 2).astype(np.float32))[-20:].reshape(5, 4)
    assert np.unravel_index(turned.argmax(), turned.shape) == (2, 2)


def test_a_run_notes_it_and_an_alarm_says_what_is_wrong(one_device, tmp_path, capsys):
    import json

    from jepa_vl.training import loop

    config = tiny(objective="ijepa", **{"log.progress": "lines"})
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    with mock.patch.object(TrainElement, "crop", lambda *_: np.full((32, 32, 3), 127, np.uint8)):
        assert loop.train(config, tmp_path) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["data/spread"] for row in rows if "held_out_loss" in row] == [0.0, 0.0]
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert ("images", 3) in {(row["rule"], row["step"]) for row in told if row["event"] == "alarm"}
    assert "8 training images: spread 0.000" in capsys.readouterr().out
