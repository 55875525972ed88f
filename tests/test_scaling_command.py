"""`jepa-vl scaling fit` says what the points say, to people and to scripts."""

import csv
import json

import pytest

from jepa_vl.cli.main import main
from jepa_vl.scaling import ledger
from tests.test_scaling_fit import PLANTED, planted
from tests.test_scaling_ledger import study


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """75 noisy points of 15 runs, the first a bad one."""
    points = planted(0.003, 7)
    path = tmp_path_factory.mktemp("scaling") / "points.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "params", "images", "error"])
        writer.writerow(["bad", 1e7, 1e8, 100.0])
        columns = (points.size, points.data, points.loss)
        for i, row in enumerate(zip(*columns, strict=True)):
            writer.writerow([f"run{i % 15}", *(float(x) for x in row)])
    return path


def fitted(table, *more: str) -> tuple[int, dict]:
    out = table.with_name("fit.json")
    words = ["--csv", str(table), "--size", "params", "--data", "images", "--loss", "error"]
    code = main(["scaling", "fit", *words, "--draws", "50", "--json", str(out), *more])
    return code, json.loads(out.read_text()) if out.exists() else {}


def test_it_prints_and_writes_the_law_its_intervals_and_a_forecast(table, capsys):
    code, page = fitted(
        table, "--run", "name", "--drop-highest", "1", "--predict", "2e11,1e13", "--seed", "3"
    )
    assert code == 0 and page["points"] == 75 and page["runs"] == 15
    assert page["dropped_rows"] == [1] and page["method"] == "vp"
    for name, value in PLANTED._asdict().items():
        low, high = page["intervals"][name]
        assert low <= page[name] <= high and low < value * 1.2 and high > value * 0.8, name
    assert page["a"] == pytest.approx(page["beta"] / (page["alpha"] + page["beta"]))
    assert len(page["best_sizes"]) == 5 and page["held_out"]["rows"] == 15
    low, high = page["forecast"]["interval"]
    assert low <= page["forecast"]["loss"] <= high
    assert page["forecast"]["loss"] == pytest.approx(float(PLANTED(2e11, 1e13)), rel=0.01)
    said = capsys.readouterr().out
    assert "95 % interval" in said and "rows [1]" in said and "do not trust it" in said
    assert "best sizes by parabolas" in said and "foretold from the others" in said


def test_huber_is_the_other_method_and_the_same_seed_draws_the_same(table):
    pages = [fitted(table, "--drop-highest", "1", "--method", m)[1] for m in ("huber", "vp", "vp")]
    assert pages[0]["method"] == "huber" and pages[0]["objective"] != pages[1]["objective"]
    assert pages[0]["alpha"] == pytest.approx(0.34, abs=0.03)
    assert pages[1] == pages[2]


@pytest.mark.parametrize(("words", "named"), [
    (["--method", "vpp"], "--method = 'vpp'"), (["--size", "N"], "--size = 'N'"),
    (["--draws", "3"], "--draws = '3'"), (["--predict", "7e10"], "--predict = '7e10'"),
    (["--predict", "7e10,-1"], "--predict"), (["--drop-highest", "75"], "rows to drop = 75"),
    (["--loss", ""], "--loss = ''"), (["--csv", "absent.csv"], "--csv = 'absent.csv'"),
])  # fmt: skip
def test_bad_options_are_one_clear_line(table, words, named, capsys):
    assert fitted(table, *words)[0] == 5
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and named in said


def test_a_ledger_is_fitted_by_its_flops_and_the_noise_of_its_seeds(tmp_path, capsys):
    book = ledger.Ledger(tmp_path / "ledger.jsonl")
    for row in study():
        assert book.append(row)
    words = ["scaling", "fit", "--ledger", str(tmp_path), "--draws", "50"]
    assert main([*words, "--json", str(tmp_path / "fit.json")]) == 0
    page = json.loads((tmp_path / "fit.json").read_text())
    assert (page["y"], page["arm"], page["points"]) == ("knn_error", "a", 18)
    assert page["alpha"] == pytest.approx(0.3, abs=0.02) and page["E"] == pytest.approx(
        0.2, abs=0.02
    )
    capsys.readouterr()
    for more, said in (
        (["--y", "train_loss"], "--y = 'train_loss': the training loss of a JEPA"),
        (["--csv", "x.csv"], "give --csv FILE or --ledger PATH"),
        (["--size", "N"], "--size = 'N': of --csv"),
        (["--arm", "b"], "--arm = 'b': one of 'a'"),
    ):
        assert main([*words, *more]) == 5
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and said in err


def test_a_column_of_raw_training_losses_is_refused_unless_forced(tmp_path, capsys):
    path = tmp_path / "points.csv"
    rows = [f"{1e6 * n},{1e7 * d},{2 + n**-0.3 + d**-0.3}" for n in (1, 2, 4) for d in (1, 3, 9)]
    path.write_text("\n".join(["N,D,train/loss", *rows]))
    words = ["scaling", "fit", "--csv", str(path), "--size", "N", "--data", "D", "--draws", "20"]
    assert main([*words, "--loss", "train/loss"]) == 5
    assert "--force fits it all the same" in capsys.readouterr().err
    assert main([*words, "--loss", "train/loss", "--force"]) == 0
