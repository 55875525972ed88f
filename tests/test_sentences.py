"""Promises of what captions are drawn from: sentences of long ones, and other languages."""

import json

import numpy as np
import pytest
from PIL import Image

from jepa_vl.config import ConfigError
from jepa_vl.data import captions, pipeline, sentences, sources
from jepa_vl.training.health import CAPTION_ARRAYS
from tests.shared import shared
from tests.tiny import tiny

IMAGES = 12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog.", ["A dog."]),
        ("no full stop", ["no full stop"]),
        ("A dog runs. It barks! Why?", ["A dog runs.", "It barks!", "Why?"]),
        ("Dr. Smith met Mr. Jones on Main St. They talked.",
         ["Dr. Smith met Mr. Jones on Main St.", "They talked."]),
        ("The U.S. flag is red. It costs $3.50 vs. $4.",
         ["The U.S. flag is red.", "It costs $3.50 vs. $4."]),
        ("A cat (see fig. 3) sits e.g. on a mat. It sleeps.",
         ["A cat (see fig. 3) sits e.g. on a mat.", "It sleeps."]),
        ("photo by J. R. Smith, ca. 1920", ["photo by J. R. Smith, ca. 1920"]),
        ("一只狗在海滩上跑。它在追一个球！很高兴吗？",  # noqa: RUF001
         ["一只狗在海滩上跑。", "它在追一个球！", "很高兴吗？"]),  # noqa: RUF001
        ("犬が走っている。ボールを追う。", ["犬が走っている。", "ボールを追う。"]),
        ("Это собака. Она бежит.", ["Это собака.", "Она бежит."]),
        ("a title\n\n  A line. Another. \n", ["a title", "A line.", "Another."]),
        (" \n", []),
    ],
)  # fmt: skip
def test_captions_are_split_where_a_sentence_ends(text, expected):
    assert sentences.split(text) == expected


@pytest.fixture
def folder(tmp_path):
    """Images of one grey each; two long captions an image, whose 3 + 2 sentences name it."""
    rows = []
    for n in range(IMAGES):
        Image.new("RGB", (40, 40), (20 * n, 0, 0)).save(tmp_path / f"{n}.png")
        parts = [f"image{n} part{part}." for part in "abcde"]
        texts = [" ".join(parts[:3]), " ".join(parts[3:])]
        ja, ru = [f"画像{n}。"], f"картинка{n}"
        row = {"image": f"{n}.png", "captions": texts, "label": n % 2}
        rows.append(row | {"translations": {"ja": ja, "ru": ru}})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def config_of(folder, **values):
    given = {"data.kind": "folder", "data.path": str(folder), "text.vocabulary": 100_000}
    return tiny(**given | {"eval.path": str(folder)} | values)


def take(config, steps: int, start: int = 0):
    source = sources.open_sources(config)[0]
    with pipeline.make_batches(config, source, start) as stream:
        return [next(stream) for _ in range(steps)]


def said(batch, row: int, config) -> list[str]:
    """The sentences that a row was given, found again by their ids."""
    reader, index = captions.build(config.text), int(batch["index"][row])
    known = {
        reader.encode_all([f"image{index} part{part}."])["word_ids"][0].tobytes(): part
        for part in "abcde"
    }
    present = batch["word_ids"][row][batch["caption_mask"][row]]
    return [known[ids.tobytes()] for ids in present]


def test_sentences_are_drawn_uniformly_without_replacement_in_every_epoch(folder):
    config = config_of(folder, **{"data.split_sentences": True, "text.captions": 3})
    counts, sets, epochs = dict.fromkeys("abcde", 0), {}, 100
    for batch in take(config, epochs * IMAGES // 8):
        for row, position in enumerate(batch["position"].tolist()):
            drawn = said(batch, row, config)
            assert len(drawn) == len(set(drawn)) == 3
            sets[int(batch["index"][row]), position // IMAGES] = tuple(drawn)
            for part in drawn:
                counts[part] += 1
    assert len(sets) == epochs * IMAGES  # each image once an epoch
    draws = epochs * IMAGES
    shares = np.array(list(counts.values())) / draws
    assert abs(shares - 0.6).max() < 5 * np.sqrt(0.6 * 0.4 / draws)
    # Other ones in each epoch: of 60 ordered draws nearly all are met by each image's 100.
    assert all(len({sets[n, e] for e in range(epochs)}) > 35 for n in range(IMAGES))


def test_what_is_drawn_is_a_function_of_seed_image_and_epoch(folder):
    split = {"data.split_sentences": True}

    def table(start: int, **values) -> dict:
        config = config_of(folder, **split | values)
        found = {}
        for batch in take(config, 3, start):
            for row, position in enumerate(batch["position"].tolist()):
                key = int(batch["index"][row]), position // IMAGES
                found[key] = batch["word_ids"][row].tobytes()
        return found

    whole, later, other = table(0), table(2), table(0, seed=1)
    shared_keys = whole.keys() & later.keys()
    assert len(shared_keys) == 8 and all(whole[key] == later[key] for key in shared_keys)
    assert any(whole[key] != other[key] for key in whole.keys() & other.keys())


def test_whole_captions_stay_the_default_and_evaluation_takes_the_first_sentences(folder):
    plain, split = config_of(folder), config_of(folder, **{"data.split_sentences": True})
    assert len(sources.open_sources(plain)[0][0]["captions"]) == 2
    source, held_out = sources.open_sources(split)
    assert source[3]["captions"] == [f"image3 part{part}." for part in "abcde"]
    assert source.fingerprint != sources.open_sources(plain)[0].fingerprint
    assert sources.labelled_indices(source, 4).tolist() and source.classes == ("0", "1")
    batch = next(pipeline.eval_batches(split, held_out, range(4), 4))
    assert [said(batch, row, split) for row in range(4)] == [["a", "b"]] * 4


def test_captions_of_another_language_change_the_words_and_nothing_else(folder):
    own = take(config_of(folder), 3)
    for name in ("translations.ja", "translations.ru"):
        config = config_of(folder, **{"data.caption_keys": (name,)})
        for one, other in zip(take(config, 3), own, strict=True):
            for field in other.keys() - set(CAPTION_ARRAYS):
                np.testing.assert_array_equal(one[field], other[field], err_msg=field)
            assert one["caption_mask"].sum() == 8  # one caption an image
            assert (one["word_ids"] != other["word_ids"]).any(axis=(1, 2)).all()
    with pytest.raises(ConfigError, match=r"data\.caption_keys.*no image has one"):
        sources.open_sources(config_of(folder, **{"data.caption_keys": ("translations.fr",)}))


def test_the_built_in_world_has_nothing_to_split():
    with pytest.raises(ConfigError, match=r"data\.split_sentences = True: .*shapes_world"):
        sources.open_sources(tiny(**{"data.split_sentences": True}))


def test_emoji_have_names_in_six_languages():
    path = str(shared("data/emoji"))
    for name in ("de", "fr", "es", "ja", "zh", "ru"):
        values = {"data.kind": "folder", "data.path": path}
        config = tiny(**values | {"data.caption_keys": (f"translations.{name}",)})
        source = sources.open_sources(config)[0]
        texts = [source[n]["captions"] for n in range(0, len(source), 100)]
        assert all(len(found) == 1 and captions.words(found[0]) for found in texts)
