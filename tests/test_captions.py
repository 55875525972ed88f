"""Promises of captions as arrays."""

import dataclasses
import zlib

import numpy as np
import pytest

from jepa_vl.data import captions
from jepa_vl.schema import TextConfig

TEXT = TextConfig(captions=3, words=6, vocabulary=100)
READER = captions.CaptionReader(TEXT)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def test_arrays_have_fixed_shapes_and_the_masks_agree():
    for given in ([], ["a red circle"], ["one", "two", "three", "four"], ["x " * 50]):
        out = READER.encode(given, rng())
        assert out["word_ids"].shape == (3, 6) and out["word_ids"].dtype == np.int32
        assert out["word_mask"].dtype == out["caption_mask"].dtype == np.dtype(bool)
        np.testing.assert_array_equal(out["word_mask"], out["word_ids"] != captions.PAD)
        np.testing.assert_array_equal(out["caption_mask"], out["word_mask"].any(axis=1))
        assert out["caption_mask"].sum() == min(len(given), 3)


def test_ids_are_crc32_of_the_piece_and_leave_two_free():
    out = READER.encode_all(["A skyscraper!"])
    expected = [2 + zlib.crc32(piece) % 98 for piece in (b"a", b"skyscrap", b"##er")]
    assert out["word_ids"][0].tolist() == [*expected, 0, 0, 0]
    many = READER.encode_all([f"w{i}" for i in range(3)])["word_ids"]
    assert many[many > 0].min() >= 2 and many.max() < 100


def test_captions_without_a_word_count_as_missing():
    for seed in range(5):
        out = READER.encode(["", "...", "a dog", " \n"], rng(seed))
        assert out["caption_mask"].tolist() == [True, False, False]


def test_captions_are_drawn_uniformly_and_without_replacement():
    given = [f"caption{i}" for i in range(5)]
    reader = captions.CaptionReader(dataclasses.replace(TEXT, vocabulary=1_000_000))
    by_id = {reader.encode_all([g])["word_ids"][0, 0]: i for i, g in enumerate(given)}
    generator, counts = rng(), np.zeros(5)
    for _ in range(2000):
        ids = reader.encode(given, generator)["word_ids"][:, 0].tolist()
        assert len(set(ids)) == 3
        for found in ids:
            counts[by_id[found]] += 1
    assert abs(counts / 2000 - 0.6).max() < 5 * np.sqrt(0.6 * 0.4 / 2000)


def test_evaluation_takes_the_first_captions_in_order():
    given = ["one", "", "two", "three", "four"]
    first = READER.encode_all(given)
    assert first["word_ids"].tolist() == READER.encode_all(given[:4])["word_ids"].tolist()
    one = READER.encode_all(["one"])["word_ids"][0]
    np.testing.assert_array_equal(first["word_ids"][0], one)


@pytest.mark.parametrize("text", ["A red circle", "reconnaissance aircraft", "吠えている犬", "é ß"])
def test_each_kept_token_is_shown_by_its_word(text):
    reader = captions.CaptionReader(dataclasses.replace(TEXT, words=4))
    shown = reader.piece_words(text)
    assert len(shown) == len(reader.tokens(text)) <= 4
    assert set(shown) <= set(captions.words(text))
    shown = reader.piece_words("reconnaissance aircraft")
    assert shown == ["reconnaissance", "reconnaissance", "aircraft"]
