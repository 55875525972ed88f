"""Evaluators on made-up features, and the reading of real ones."""

import dataclasses

import jax
import numpy as np
import pytest

from jepa_vl import objectives, sharding, tree
from jepa_vl.config import ConfigError
from jepa_vl.data import sources
from jepa_vl.evaluators import REGISTRY, fast, features, fewshot, intervals, knn
from jepa_vl.evaluators.base import LABELLED, Features, majority, read_by
from jepa_vl.models import frozen_vit, vit
from jepa_vl.models.layers import sincos_table
from jepa_vl.training import state as train_state
from tests.tiny import tiny


def blobs(per_class: int, spread: float, classes: int = 3, width: int = 12, seed: int = 0):
    """Gaussian clouds around random centres: float [n, X] and labels [n], in mixed order."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.permutation(np.repeat(np.arange(classes), per_class))
    return centres[labels] + spread * rng.normal(size=(len(labels), width)), labels


def parts(spread: float = 1.5, **how) -> Features:
    return Features(*blobs(40, spread, **how), *blobs(30, spread, seed=1, **how))


def run(name: str, found: Features) -> dict[str, float]:
    return REGISTRY[name](tiny(), lambda _: found).run(None)


PROBES = [name for name in REGISTRY if read_by(name) == LABELLED]


@pytest.mark.parametrize("name", PROBES)
def test_an_accuracy_is_the_mean_of_its_hits(name):
    found = parts()
    scores, hits, *_ = REGISTRY[name](tiny(), lambda _: found).measure(None)
    assert MAIN[name] in hits and hits.keys() <= scores.keys()
    for score, right in hits.items():
        assert right.dtype == bool and right.shape == (3 if name == "fewshot" else 1, 90)
        assert scores[score] == pytest.approx(right.mean(), abs=1e-12)


def test_an_interval_is_as_wide_as_the_binomial_says_and_a_paired_one_narrower():
    rng = np.random.default_rng(0)
    first = rng.random(2000) < 0.7
    second = np.where(rng.random(2000) < 0.05, ~first, first)  # agrees on 19 of 20
    rows = np.array([first, second, second.astype(float) - first])
    ends = np.array(intervals.intervals(rows))
    means, widths = rows.mean(axis=1), ends[:, 1] - ends[:, 0]
    assert np.all(ends[:, 0] <= means) and np.all(means <= ends[:, 1])
    np.testing.assert_allclose(widths, 2 * 1.96 * rows.std(axis=1) / 2000**0.5, rtol=0.1)
    assert widths[2] < 0.6 * widths[0]
    np.testing.assert_array_equal(ends, intervals.intervals(rows))
    np.testing.assert_array_equal(ends[:1], intervals.intervals(rows[:1]))


def test_resamples_are_means_of_images_drawn_with_replacement():
    values = np.eye(3)  # row i: how often image i was drawn, over 3
    drawn = intervals.resampled(values)
    assert drawn.shape == (intervals.RESAMPLES, 3)
    np.testing.assert_allclose(drawn.sum(axis=1), 1.0)
    assert set(np.round(drawn * 3).ravel()) == {0, 1, 2, 3}
    np.testing.assert_allclose(drawn.mean(axis=0), 1 / 3, atol=0.03)


def test_the_commonest_class_is_that_of_the_training_part():
    found = Features(
        np.zeros((5, 1)), np.array([2, 2, 1, 2, 0]), np.zeros((4, 1)), np.array([1, 1, 2, 0])
    )
    assert majority(found) == 0.25


MAIN = {"knn": "k20", "fast": "accuracy", "fewshot": "10shot"}


@pytest.mark.parametrize("name", PROBES)
def test_every_protocol_solves_a_separable_problem_and_not_one_without_a_signal(name):
    clear = parts(spread=0.05)
    assert run(name, clear)[MAIN[name]] == 1.0
    noise = np.random.default_rng(0)
    blind = dataclasses.replace(
        clear,
        train=noise.normal(size=clear.train.shape),
        held_out=noise.normal(size=clear.held_out.shape),
    )
    assert abs(run(name, blind)[MAIN[name]] - 1 / 3) < 0.2  # chance, 90 images


@pytest.mark.parametrize("name", PROBES)
def test_the_same_features_give_the_same_numbers_and_every_number_is_plain(name):
    found = parts()
    first = run(name, found)
    assert first == run(name, found)
    assert all(type(value) in (float, int) for value in first.values())


@pytest.mark.parametrize("name", PROBES)
def test_nothing_but_the_accuracy_depends_on_the_held_out_part(name):
    found = parts()
    rng = np.random.default_rng(3)
    other = dataclasses.replace(
        found,
        held_out=rng.normal(size=found.held_out.shape) * 50,
        held_out_labels=rng.permutation(found.held_out_labels),
    )
    before, after = run(name, found), run(name, other)
    assert before[MAIN[name]] > after[MAIN[name]]
    for key in ("C", "accuracy_chosen_on", "5shot_images"):
        assert before.get(key) == after.get(key)


@pytest.mark.parametrize("name", PROBES)
def test_labels_that_do_not_occur_cost_nothing(name):
    """As where a data set has more classes than the images drawn."""
    found = parts()
    gaps = np.array([2, 3, 7])
    spaced = dataclasses.replace(
        found,
        train_labels=gaps[found.train_labels],
        held_out_labels=gaps[found.held_out_labels],
    )
    assert run(name, spaced) == run(name, found)


@pytest.mark.parametrize("c", [1e-4, 0.03, 1.0, 1e3])
def test_logistic_regression_finds_the_optimum_that_scikit_learn_finds(c):
    sklearn = pytest.importorskip("sklearn.linear_model")
    x, labels = blobs(30, 2.0)
    ours = fast.fit(x, labels, 3, c)
    reference = sklearn.LogisticRegression(C=c, tol=1e-10, max_iter=20_000).fit(x, labels)
    weights = np.concatenate([reference.coef_.T, reference.intercept_[None]]).ravel()
    values = [fast.objective(w, x, labels, 3, c)[0] for w in (ours, weights)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)
    said = fast.predict(ours, x, 3)
    assert np.mean(said == reference.predict(x)) == 1.0


def test_the_gradient_of_logistic_regression_is_that_of_its_value():
    x, labels = blobs(5, 1.0, width=4)
    weights = np.random.default_rng(0).normal(size=5 * 3)
    gradient = fast.objective(weights, x, labels, 3, 0.7)[1]
    steps = 1e-6 * np.eye(len(weights))
    numeric = [
        fast.objective(weights + e, x, labels, 3, 0.7)[0]
        - fast.objective(weights - e, x, labels, 3, 0.7)[0]
        for e in steps
    ]
    np.testing.assert_allclose(gradient, np.array(numeric) / 2e-6, atol=1e-8)


def test_a_tenth_of_each_class_is_held_and_a_class_of_one_is_not():
    labels = np.repeat([0, 1, 2, 3], [100, 40, 5, 1])
    held = fast.hold(labels, seed=0)
    assert [int(held[labels == c].sum()) for c in range(4)] == [10, 4, 1, 0]
    assert not np.array_equal(held, fast.hold(labels, seed=1))


def test_the_strength_chosen_is_the_strongest_of_the_best_on_the_held_tenth():
    x, labels = blobs(40, 2.0)
    x = features.standardise(x)[0]
    held = fast.hold(labels, seed=0)
    scores = []
    for c in fast.STRENGTHS:
        weights = fast.fit(x[~held], labels[~held], 3, c)
        scores.append(np.mean(fast.predict(weights, x[held], 3) == labels[held]))
    chosen = fast.choose(x, labels, 3, seed=0)
    assert chosen == (fast.STRENGTHS[int(np.argmax(scores))], max(scores))


def test_the_left_out_error_of_ridge_is_that_of_refitting_without_each_image():
    x, labels = blobs(4, 1.0, width=20)  # more columns than rows, as with few shots
    x, y = features.standardise(x)[0], np.eye(3)[labels]
    ridge = fewshot.Ridge(x, y)
    for l2 in (0.5, 2.0**10):
        errors = []
        for i in range(len(x)):
            rest = np.arange(len(x)) != i
            mean = x[rest].mean(axis=0)
            without = fewshot.Ridge(x[rest] - mean, y[rest])
            errors.append(y[i] - without.predict(x[i] - mean, l2))
        np.testing.assert_allclose(ridge.left_out(l2), np.mean(np.square(errors)), rtol=1e-8)


@pytest.mark.parametrize("width", [5, 40])
def test_ridge_solves_its_normal_equations(width):
    x, labels = blobs(6, 1.0, width=width)
    x, y = features.standardise(x)[0], np.eye(3)[labels]
    w = fewshot.Ridge(x, y).coefficients(3.0)
    left = x.T @ (x @ w - (y - y.mean(axis=0))) + 3.0 * w
    np.testing.assert_allclose(left, 0, atol=1e-10)


def test_shots_are_drawn_by_class_and_fewer_are_part_of_more():
    labels = np.repeat([0, 1, 2], [30, 12, 7])
    five, ten = (fewshot.draw(labels, s, np.random.default_rng(4)) for s in (5, 10))
    assert np.bincount(labels[five]).tolist() == [5, 5, 5]
    assert np.bincount(labels[ten]).tolist() == [10, 10, 7]
    assert set(five) <= set(ten)


def test_few_shot_accuracy_says_how_many_images_it_saw_and_leaves_out_what_no_class_has():
    found = Features(*blobs(12, 1.0), *blobs(20, 1.0, seed=1))
    scores = run("fewshot", found)
    assert (scores["5shot_images"], scores["10shot_images"]) == (15, 30)
    assert "25shot" not in scores and scores["5shot_spread"] > 0


def test_votes_and_ridge_are_those_of_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    found = parts(spread=2.5)
    queries = found.train, found.train_labels, found.held_out
    ours = knn.classify(*queries, (10, 20, 100), 0.07)
    for k, said in zip((10, 20, 100), ours, strict=True):
        theirs = neighbors.KNeighborsClassifier(
            k, weights=lambda far: np.exp((1 - far) / 0.07), metric="cosine", algorithm="brute"
        )
        np.testing.assert_array_equal(theirs.fit(*queries[:2]).predict(queries[2]), said)
    x, labels = blobs(6, 1.0, width=40)
    x, y = features.standardise(x)[0], np.eye(3)[labels]
    for l2 in (0.5, 2.0**10):
        theirs = pytest.importorskip("sklearn.linear_model").Ridge(alpha=l2).fit(x, y)
        ours = fewshot.Ridge(x, y).predict(found.held_out @ np.ones((12, 40)), l2)
        expected = theirs.predict(found.held_out @ np.ones((12, 40)))
        np.testing.assert_allclose(ours, expected, rtol=1e-8)


def test_neighbours_vote_by_their_cosine():
    angles = np.deg2rad([0.0, 10.0, 20.0, 80.0, 90.0])
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [5], [2], [3], [1]]
    labels = np.array([0, 1, 1, 2, 2])
    query = np.array([[7.0, 0.1]])
    said = knn.classify(train, labels, query, (1, 3, 5), 0.07)[:, 0]
    cosine = features.unit(train) @ features.unit(query)[0]
    by_hand = [np.bincount(labels[:k], np.exp(cosine[:k] / 0.07)).argmax() for k in (1, 3, 5)]
    assert said.tolist() == by_hand == [0, 1, 1]


def test_every_k_gets_what_it_gets_alone_and_a_cold_vote_does_not_overflow():
    found = parts(spread=2.0)
    arguments = found.train, found.train_labels, found.held_out
    together = knn.classify(*arguments, (10, 20, 100), 0.07)
    alone = [knn.classify(*arguments, (k,), 0.07)[0] for k in (10, 20, 100)]
    np.testing.assert_array_equal(together, alone)
    nearest = knn.classify(*arguments, (1,), 0.07)
    np.testing.assert_array_equal(knn.classify(*arguments, (20,), 1e-4), nearest)


def test_columns_are_scaled_by_the_training_part_and_constant_ones_vanish():
    rng = np.random.default_rng(0)
    train = rng.normal(3.0, 5.0, size=(50, 4)).astype(np.float32)
    train[:, 2] = 0.1
    scaled, other = features.standardise(train, train[:7] + 1)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), [1, 1, 0, 1], atol=1e-6)
    spread = np.delete(train.std(axis=0), 2)
    gap = np.delete(other - scaled[:7], 2, axis=1)
    np.testing.assert_allclose(gap, np.broadcast_to(1 / spread, gap.shape), rtol=1e-4)
    assert not other[:, 2].any()


@pytest.mark.parametrize(
    ("name", "count", "part"),
    [("knn", 3, "needs 10"), ("fewshot", 4, "needs 5"), ("fast", 1, "needs two images")],
)
def test_too_few_training_images_are_refused(name, count, part):
    found = Features(*blobs(count, 1.0), *blobs(5, 1.0, seed=1))
    with pytest.raises(ConfigError, match=part):
        run(name, found)


@pytest.fixture(scope="module")
def model():
    """Configuration, encoder, parameters and the mesh of one device."""
    config = tiny(**{"encoder.depth": 3})
    objective = objectives.build(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    state = train_state.create(config, objective, train_state.batch_spec(config), mesh)
    return config, objective.encoder, state.target, mesh


def test_the_last_layers_are_normed_pooled_and_end_with_the_final_one(model):
    config, encoder, params, mesh = model
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    one, two = (features.make_encode(encoder, mesh, n)(params, images) for n in (1, 2))
    width = config.encoder.width
    assert (one.shape, two.shape) == ((8, width), (8, 2 * width))
    np.testing.assert_allclose(two[:, width:], one, atol=1e-5)
    # The block before the last: the same encoder without its last block.
    shallow = dataclasses.replace(config.encoder, depth=2)
    below = {name: leaf for name, leaf in params.items() if name != "block_2"}
    expected = features.make_encode(vit.build(shallow), mesh)(below, images)
    np.testing.assert_allclose(two[:, :width], expected, atol=1e-5)


def test_layers_of_a_tower_are_those_of_our_encoder_without_the_class_token(
    model, quick_compilation
):
    config, encoder, params, mesh = model
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    tower = frozen_vit.FrozenViT(frozen_vit.shape_of(config.encoder))
    table = sincos_table(config.encoder.width, config.encoder.grid)
    assert features.readable(tower) == features.readable(encoder) == 3
    ours = features.make_encode(encoder, mesh, 2)(params, images)
    theirs = features.make_encode(tower, mesh, 2)({**params, "position": table}, images)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    classed = tower.shape._replace(cls=1, layer_scale=True, depth=2)
    random = frozen_vit.untrained(classed, jax.random.key(0))
    assert tree.diff(frozen_vit.expected(classed), tree.flatten(random)) == []
    found = vit.last_layers(frozen_vit.FrozenViT(classed), random, images, 2)
    width = config.encoder.width
    assert found.shape == (8, 16, 2 * width)
    alone = frozen_vit.FrozenViT(classed).apply({"params": random}, images)
    np.testing.assert_allclose(found[..., width:], np.asarray(alone), atol=1e-5)


def test_images_kept_in_memory_give_the_features_of_images_that_pass_through(model):
    config, encoder, params, mesh = model
    encode = features.make_encode(encoder, mesh)
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, train_images=13))
    passing, keeping = (features.Reader(config, *sources.open_sources(config)) for _ in range(2))
    keeping.keep_images()
    read = [reader.read(lambda images: encode(params, images)) for reader in (passing, keeping)]
    for name in ("train", "train_labels", "held_out", "held_out_labels"):
        first, second = (getattr(found, name) for found in read)
        np.testing.assert_array_equal(first, second)
        assert len(first) == (13 if name.startswith("train") else 16)  # padding is cut
    assert passing.describe()["train"]["images"] == 13


def test_numbers_depend_neither_on_the_batch_nor_on_the_devices(model):
    """Batches of 7 and 64 on one device, of 8 and 40 on eight, each with a ragged last one."""
    config, encoder, params, mesh = model
    found = {}
    for batch, devices in ((7, 1), (64, 1), (8, 8), (40, 8)):
        wide = mesh if devices == 1 else sharding.make_mesh(config.mesh)
        sizes = dataclasses.replace(config.eval, batch_size=batch, train_images=61, val_images=45)
        changed = dataclasses.replace(config, eval=sizes)
        reader = features.Reader(changed, *sources.open_sources(changed))
        weights = jax.device_put(params, sharding.replicated(wide))
        encode = features.make_encode(encoder, wide)
        extract = features.remember(lambda p, r=reader, e=encode: r.read(lambda x: e(p, x)))
        scores = {name: REGISTRY[name](changed, extract).run(weights) for name in PROBES}
        found[batch, devices] = extract(weights), scores, reader.data_hash()
    (features_of, scores, name), *others = found.values()
    for other in others:
        for part in ("train", "held_out"):
            np.testing.assert_allclose(
                getattr(features_of, part), getattr(other[0], part), atol=1e-5
            )
        assert (other[1], other[2]) == (scores, name)


class _Labelled:
    name, fingerprint = "labelled", "0" * 16

    def __init__(self, labels):
        self.labels = np.array(labels)

    def __len__(self):
        return len(self.labels)


def test_classes_of_one_part_alone_are_told_in_one_line():
    config, both = tiny(), _Labelled([0, 1, 2, 2, 1])

    def told(train, held_out):
        return features.Reader(config, train, held_out).describe().get("absent")  # pyright: ignore

    assert told(both, both) is None
    assert told(both, _Labelled([1, 1])) == "2 of 3 classes have no held-out image"
    line = told(_Labelled([0, 1]), _Labelled([1, 5, 6, -1]))
    assert line == (
        "1 of 2 classes have no held-out image; 2 classes have held-out images alone, which count "
        "as wrong"
    )


def test_features_are_read_once_for_all_evaluators():
    calls = []

    def extract(params):
        calls.append(params)
        return parts()

    remembered = features.remember(extract)
    first, second = {"a": 1}, {"a": 1}
    for params in (first, first, second, second):
        remembered(params)
    assert [id(params) for params in calls] == [id(first), id(second)]
