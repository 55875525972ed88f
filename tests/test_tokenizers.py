"""Captions in the pieces of a pretrained tower."""

import pickle

import numpy as np
import pytest

from jepa_vl.config import ConfigError
from jepa_vl.data import captions, tokenizers
from jepa_vl.data.captions import CaptionReader
from jepa_vl.evaluators import wordmaps
from jepa_vl.schema import TextConfig
from tests import towers

T5_CONFIG = '{"model_type": "t5", "vocab_size": 96}'
BERT_CONFIG = '{"model_type": "bert", "vocab_size": 96}'


@pytest.fixture(scope="module", params=["t5", "bert"])
def case(request, tmp_path_factory):
    """(kind, folder) of a tokenizer with special tokens at the ends."""
    folder = tmp_path_factory.mktemp(request.param)
    towers.save_tokenizer(folder, eos=request.param == "t5")
    (folder / "config.json").write_text(T5_CONFIG if request.param == "t5" else BERT_CONFIG)
    return request.param, folder


def reader(case, words=8, count=2):
    kind, folder = case
    return CaptionReader(TextConfig(kind=kind, path=str(folder), words=words, captions=count))


def test_long_captions_lose_words_and_keep_the_token_at_their_end(case):
    ends = {"t5": (None, "</s>"), "bert": ("[CLS]", "[SEP]")}[case[0]]
    for text in ("a red circle", "a red circle above the large blue square left"):
        pieces = [token.piece for token in reader(case, 6).tokens(text)]
        assert len(pieces) <= 6 and pieces[-1] == ends[1]
        assert ends[0] in (None, pieces[0])


def test_padding_is_masked_and_the_end_token_counts_as_a_word(case):
    out = reader(case).encode_all(["a red circle", "..."])
    length = 4 if case[0] == "t5" else 5
    assert out["word_mask"].sum(axis=1).tolist() == [length, 0]
    assert out["caption_mask"].tolist() == [True, False]
    assert out["word_ids"].dtype == np.int32
    last = out["word_ids"][0, length - 1]
    assert last == (1 if case[0] == "t5" else 3)
    assert not out["word_ids"][~out["word_mask"]].any()


def test_each_piece_is_shown_by_its_word_and_special_tokens_by_themselves(case):
    text = "A red, skyz"
    shown = reader(case, 12).piece_words(text)
    assert set(captions.words(text)) <= set(shown)
    assert shown.count("skyz") > 1  # letters of an unknown word
    assert shown[-1] in ("</s>", "[SEP]")


def test_maps_of_pieces_merge_to_words_and_leave_special_tokens_out(case):
    read = reader(case, 12)
    tokens = read.tokens("red skyz")
    maps = np.arange(12, dtype=np.float32)[:, None, None] * np.ones((12, 2, 2), np.float32)
    words, merged = wordmaps.by_word(read, "red skyz", maps)
    assert words == ["red", "skyz"]
    for index in (0, 1):
        own = [i for i, token in enumerate(tokens) if token.word == index]
        assert merged[index, 0, 0] == np.mean(own)


def test_readers_travel_to_workers_and_read_there_the_same(case):
    read = reader(case)
    again = pickle.loads(pickle.dumps(read))
    for a, b in zip(
        read.encode_all(["a red circle", "the left"]).values(),
        again.encode_all(["a red circle", "the left"]).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_captions_are_drawn_without_replacement(case):
    given = ["red", "blue", "green", ""]
    single = {tuple(reader(case).encode_all([g])["word_ids"][0].tolist()) for g in given[:3]}
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = {tuple(row) for row in reader(case).encode(given, rng)["word_ids"].tolist()}
        assert len(drawn) == 2 and drawn <= single


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(BERT_CONFIG)
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        tokenizers.build(TextConfig(kind="bert", path=str(tmp_path)))


def test_a_tokenizer_of_a_larger_vocabulary_than_the_towers_is_refused(tmp_path):
    towers.save_tokenizer(tmp_path, eos=False)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "vocab_size": 40}')
    with pytest.raises(ConfigError, match="its word embedding 40 rows"):
        tokenizers.build(TextConfig(kind="bert", path=str(tmp_path)))
