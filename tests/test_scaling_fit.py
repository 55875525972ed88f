"""A fit finds what was planted and what was published, and knows how sure it is."""

import numpy as np
import pytest

from jepa_vl.config import ConfigError
from jepa_vl.scaling import bootstrap, budgets, fit, judge, law
from tests.shared import shared

PLANTED = law.Law(1.69, 406.4, 410.7, 0.34, 0.28)


def planted(noise: float = 0.0, seed: int = 0, spread: float = 4.0) -> law.Points:
    """Five budgets of fifteen sizes within a factor of ``spread`` of their best."""
    compute = np.geomspace(1e18, 1e22, 5)[:, None] / 6
    size = PLANTED.best_size(compute) * np.geomspace(1 / spread, spread, 15)
    data = compute / size
    error = np.exp(noise * np.random.default_rng(seed).normal(size=size.shape))
    return law.points(size.ravel(), data.ravel(), (PLANTED(size, data) * error).ravel())


@pytest.mark.parametrize("method", fit.METHODS)
def test_planted_parameters_come_back_to_six_digits(method):
    found = fit.fit(planted(), method)
    np.testing.assert_allclose(found.law, PLANTED, rtol=1e-6)
    assert found.notes == ()


@pytest.mark.parametrize(("method", "wanted", "objective"), [
    ("huber", {"alpha": 0.34263, "beta": 0.34200, "E": 1.78389}, 0.000840093),
    ("vp", {"alpha": 0.34705, "beta": 0.35876, "E": 1.80911}, 0.01407**2),
])  # fmt: skip
def test_the_published_answers_for_the_chinchilla_points(method, wanted, objective):
    table = shared("data/scaling/chinchilla_234.csv")
    found = fit.fit(law.read_csv(table, "N", "D", "loss"), method)
    for name, value in wanted.items():
        assert getattr(found.law, name) == pytest.approx(value, abs=2e-4), name
    assert found.objective == pytest.approx(objective, rel=1e-3)


def test_projection_is_at_least_as_good_as_many_starts_in_what_both_may_minimise():
    points = planted(0.02, 3)
    gaps = [fit.fit(points, m).law(points.size, points.data) - points.loss for m in fit.METHODS]
    assert np.square(gaps[0]).mean() <= np.square(gaps[1]).mean()


@pytest.mark.parametrize("method", fit.METHODS)
def test_drawn_runs_are_fitted_as_if_each_were_fitted_alone(method):
    points = planted(0.01, 1)
    best = fit.fit(points, method)
    drawn = bootstrap.draw(points, best, method, 3, seed=5)
    x = fit.scale(points)
    for number, counts in zip(drawn.laws, drawn.counts, strict=True):
        rows = np.repeat(np.arange(len(counts)), counts)
        alone = fit.fit(law.points(*(c[rows] for c in points[:3])), method).law
        centre = bootstrap.encode(x, best.law)
        raw = centre + (bootstrap.encode(x, law.Law(*number)) - centre) / np.sqrt(75 / 70)
        np.testing.assert_allclose(raw, bootstrap.encode(x, alone), atol=2e-4)


def test_points_of_one_run_are_drawn_together():
    points = planted(0.01)
    points = points._replace(run=np.arange(75) // 15)
    drawn = bootstrap.draw(points, fit.fit(points), "vp", 20)
    assert drawn.counts.shape == (20, 5) and (drawn.counts.sum(axis=1) == 5).all()


def coverage(trials: int) -> dict[str, float]:
    """Share of trials in which the 95 % interval holds what was planted."""
    hits = dict.fromkeys(("E", "alpha", "beta", "a"), 0)
    for seed in range(trials):
        points = planted(0.01, 1000 + seed)
        found = bootstrap.draw(points, fit.fit(points), "vp", 300, seed).intervals()
        for name in hits:
            low, high = found[name]
            hits[name] += low <= {**PLANTED._asdict(), "a": PLANTED.exponent}[name] <= high
    return {name: hit / trials for name, hit in hits.items()}


@pytest.mark.slow
def test_intervals_hold_what_was_planted_in_93_to_97_of_100_trials():
    found = coverage(200)
    print(found)
    assert 0.93 <= np.mean([found[name] for name in ("E", "alpha", "beta")]) <= 0.97, found


def test_a_law_without_a_floor_or_a_term_is_said_to_be_unknown():
    points = planted()
    flat = fit.fit(points._replace(loss=PLANTED.A * points.size**-0.34))
    assert flat.law.E < 1e-6 and flat.law.B < 1e-3
    assert any("floor" in note or "beta" in note for note in flat.notes)


def test_what_is_no_table_for_a_fit_is_one_clear_line(tmp_path):
    path = tmp_path / "t.csv"
    rows = [f"{n},{d},{PLANTED(n, d)}" for n in (1e6, 1e7, 1e8) for d in (1e9, 1e10)]

    def refused(text: str, *columns: str) -> str:
        path.write_text(text)
        with pytest.raises(ConfigError) as error:
            law.read_csv(path, *(columns or ("n", "d", "loss")))
        assert "\n" not in str(error.value)
        return str(error.value)

    head = "n,d,loss\n"
    assert "different values of data" in refused(head + "\n".join(rows))
    assert "a column of" in refused(head + "\n".join(rows), "N", "d", "loss")
    assert "line 3" in refused(head + rows[0] + "\n1e6,many,2\n")
    assert "a number above 0" in refused(head + "\n".join(rows) + "\n1e6,1e9,-2\n")
    assert "at least one row" in refused(head)
    with pytest.raises(ConfigError, match="--csv"):
        law.read_csv(tmp_path / "none.csv", "n", "d", "loss")
    with pytest.raises(ConfigError, match="rows to drop"):
        judge.drop_highest(planted(), 70)


def test_the_best_size_is_where_the_loss_of_a_budget_is_least():
    size = np.geomspace(1e6, 1e10, 200_001)
    best = size[np.argmin(PLANTED(size, 1e19 / size))]
    assert PLANTED.best_size(1e19) == pytest.approx(best, rel=1e-3)
    assert PLANTED.exponent == pytest.approx(0.28 / 0.62)


@pytest.mark.parametrize(("spread", "bias"), [(2, 0.0033), (4, 0.0132), (16, 0.0537)])
def test_parabolas_have_the_exponent_and_the_published_bias_in_size(spread, bias):
    found = budgets.best_sizes(planted(spread=spread))
    assert len(found) == 5 and all(best.inside for best in found)
    compute = np.array([best.compute for best in found])
    sizes = np.array([best.size for best in found])
    power = budgets.straight(compute, sizes)
    assert -power.exponent == pytest.approx(PLANTED.exponent, abs=2e-3)
    error = np.abs(sizes / PLANTED.best_size(compute) - 1).mean()
    assert error == pytest.approx(bias, rel=0.25)


def test_a_budget_whose_minimum_lies_outside_tells_no_best_size():
    points = planted()
    large = points.keep(points.size > PLANTED.best_size(points.size * points.data) * 1.2)
    assert budgets.best_sizes(large) == []
    with pytest.raises(ConfigError, match="minimum inside"):
        budgets.straight(np.array([1.0]), np.array([1.0]))


def test_the_envelope_keeps_what_nothing_cheaper_beats():
    compute, loss = np.array([1.0, 2, 2, 3, 4]), np.array([5.0, 4, 6, 4.5, 3])
    kept = budgets.envelope(compute, loss)
    np.testing.assert_array_equal(kept, [[1, 2, 4], [5, 4, 3]])


def test_a_saturating_law_comes_back_and_says_what_a_quality_costs():
    compute = np.geomspace(1e15, 1e20, 12)
    planted_law = budgets.PowerLaw(0.2, 40.0, 0.11)
    found = budgets.saturating(compute, planted_law(compute))
    np.testing.assert_allclose(found, planted_law, rtol=1e-4)
    assert found.inverse(float(planted_law(3e18))) == pytest.approx(3e18, rel=1e-3)
    assert found.inverse(0.1) == float("inf")


def test_the_largest_budget_is_foretold_from_the_others():
    exact = judge.hold_out(planted())
    assert exact.rows == 15 and abs(exact.error) < 1e-6
    np.testing.assert_allclose(exact.law, PLANTED, rtol=1e-4)
    broken = planted()
    last = budgets.budgets(budgets.compute_of(broken))[-1].rows
    loss = broken.loss.copy()
    loss[last] *= 0.9
    assert judge.hold_out(broken._replace(loss=loss)).error == pytest.approx(1 / 0.9 - 1, rel=1e-4)


def test_the_highest_losses_are_left_out_when_asked_and_by_number():
    points = planted()
    kept, dropped = judge.drop_highest(points, 5)
    assert len(kept.loss) == 70 and dropped == sorted(np.argsort(points.loss)[-5:].tolist())
    assert kept.run.max() == 69


def test_of_two_methods_the_cheaper_one_is_told_with_its_interval():
    compute = np.geomspace(1e15, 1e20, 14)
    rng = np.random.default_rng(0)

    def noisy(factor: float) -> tuple[np.ndarray, np.ndarray]:
        loss = budgets.PowerLaw(0.2, 40.0, 0.11)(compute * factor)
        return compute, loss * np.exp(0.002 * rng.normal(size=14))

    found = judge.compare(noisy(3.0), noisy(1.0), draws=60)
    value, low, high = found.multiplier
    assert low < 3 < high and low > 1 and low <= value <= high
    assert found.exponent[1] < 0 < found.exponent[2]
    same = judge.compare(noisy(1.0), noisy(1.0), draws=60)
    assert same.multiplier[1] < 1 < same.multiplier[2]


def test_a_forecast_far_beyond_what_was_trained_is_warned_of():
    assert judge.far_beyond(9e20, [1e20, 1e19]) == ""
    assert "20 times" in judge.far_beyond(2e21, [1e20, 1e19])
