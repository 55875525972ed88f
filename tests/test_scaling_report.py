"""The report of a study has the right numbers, and says where there are none."""

import json
import re

import numpy as np
import pytest

from jepa_vl.cli import outputs
from jepa_vl.cli.main import main
from jepa_vl.scaling.law import Law

PLANTED = Law(0.05, 30.0, 60.0, 0.4, 0.4)


def rows(arm="ijepa", budgets=(1e11, 1e12, 1e13, 1e14), sizes=5, seeds=2, noise=0.003, better=1.0):
    """A ledger's rows by a planted law; FLOPs are 6 N D, sizes a factor of 4 around the best."""
    rng = np.random.default_rng(len(arm))
    out = []
    for budget in budgets:
        best = float(PLANTED.best_size(budget / 6))
        for size in best * np.geomspace(0.25, 4, sizes):
            for seed in range(seeds):
                images = budget / 6 / size
                law = PLANTED._replace(A=PLANTED.A * better, B=PLANTED.B * better)
                error = float(law(size, images)) * float(np.exp(noise * rng.normal()))
                out.append({
                    "study": "s", "arm": arm, "size": f"{size:.0f}x1", "budget": budget,
                    "seed": seed, "config_hash": "h", "status": "done", "images": images,
                    "parameters": {"encoder": size}, "flops": {"run": budget},
                    "evals": [{"task": "knn", "features": "encoder",
                               "metrics": {"k20": 1 - error}}],
                })  # fmt: skip
    return out


def report(tmp_path, lines, *words):
    """Exit code, the numbers and the page."""
    folder = tmp_path / "study"
    folder.mkdir(exist_ok=True)
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    code = main(
        ["scaling", "report", "--ledger", str(folder), "--out", str(out), "--draws", "60", *words]
    )
    if code:
        return code, None, ""
    return code, json.loads((out / "report.json").read_text()), (out / "report.html").read_text()


def test_a_planted_law_stands_on_the_page_with_all_its_parts(tmp_path):
    lines = rows() + rows("tcjepa", better=0.8) + [{**rows()[0], "seed": 9, "status": "failed"}]
    code, found, html = report(tmp_path, lines, "--forecast", "1e16")
    assert code == 0 and found["status"] == {"done": 80, "failed": 1}
    for arm, factor in (("ijepa", 1.0), ("tcjepa", 0.8)):
        one = found["arms"][arm]
        for name, value in PLANTED._asdict().items():
            low, high = one["intervals"][name]
            value *= factor if name in "AB" else 1
            assert low < high and low * 0.7 < value < high * 1.4, (arm, name)
        assert one["law"]["alpha"] == pytest.approx(0.4, abs=0.05)
        assert one["exponents"]["N*"]["value"] == pytest.approx(0.5, abs=0.04)
        assert one["exponents"]["D*"]["value"] == pytest.approx(0.5, abs=0.04)
        low, high = one["exponents"]["N*"]["interval"]
        assert low < one["exponents"]["N*"]["value"] < high
        assert abs(one["held_out"]["error"]) < 0.02 and one["residual_rms"] < 0.01
        assert len(one["best_sizes"]) == 4 and all(best["inside"] for best in one["best_sizes"])
        forecast = one["forecast"]
        law = PLANTED._replace(A=PLANTED.A * factor, B=PLANTED.B * factor)
        assert forecast["value"] == pytest.approx(
            float(law(forecast["size"], forecast["images"])), rel=0.05
        )
        assert forecast["interval"][0] < forecast["value"] < forecast["interval"][1]
        assert forecast["warning"].startswith("100 times the largest compute")
    (pair,) = found["comparison"]
    low, high = pair["multiplier"][1:]
    assert (pair["arm"], pair["beside"]) == ("tcjepa", "ijepa") and 1 < low < high
    # Error - E falls by 0.8 for 0.8 ** (1 / 0.2) of the compute, as both exponents are 0.4.
    assert low < 0.8**-5 < high
    for name in ("isoflop", "optimum", "fit", "residuals"):
        png = (tmp_path / "out" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG") and len(png) > 10_000
    assert html.count("<img ") == 4 and "do not trust it" in html
    assert not re.search(r'(src|href)="http', html)
    assert f"{found['arms']['ijepa']['law']['alpha']:.4g}" in html
    points = (tmp_path / "out" / "points.csv").read_text().splitlines()
    assert len(points) == 82 and points[0].startswith("study,arm,size,budget")


def test_a_run_of_a_size_and_so_many_images_is_foretold_with_its_compute(tmp_path):
    found = report(tmp_path, rows(seeds=1), "--forecast", "1e6,1e7")[1]["arms"]["ijepa"]["forecast"]
    assert found["compute"] == pytest.approx(6e13) and found["warning"] == ""
    assert found["value"] == pytest.approx(float(PLANTED(1e6, 1e7)), rel=0.05)


@pytest.mark.parametrize(("lines", "said"), [
    (rows(budgets=(1e12,)), "1 budgets: an exponent"),
    (rows(sizes=1, seeds=8), "no parabola has a minimum"),
    ([r for r in rows() if r["size"] == rows()[0]["size"]], "no law was fitted"),
    ([{**r, "evals": []} for r in rows()], "measured at each point"),
    (rows()[:3], "no law was fitted"),
    ([r for r in rows() if r["parameters"]["encoder"] ** 2 > r["budget"] / 6 * 0.8], "at the edge"),
    (rows(budgets=(1e12, 2e12, 4e12)), "compute spans a factor of 4"),
])  # fmt: skip
def test_points_that_carry_no_fit_make_a_page_that_says_so(tmp_path, lines, said):
    code, found, html = report(tmp_path, lines, "--forecast", "1e14")
    assert code == 0 and any(said in line for line in found["caveats"])
    assert "What these points cannot say" in html


@pytest.mark.parametrize(("lines", "words", "named"), [
    ([], (), "has no finished point yet"),
    ([{**r, "status": "failed"} for r in rows()], (), "has no finished point yet"),
    (rows(), ("--y", "train_loss"), "--y = 'train_loss'"),
    (rows(), ("--y", "error"), "--y = 'error': one of"),
    (rows(), ("--forecast", "much"), "--forecast = 'much': a number above 0"),
    (rows(), ("--forecast", "1,2,3"), "--forecast = '1,2,3': FLOPs, or SIZE,IMAGES"),
    (rows(), ("--ledger", "absent"), "a ledger to read"),
])  # fmt: skip
def test_what_cannot_be_reported_is_one_clear_line(tmp_path, capsys, lines, words, named):
    assert report(tmp_path, lines, *words)[0] == 5
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and named in said


def test_an_interval_without_an_end_is_null_in_json(tmp_path):
    """``Infinity`` is no JSON: strict readers refuse the whole file."""
    page = {"low": 1.6, "pair": (1.0, float("inf")), "inner": [{"nan": float("nan")}], "n": 3}
    outputs.write(tmp_path / "out.json", page)
    text = (tmp_path / "out.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "low": 1.6, "pair": [1.0, None], "inner": [{"nan": None}], "n": 3,
    }  # fmt: skip
