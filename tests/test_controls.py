"""Promises of control runs: captions that belong to no image, to another one, or that say nothing.

Batches of all modes are compared on one small source whose every caption names its image.
"""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.data import captions, controls, embeddings, pipeline, sources
from jepa_vl.evaluators import features
from jepa_vl.schema import TextConfig
from jepa_vl.training import state as train_state
from jepa_vl.training.health import CAPTION_ARRAYS, Health
from tests import towers
from tests.tiny import tiny

# Outputs are compared with those of the same program alone.
pytestmark = pytest.mark.usefixtures("quick_module")

MODES = tuple(controls.CONTROLS)
IMAGES = 24


class Named:
    """Images of one grey; each has 3 captions that name it, of 3 to 5 words."""

    classes, fingerprint, name = ("even", "odd"), "0" * 16, "named"

    def __init__(self, captioned: bool = True):
        self.captioned = captioned

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict:
        texts = [f"{'very ' * n}grey image no{index}" for n in range(3)]
        return {
            "image": np.full((40, 40, 3), 10 * index, np.uint8),
            "captions": texts if self.captioned else [],
            "label": index % 2,
            "key": f"named-{index}",
        }


def config_of(mode: str, **values):
    return tiny(**{"data.captions": mode, "text.vocabulary": 8192, **values})


def train_batches(config, source, count=6, start=0):
    with pipeline.make_batches(config, source, start) as stream:
        return [next(stream) for _ in range(count)]


def assert_equal(one: dict, other: dict, *, leaving: tuple = ()) -> None:
    assert one.keys() == other.keys()
    for name in one.keys() - set(leaving):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def said_of(batch, text: TextConfig):
    """For each image of a batch the set of images that its captions name."""
    reader = captions.CaptionReader(dataclasses.replace(text, captions=3))
    known = {
        ids.tobytes(): index
        for index in range(IMAGES)
        for ids in reader.encode_all(Named()[index]["captions"])["word_ids"]
    }
    rows = zip(batch["word_ids"], batch["caption_mask"], strict=True)
    return [{known.get(ids.tobytes(), -1) for ids in row[present]} for row, present in rows]


@pytest.mark.parametrize("mode", MODES)
def test_only_the_words_differ_between_modes_and_batches_are_a_function_of_the_step(mode):
    config = config_of(mode)
    batches, own = (train_batches(c, Named()) for c in (config, config_of("own")))
    for one, other in zip(batches, own, strict=True):
        assert_equal(one, other, leaving=CAPTION_ARRAYS)
        assert one["label"].tolist() == (one["index"] % 2).tolist()
    assert_equal(train_batches(config, Named(), 1, start=4)[0], batches[4])
    once, again, of_own = (
        list(pipeline.eval_batches(c, Named(), range(IMAGES), 8))
        for c in (config, config, config_of("own"))
    )
    for one, other, plain in zip(once, again, of_own, strict=True):
        assert_equal(one, other)
        assert_equal(one, plain, leaving=CAPTION_ARRAYS)


@pytest.mark.parametrize("mode", ["shuffled", "random"])
def test_workers_draw_the_same_captions(mode):
    # Of a source that a worker can import: this module imports jax.
    source = sources.open_sources(config_of(mode))[0]
    here, there = (config_of(mode, **{"data.workers": workers}) for workers in (0, 1))
    assert_equal(*(train_batches(config, source, 1, start=9)[0] for config in (here, there)))


def test_an_image_gets_the_captions_of_one_other_image_in_every_epoch_and_in_evaluation():
    config = config_of("shuffled")
    partner = controls.pairing(IMAGES, config.seed)
    assert sorted(partner) == list(range(IMAGES))
    batches = train_batches(config, Named(), 6)  # two epochs
    batches += pipeline.eval_batches(config, Named(), range(IMAGES), 8)
    for batch in batches:
        for index, named in zip(batch["index"], said_of(batch, config.text), strict=True):
            assert named == {partner[index]} != {index}


@pytest.mark.parametrize("count", [2, 3, 50, 1001])
def test_no_image_is_paired_with_itself_and_the_seed_alone_decides(count):
    for seed in range(5):
        partner = controls.pairing(count, seed)
        assert sorted(partner) == list(range(count)) and (partner != np.arange(count)).all()
        np.testing.assert_array_equal(controls.pairing(count, seed), partner)
    if count > 3:
        assert (controls.pairing(count, 0) != controls.pairing(count, 1)).any()


def test_one_image_cannot_be_shuffled():
    with pytest.raises(ConfigError, match=r"data\.captions = 'shuffled': needs two images"):
        controls.pairing(1, 0)


def test_empty_is_what_images_without_captions_give():
    empty, own = config_of("empty"), config_of("own", **{"data.require_captions": False})
    for one, other in zip(
        [*train_batches(empty, Named()), *pipeline.eval_batches(empty, Named(), range(8), 8)],
        [*train_batches(own, Named(captioned=False)),
         *pipeline.eval_batches(own, Named(captioned=False), range(8), 8)],
        strict=True,
    ):  # fmt: skip
        assert_equal(one, other)
        assert not any(one[name].any() for name in ("word_ids", "word_mask", "caption_mask"))


def test_random_tokens_are_as_many_as_the_own_ones_and_others_each_time():
    config, own = config_of("random"), config_of("own")
    batches, expected = train_batches(config, Named()), train_batches(own, Named())
    seen = {}
    for one, other in zip(batches, expected, strict=True):
        for name in ("word_mask", "caption_mask"):
            np.testing.assert_array_equal(one[name], other[name])
        np.testing.assert_array_equal(one["word_ids"] > 0, one["word_mask"])
        assert (one["word_ids"][one["word_mask"]] >= 2).all() and one["word_ids"].max() < 8192
        assert all(named == {-1} for named in said_of(one, config.text))
        for index, ids in zip(one["index"].tolist(), one["word_ids"], strict=True):
            assert ids.tobytes() not in seen.setdefault(index, set())
            seen[index].add(ids.tobytes())
    other = config_of("random", seed=1)
    first, second = (next(pipeline.eval_batches(c, Named(), [3], 1)) for c in (config, other))
    assert (first["word_ids"] != second["word_ids"]).any()


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A tokenizer of T5's shape and a cache of embeddings for the captions of ``Named``."""
    folder = tmp_path_factory.mktemp("tower")
    towers.save_tokenizer(folder, eos=True)
    (folder / "config.json").write_text('{"model_type": "t5", "vocab_size": 96}')
    return folder


@pytest.mark.parametrize("eos", [True, False])
def test_random_tokens_of_a_pretrained_tower_leave_its_special_tokens_in_their_places(
    tmp_path, eos
):
    towers.save_tokenizer(tmp_path, eos)
    kind = "t5" if eos else "bert"
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}", "vocab_size": 96}}')
    reader = captions.CaptionReader(TextConfig(kind=kind, path=str(tmp_path), words=12, captions=2))
    special = [0, 1, 2] if eos else [0, 1, 2, 3]
    assert not set(special) & set(reader.ordinary_ids.tolist())
    own = reader.encode_all(["a red circle above", "the left"])
    drawn = reader.scramble(own, np.random.default_rng(0))["word_ids"]
    fixed = np.isin(own["word_ids"], special)
    np.testing.assert_array_equal(drawn[fixed], own["word_ids"][fixed])
    assert set(drawn[~fixed].tolist()) <= set(reader.ordinary_ids.tolist())
    assert (drawn[~fixed] != own["word_ids"][~fixed]).any()


def cached(tower, folder):
    """A reader of a cache in which every number says which caption and token it is of."""
    text = TextConfig(kind="t5", path=str(tower), words=12, captions=2, cache_dtype="float32")
    spec = captions.CaptionReader(text).tokenize.spec
    lengths = {f"caption {i}": 2 + i % 3 for i in range(9)}
    rows = [
        (caption, np.full((n, 4), 10 * i + np.arange(n)[:, None], np.float32))
        for i, (caption, n) in enumerate(lengths.items())
    ]
    embeddings.write(folder, text, spec, rows)
    return captions.CaptionReader(dataclasses.replace(text, kind="cached", path=str(folder))), rows


def test_random_tokens_of_a_cache_are_embeddings_of_random_captions(tower, tmp_path):
    reader, rows = cached(tower, tmp_path)
    stored = {row.tobytes() for _, states in rows for row in states}
    own = reader.encode_all(["caption 1", "caption 5"])
    drawn = reader.scramble(own, np.random.default_rng(0))
    assert (own["word_states"][own["word_mask"]] != drawn["word_states"][own["word_mask"]]).any()
    assert not drawn["word_states"][~own["word_mask"]].any()
    assert {row.tobytes() for row in drawn["word_states"][own["word_mask"]]} <= stored
    again = pickle.loads(pickle.dumps(reader)).scramble(own, np.random.default_rng(0))
    assert_equal(again, drawn)
    nothing = reader.encode_all([])
    assert_equal(reader.scramble(nothing, np.random.default_rng(0)), nothing)


@pytest.fixture(scope="module")
def model():
    config = config_of("empty", **{"loss.regulariser": "centred", "mesh.data": 1})
    objective, mesh = objectives.build(config), sharding.make_mesh(config.mesh, jax.devices()[:1])
    spec = train_state.batch_spec(config)
    return config, objective, mesh, train_state.create(config, objective, spec, mesh)


def test_without_captions_the_model_is_bit_for_bit_blind_to_what_stands_in_their_place(model):
    config, objective, _, state = model
    loss = jax.jit(lambda batch: objective.loss(
        state.params, state.target, {}, batch, jax.random.key(0), jnp.ones(())
    ))  # fmt: skip
    empty, none, own = (
        next(pipeline.eval_batches(c, Named(captioned), range(8), 8))
        for c, captioned in ((config, True), (config_of("own"), False), (config_of("own"), True))
    )
    hidden = {**own, "word_mask": none["word_mask"], "caption_mask": none["caption_mask"]}
    found = [jax.device_get(loss(batch)) for batch in (empty, none, hidden, own)]
    for other in found[1:3]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)
    assert found[0][0] != found[3][0]


def test_the_text_gain_of_empty_captions_is_zero(model):
    config, objective, mesh, state = model
    encode = features.make_encode(objective.encoder, mesh)
    found = Health(config, objective, {}, mesh, Named(), encode).run(state)
    assert found["text_gain"] == 0 and np.isfinite(list(found.values())).all()


def test_a_control_without_an_objective_that_reads_captions_is_refused():
    with pytest.raises(ConfigError, match=r"^data\.captions = 'empty': 'own' with objective 'ij"):
        config_of("empty", objective="ijepa")
    with pytest.raises(ConfigError, match="did you mean 'shuffled'"):
        config_of("shufled")


@pytest.mark.parametrize("mode", ["shuffled", "random"])
def test_preview_shows_the_captions_that_a_control_draws(mode, capsys, tmp_path):
    words = ["--config", "tests/configs_tiny.py", "--out", str(tmp_path)]
    assert main(["preview", "--what", "batch", *words, f"--config.data.captions={mode}"]) == 0
    config = tiny(**{"data.captions": mode})
    source = sources.open_sources(config)[0]
    with pipeline.make_batches(config, source, 0) as stream:
        index = int(next(stream)["index"][0])
    other = source[int(controls.pairing(len(source), config.seed)[index])]["captions"]
    shown = capsys.readouterr().out.split(f"image {index},")[1].split("\nimage ")[0]
    said = [text for text in other if f"  {text}\n" in shown]
    assert len(said) == (2 if mode == "shuffled" else 0)
