"""What `jepa-vl scaling plan` promises of sizes, steps and refusals."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from jepa_vl.cli import scaling_points
from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError, resolve
from jepa_vl.scaling import family, ledger, plan, study
from jepa_vl.schema import VARIANTS
from tests.test_scaling_ledger import row

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "configs_tiny.py"
GIVEN = {
    "name": "s", "config": str(TINY), "arms": {"i": {"objective": "ijepa"}}, "sizes": ("32x1",),
    "budgets": (1e9,), "seeds": (0,), "batch_size": 8, "lr": 1e-3, "ema_half_life": 800,
    "optimum_size": 1e4, "optimum_compute": 1e9, "least_steps": 1,
    "most_epochs": 1e9,
}  # fmt: skip


def write(folder, **values):
    file = folder / "study.py"
    file.write_text(f"def get_study():\n    return {GIVEN | values!r}\n")
    return str(file)


@pytest.mark.parametrize("name", family.FAMILY)
def test_the_family_lies_between_ti_and_g_and_holds_the_published_ones(name):
    size = family.size(name)
    if name in VARIANTS:
        assert size[1:5] == VARIANTS[name]
    assert VARIANTS["Ti"][0] <= size.width <= VARIANTS["g"][0]
    config = resolve({
        "encoder": {k[8:]: v for k, v in size.overrides().items() if k.startswith("encoder.")},
        "predictor": {k[10:]: v for k, v in size.overrides().items() if k.startswith("predictor")},
    })  # fmt: skip
    assert config.encoder.width // config.encoder.heads in (64, 80, 88)


def test_what_follows_from_a_tiny_size():
    assert family.size("96x4") == ("96x4", 96, 4, 3, 384, 48, 2, 3)
    assert family.size("48x3") == ("48x3", 48, 3, 3, 192, 24, 2, 3)
    assert family.size("H")[5:] == (384, 16, 16) and family.size("g")[5:] == (384, 16, 16)
    assert family.size("BL")[5:] == (384, 9, 12)
    for bad in ("96", "0x4", "40x2", "huge", ""):
        with pytest.raises(ConfigError, match=r"study\.sizes"):
            family.size(bad)


def test_rules_turn_a_size_into_values():
    asked = study.build(GIVEN | {"lr_width": 96, "lr_exponent": 0.5, "warmup": 0.06})
    values = asked.values_of("i", family.size("384x2"), 500, 3)
    assert values["optim.lr"] == pytest.approx(1e-3 / 2)
    # 8 images a step, half of the target gone after 800: a hundred steps.
    assert values["optim.ema"] ** 100 == pytest.approx(0.5, rel=1e-5)
    assert values["optim.final_ema"] == values["optim.ema"]
    assert (values["optim.warmup_steps"], values["seed"], values["objective"]) == (30, 3, "ijepa")
    assert asked.warmup_of(3) == 1


@pytest.mark.parametrize(("values", "said"), [
    ({"sizes": ("32x1", "9x9")}, "study.sizes = '9x9'"),
    ({"sizes": (32,)}, "study.sizes = '32'"),
    ({"budgets": (0,)}, "study.budgets = 0"),
    ({"budgets": ()}, r"study.budgets = \(\): must not be empty"),
    ({"seeds": (0, 0)}, r"study.seeds = \(0, 0\): each one once"),
    ({"seeds": (-1,)}, "study.seeds = -1"),
    ({"lr": "fast"}, "study.lr = 'fast': must be float"),
    ({"lr": -1.0}, "study.lr = -1.0: a number above 0"),
    ({"warmup": 1.0}, "study.warmup = 1.0"),
    ({"grid": "isoflops"}, "did you mean 'isoflop'"),
    ({"bugdets": (1,)}, "did you mean 'budgets'"),
    ({"quality": "knn"}, "knn_error"),
    ({"arms": {"a": {"optim.lr": 1.0}}}, "study.arms.a = 'optim.lr': .* do not set"),
    ({"arms": {"a b": {}}}, "study.arms = 'a b'"),
    ({"arms": {"a": 1}}, "study.arms.a = 1"),
    ({"values": {"seed": 1}}, "study.values = 'seed': .* do not set"),
    ({"evaluation": {"data.kind": "x"}}, "study.evaluation = 'data.kind': a key of eval"),
    ({"factor": 0.5}, "study.factor = 0.5"),
    ({"arms": {"a": {"objectiv": "x"}}}, "objectiv = 'x': no such key"),
    ({"config": "absent.py"}, "--config = .*absent.py.*no such file"),
])  # fmt: skip
def test_a_bad_study_is_one_line(tmp_path, capsys, values, said):
    assert main(["scaling", "plan", "--study", write(tmp_path, **values)]) == 5
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(err)


def test_a_file_that_fails_is_one_line(tmp_path, capsys):
    file = tmp_path / "study.py"
    for text, said in (
        ("def get_study():\n    return 1 / 0\n", "division by zero"),
        ("x = 1\n", "get_study"),
        ("def get_study():\n    return [1]\n", "returns a dictionary"),
    ):
        file.write_text(text)
        assert main(["scaling", "plan", "--study", str(file)]) == 5
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and said in err
    assert main(["scaling", "plan", "--study", str(tmp_path / "no.py")]) == 5
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"study.lr = None: must be given"):
        study.build({key: value for key, value in GIVEN.items() if key != "lr"})


COST = plan.Cost({"encoder": 10}, {"target_forward": 30, "encoder_backward": 50})


def test_steps_images_and_hours_by_hand():
    asked = study.build(GIVEN | {"warmup": 0.25, "least_steps": 9, "most_epochs": 1.0})
    assert plan.steps_of(1000.0, COST) == 12  # 80 FLOPs a step
    told = plan.numbers(asked, 12, 96, COST._replace(chip_seconds=7200.0))
    assert (told["images"], told["epochs"], told["refused"]) == (96, 1.0, "")
    assert told["flops"]["run"] == 960 and told["flops"]["image_total"] == 10
    assert told["flops"]["image"] == {"target_forward": 3.75, "encoder_backward": 6.25}
    assert told["chip_hours_bound"] == 24.0
    short = plan.numbers(asked, 11, 96, COST)["refused"]
    assert short == "8 steps after the warm-up, fewer than least_steps = 9"
    assert plan.numbers(asked, 0, 96, COST)["refused"].startswith("0 steps after")
    few = plan.numbers(asked, 12, 64, COST)
    assert few["refused"] == "1.5 epochs of 64 images, more than most_epochs = 1"
    assert few["unique_images"] == 64
    full = COST._replace(fits=False, memory="20.00 GiB of 16.00 a device")
    assert plan.numbers(asked, 12, 96, full)["refused"] == (
        "does not fit: 20.00 GiB of 16.00 a device"
    )


def test_sizes_lie_within_the_factor_around_the_best_one():
    sizes = {"a": 100.0, "b": 250.0, "c": 1000.0, "d": 4000.0, "e": 4100.0}
    law = plan.Optimum(1000.0, 1e9, 0.5, "study")
    asked = study.build(GIVEN)
    assert plan.around(asked, sizes, 1e9, law) == ["b", "c", "d"]
    assert plan.around(asked, sizes, 1e11, law) == ["d", "e"]
    assert plan.around(study.build(GIVEN | {"grid": "full"}), sizes, 1e9, law) == list(sizes)


def known(best, arm="i"):
    """Rows whose quality is a parabola in log N around the best size of each budget."""
    rows = []
    for budget, centre in best.items():
        for factor, seed in itertools.product((0.25, 0.5, 1, 2, 4), (0, 1)):
            error = 0.3 + 0.02 * math.log(factor) ** 2
            knn = {"task": "knn", "features": "encoder", "metrics": {"k20": 1 - error}}
            rows.append(row(
                arm=arm, seed=seed, size=f"{factor}-{centre}", budget=budget,
                images=budget / factor, parameters={"encoder": centre * factor},
                flops={"run": budget}, evals=[knn],
            ))  # fmt: skip
    return rows


def test_a_ledger_moves_the_best_size():
    asked = study.build(GIVEN)
    assert plan.optimum(asked, [], "i") == (1e4, 1e9, 0.5, "study")
    one = plan.optimum(asked, known({1e9: 3e4}), "i")
    assert one.source == "ledger, 1 budget" and one.at(4e9) == pytest.approx(6e4)
    two = plan.optimum(asked, known({1e9: 3e4, 1e10: 6e4}), "i")
    assert two.at(1e9) == pytest.approx(3e4) and two.at(1e11) == pytest.approx(12e4)
    other = plan.optimum(asked, known({1e9: 3e4}, arm="other"), "i")
    assert other.source == "study"


def test_the_command_prints_and_stores_points_that_can_be_run_as_they_say(tmp_path, capsys):
    file = write(
        tmp_path, arms={"i": {"objective": "ijepa"}, "t": {"objective": "tcjepa"}},
        sizes=("32x1",), budgets=(2e7, 1e9), grid="full", seeds=(0, 1), least_steps=9,
    )  # fmt: skip
    words = ["scaling", "plan", "--study", file, "--out", str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr().out
    page = json.loads((tmp_path / "out" / scaling_points.FILE).read_text())
    going = [point for point in page["points"] if not point["refused"]]
    assert len(page["points"]) == 8 and len(going) == 4
    assert "fewer than least_steps = 9" in said and f"{len(going)} points" in said
    assert len({point["id"] for point in going}) == len(going)
    for point in going:
        assert point["id"] == ledger.point_id(point)
        assert (
            point["flops"]["run"]
            <= point["budget"]
            < point["flops"]["run"] * (1 + 1 / point["steps"])
        )
        assert sum(point["flops"]["image"].values()) == pytest.approx(
            point["flops"]["run"] / point["images"]
        )
    captions = {p["arm"]: p["parameters"].get("conditioner", 0) for p in page["points"]}
    assert captions["i"] == 0 < captions["t"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["plan.json"]


def test_memory_and_hours_of_a_topology_count(tmp_path, monkeypatch, capsys):
    from jepa_vl.training import aot

    found = SimpleNamespace(
        devices=4, total=2**31, hbm=2**30, fits=False, bound={"step_seconds": 9.0}
    )
    monkeypatch.setattr(aot, "compile_step", lambda config, where, devices: found)
    words = ["scaling", "plan", "--study", write(tmp_path), "--json", str(tmp_path / "p.json")]
    assert main([*words, "--topology", "cpu-4"]) == 1
    assert "refused: does not fit: 2.00 GiB of 1.00 a device" in capsys.readouterr().out
    (point,) = json.loads((tmp_path / "p.json").read_text())["points"]
    assert point["chip_hours_bound"] == pytest.approx(9.0 * 4 * point["steps"] / 3600)
    found.fits = True
    assert main([*words, "--topology", "cpu-4"]) == 0
    assert "chip-hours on cpu-4" in capsys.readouterr().out
    far = write(tmp_path, optimum_size=1e9)
    assert main(["scaling", "plan", "--study", far]) == 1
    assert "refused: no size within a factor of 4 of 1e+09 parameters" in capsys.readouterr().out
    assert main([*words, "--topology", "v9-4"]) == 5


def test_the_study_that_is_shipped_loads_and_each_of_its_sizes_is_a_configuration():
    asked = study.load(str(ROOT / "studies" / "scaling.py"))
    for arm in asked.arms:
        for name in asked.sizes:
            values = asked.values_of(arm, family.size(name), 100, asked.seeds[-1])
            config = scaling_points.config_of(asked, values)
            assert (config.objective, config.seed) == (arm, 1)
    assert min(len(asked.sizes), len(asked.budgets)) >= 4 and len(asked.seeds) >= 2
