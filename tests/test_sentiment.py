"""Sentiment: MVSA's layout and label rule, F1 against scikit-learn, splits, a planted answer.

No real MVSA lies beside the project: the trees are made here.
"""

import jax
import numpy as np
import pytest
from sklearn.metrics import f1_score

from jepa_vl import objectives, sharding
from jepa_vl.config import ConfigError
from jepa_vl.data import mvsa, pipeline, sources
from jepa_vl.evaluators import sentiment
from jepa_vl.evaluators.joint import Joint
from jepa_vl.schema import MeshConfig
from tests.image_sets import picture
from tests.tiny import tiny

COLOURS = {"negative": (20, 20, 60), "neutral": (120, 120, 120), "positive": (250, 220, 30)}


def write(root, rows, text=lambda number, label: f"so {label}!".encode()):
    """rows: ID -> annotators' (text, image) labels; the image shows the first one's."""
    (root / "data").mkdir(parents=True)
    columns = "\t".join(["text,image"] * len(next(iter(rows.values()))))
    lines = [f"ID\t{columns}"]
    for number, votes in rows.items():
        lines.append("\t".join([str(number), *(",".join(pair) for pair in votes)]))
        label = votes[0][0]
        (root / "data" / f"{number}.jpg").write_bytes(picture(COLOURS[label]))
        (root / "data" / f"{number}.txt").write_bytes(text(number, label))
    (root / "labelResultAll.txt").write_text("\n".join(lines) + "\n")


def both(tmp_path, count=40):
    """MVSA-Single and MVSA-Multiple of pairs whose texts differ; a quarter name no label."""
    names = mvsa.CLASSES

    def text(number, label):
        return f"so {label if number % 4 else 'odd'} {' '.join('abcdefg'[: number % 7])}".encode()

    single = {i: [(names[i % 3],) * 2] for i in range(1, count + 1)}
    write(tmp_path / "MVSA_Single", single, text)
    many = {i: [(names[i % 3],) * 2] * 3 for i in range(1, 2 * count + 1)}
    write(tmp_path / "MVSA", many, text)
    return tmp_path


P, N, U = "positive", "negative", "neutral"


@pytest.mark.parametrize(
    ("votes", "label"),
    [
        ([(P, P)], P),
        ([(U, N)], N),
        ([(N, U)], N),
        ([(U, U)], U),
        ([(P, N)], None),
        ([(N, P)], None),
        ([(P, U), (P, N), (N, U)], P),  # by majority positive and neutral
        ([(P, U), (U, N), (N, U)], None),  # no majority of the texts
        ([(P, N), (P, N), (U, U)], None),  # opposed majorities
        ([(U, P), (U, N), (U, N)], N),
    ],
)
def test_labels_are_merged_by_the_published_rule(tmp_path, votes, label):
    write(tmp_path / "set", {7: votes, 8: [(U, U)] * len(votes)})
    found = mvsa.Mvsa(str(tmp_path / "set"))
    kept = {found.keys[i]: found.classes[found[i]["label"]] for i in range(len(found))}
    assert kept == ({"set/7": label} if label else {}) | {"set/8": U}
    assert found.left_out == (label is None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "latin-1"])
def test_texts_of_several_encodings_are_read(tmp_path, encoding):
    said = "caf\xe9 \xfcber" if encoding == "latin-1" else "caf\xe9 \u201cwow\u201d"
    write(tmp_path, {1: [(P, P)]}, lambda *_: f" {said}\r\n".encode(encoding))
    assert mvsa.Mvsa(str(tmp_path))[0]["captions"] == [said]
    assert mvsa.decode(b"\x81") == "\x81"  # no character of Windows-1252


def test_both_sets_are_one_source_whose_parts_and_keys_differ(tmp_path):
    found = mvsa.Mvsa(str(both(tmp_path, 9)))
    assert found.parts.count("single") == 9 and found.parts.count("multiple") == 18
    assert len(set(found.keys)) == 27 and found.classes == mvsa.CLASSES


def test_f1_is_that_of_scikit_learn_also_where_a_class_is_missing():
    rng = np.random.default_rng(0)
    for classes in (3, 2):
        labels, found = rng.integers(0, classes, 50), rng.integers(0, 3, 50)
        expected = [f1_score(labels, found, average=how) for how in ("macro", "weighted")]
        np.testing.assert_allclose(sentiment.f1(found, labels), expected, rtol=1e-12)


def test_parts_are_8_1_1_disjoint_and_up_sampling_evens_the_classes():
    parts = sentiment.split(101, np.random.default_rng(0))
    assert [len(part) for part in parts] == [81, 10, 10]
    assert sorted(np.concatenate(parts).tolist()) == list(range(101))
    labels = np.array([0] * 7 + [1] * 3 + [2])
    places = sentiment.upsample(labels, np.random.default_rng(0))
    assert np.bincount(labels[places]).tolist() == [7, 7, 7] and set(places) == set(range(11))


def test_a_planted_answer_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    labels, parts = rng.integers(0, 3, 600), np.where(rng.random(600) < 0.3, *sentiment.PART)
    told = sentiment.Pairs(np.eye(3)[labels] + 0.1 * rng.normal(size=(600, 3)), labels, parts)
    found, common = sentiment.classify(told, 0)
    assert found["accuracy"] == found["single_macro_f1"] == found["multiple_weighted_f1"] == 1
    assert common["accuracy"] < 0.55 and common["macro_f1"] < 0.3
    noise = told._replace(features=rng.normal(size=(600, 5)))
    assert sentiment.classify(noise, 0)[0]["accuracy"] < 0.55
    assert sentiment.classify(told, 0) == sentiment.classify(told, 0)


@pytest.mark.parametrize("objective", ["contrastive", "tijepa"])
def test_all_splits_are_measured_over_five_seeds(tmp_path, objective, quick_compilation):
    config = tiny(objective=objective, **{"data.kind": "mvsa", "data.path": str(both(tmp_path))})
    (tmp_path / "MVSA" / "data" / "3.jpg").write_bytes(b"no image")
    (tmp_path / "MVSA" / "data" / "4.txt").write_bytes(b"  ")
    one = objectives.build(config)
    train, held_out = sources.open_sources(config)
    batch = next(pipeline.eval_batches(config, train, range(2), 2))
    params = jax.jit(one.init)(jax.random.key(0), batch)
    weights, frozen = (params, one.target_of(params)), one.load_frozen()
    results = []
    for size, devices in ((7, 1), (64, 1), (64, 8)):  # each with a ragged last batch
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
        changed = tiny(
            objective=objective,
            **{"data.kind": "mvsa", "data.path": str(tmp_path), "eval.batch_size": size},
        )
        task = sentiment.Sentiment(changed, Joint(changed, one, frozen, mesh, train, held_out))
        results.append(task.measure(weights))
    assert task.protocol["pairs"] == {"single": 40, "multiple": 79}
    assert task.protocol["without_text"] == 1
    for other in results[1:]:
        assert other.scores == results[0].scores and other.ci == results[0].ci
        assert other.baselines == results[0].baselines
    scores = results[0].scores
    for name in ("single", "multiple", "pooled", "pooled_single", "pooled_multiple"):
        assert 0 <= scores[f"{name}_accuracy"] <= 1 and scores[f"{name}_macro_f1_spread"] >= 0
    assert scores["pooled_accuracy"] > results[0].baselines["majority"]["pooled_accuracy"]
    low, high = results[0].ci["pooled_accuracy"]
    assert low <= scores["pooled_accuracy"] <= high


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("ID\ttext,image\n1\tpositive\n", "is no line ID"),
        ("ID\ttext,image\n1\thappy,positive\n", "is no line ID"),
        ("ID\ttext,image\n1\tnegative,positive\n", "no pair has a clear label"),
        (None, "labelResultAll.txt"),
    ],
)
def test_bad_data_get_one_clear_line(tmp_path, content, rule):
    if content is not None:
        (tmp_path / "labelResultAll.txt").write_text(content)
    with pytest.raises(ConfigError, match=rule) as error:
        mvsa.Mvsa(str(tmp_path))
    assert "\n" not in str(error.value)


def test_other_data_objectives_without_text_and_too_few_pairs_are_refused():
    mesh = sharding.make_mesh(MeshConfig())
    for name, rule in (("ijepa", "reads captions"), ("tcjepa", "'mvsa' alone")):
        config = tiny(objective=name)
        parts = sources.open_sources(config)
        with pytest.raises(ConfigError, match=rule):
            sentiment.Sentiment(config, Joint(config, objectives.build(config), {}, mesh, *parts))
    few = sentiment.Pairs(np.eye(3), np.arange(3), np.array(["single"] * 3))
    with pytest.raises(ConfigError, match="a pair of each class"):
        sentiment.classify(few, 0)
