"""Promises of ``jepa-vl compile``: what it says of a step is true, and bad input is one line."""

import contextlib
import dataclasses
import importlib.util
import json
import os

import jax
import pytest

from jepa_vl import objectives
from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.schema import MeshConfig
from jepa_vl.training import aot, flops, topology
from jepa_vl.training import state as train_state
from tests.tiny import tiny

CONFIG = "tests/configs_tiny.py"
KEYS = {"topology", "devices", "fits", "hbm_per_device", "bytes_per_device", "flops", "collectives",
        "compile_seconds", "bound"}  # fmt: skip
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler, [tpu] extra"
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What the verb sets for its own process is undone; libtpu reads the real environment."""
    for name, value in topology.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(os.path.dirname(os.path.dirname(__file__)))


def compiled(tmp_path, topology_name, *words):
    out = tmp_path / "out.json"
    code = main(
        ["compile", "--config", CONFIG, "--topology", topology_name, "--json", str(out), *words]
    )
    return code, json.loads(out.read_text())


@pytest.mark.parametrize(
    ("name", "slices", "grid"),
    [
        ("v5e-256", 1, (16, 16)),
        ("v5e-1", 1, (1, 1)),
        ("v6e-64", 1, (8, 8)),
        ("v5p-512", 1, (4, 8, 8)),
        ("v5p-8", 1, (2, 2, 1)),
        ("2xv5e-16", 2, (4, 4)),
        ("v5litepod-16", 1, (4, 4)),
        ("cpu-8", 1, (8,)),
    ],
)
def test_the_names_of_users_are_grids_of_chips(name, slices, grid):
    found = topology.parse(name)
    assert (found.slices, found.grid) == (slices, grid)
    assert found.devices == {"v5e-256": 256, "v5e-1": 1, "v6e-64": 64, "v5p-512": 256, "v5p-8": 4,
                             "2xv5e-16": 32, "v5litepod-16": 16, "cpu-8": 8}[name]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5e-7", "a power of two, 1 to 256"),
        ("v5e-512", "a power of two, 1 to 256"),
        ("v5p-7", "a power of two, 8 to 8192"),
        ("h100-8", "a compiler for v5e, v5p, v6e and cpu alone"),
        ("v5e", "one of v4, v5e"),
        ("v6-256", "did you mean v6e?"),
        ("0xv5e-16", "one of v4, v5e"),
        ("2xcpu-8", "one slice"),
        ("cpu-0", "a power of two"),
    ],
)
def test_a_machine_that_there_is_not_is_refused(name, says, capsys):
    assert main(["compile", "--config", CONFIG, "--topology", name]) == 5
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"--topology = '{name}'" in line and says in line


def test_without_the_tpu_compiler_it_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    assert main(["compile", "--config", CONFIG, "--topology", "v5e-16"]) == 5
    assert 'pip install -e ".[tpu]"' in capsys.readouterr().err


def test_too_few_cpu_devices_and_batches_that_do_not_divide_are_refused(capsys):
    assert main(["compile", "--config", CONFIG, "--topology", "cpu-64"]) == 5
    assert "this process has 8 CPU devices" in capsys.readouterr().err
    words = ["--config.train.batch_size=12", "--config.mesh.data=8"]
    assert main(["compile", "--config", CONFIG, "--topology", "cpu-8", *words]) == 5
    assert "train.batch_size = 12" in capsys.readouterr().err


def test_a_cpu_topology_tells_memory_flops_and_collectives(tmp_path, capsys):
    code, found = compiled(tmp_path, "cpu-8", "--config.mesh.fsdp=4")
    assert code == 0 and found.keys() >= KEYS
    assert found["devices"] == 8 and found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    assert found["fits"] is None and found["bound"] is None and found["hbm_per_device"] is None
    assert found["flops"]["compiler"] == pytest.approx(found["flops"]["analytic"], rel=0.02)
    assert sum(found["flops"]["by_component"].values()) == found["flops"]["analytic"]
    assert {"all-gather", "all-reduce"} <= found["collectives"].keys()
    text = capsys.readouterr().out
    assert "target forward" in text and "the memory of such a device is not known" in text


def test_what_reads_no_data_needs_no_path_of_any(tmp_path, capsys):
    words = ["--config", "configs/ijepa_in1k.py:size=B", "--what", "params"]
    assert main(["preview", *words]) == 0
    assert main(["preview", *words[:2], "--what", "batch", "--out", str(tmp_path / "out")]) == 5
    assert "data.path = ''" in capsys.readouterr().err
    refused = [
        "--config.train.batch_size=12",
        "--config.mesh.data=8",
    ]  # after the data were looked at
    assert main(["compile", *words[:2], "--topology", "cpu-8", *refused]) == 5
    assert "train.batch_size = 12" in capsys.readouterr().err


def test_parameters_target_and_moments_are_told_apart(tmp_path):
    config = tiny()
    spec = train_state.batch_spec(config)
    state = train_state.shapes(config, objectives.build(config), spec)
    bytes_of = lambda part: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(part))  # noqa: E731
    memory = compiled(tmp_path, "cpu-1", "--config.train.batch_size=8")[1]["bytes_per_device"]
    assert memory["params"] == bytes_of(state.params)
    assert memory["target"] == bytes_of(state.target)
    assert memory["optimizer"] == bytes_of(state.opt_state)
    assert memory["batch"] == bytes_of(spec)
    assert memory["temporaries"] > 0
    assert memory["total"] == sum(size for name, size in memory.items() if name != "total")


@needs_libtpu
def test_gradients_of_sharded_kernels_are_summed_and_scattered_in_one_go(tmp_path):
    """An all-reduce of them would move twice the bytes."""
    values = {"encoder.width": 512, "encoder.heads": 8, "mesh.fsdp": 4, "train.batch_size": 16}
    values |= {"train.dtype": "bfloat16", "train.scan_layers": "true"}
    words = [f"--config.{name}={value}" for name, value in values.items()]
    code, found = compiled(tmp_path, "v5e-16", *words)
    assert code == 0 and found["mesh"] == {"data": 4, "fsdp": 4, "tensor": 1}
    moved = {kind: told["bytes"] for kind, told in found["collectives"].items()}
    kernels = found["bytes_per_device"]["params"] / 2  # in bfloat16, a quarter on each device
    assert moved["reduce-scatter"] > 0.5 * kernels  # the small ones are not worth it


@needs_libtpu
def test_a_step_for_v5e_16_fits_is_donated_and_has_a_bound(tmp_path, capsys):
    sizes = {"encoder.width": 256, "encoder.heads": 4, "predictor.width": 128}
    how = {"batch_size": 16, "dtype": "bfloat16", "scan_layers": "true", "remat": "dots"}
    values = sizes | {f"train.{name}": value for name, value in how.items()}
    words = [f"--config.{name}={value}" for name, value in values.items()]
    code, found = compiled(tmp_path, "v5e-16", *words)
    assert code == 0 and found["fits"] is True and found["devices"] == 16
    assert found["mesh"] == {"data": 1, "fsdp": 16, "tensor": 1}
    memory = found["bytes_per_device"]
    state = memory["params"] + memory["target"] + memory["optimizer"]
    # The new state takes the place of the old one: what is put out beside it are the metrics.
    assert memory["outputs"] < 0.01 * state
    assert found["hbm_per_device"] == int(15.75 * 2**30)
    ratio = found["flops"]["compiler"] / found["flops"]["analytic"]
    assert 1 <= ratio < 1.1
    bound = found["bound"]
    assert bound["step_seconds"] == max(found["seconds_at_peak"].values())
    assert bound["images_per_second"] == pytest.approx(16 / bound["step_seconds"])
    assert bound["chip_hours"] == pytest.approx(16 * bound["step_seconds"] * 6 / 3600)
    estimate = found["estimate"]
    assert estimate["cycles"] / 1.5e9 > found["seconds_at_peak"]["compute"]
    alone = estimate["step_seconds"] - found["seconds_at_peak"]["network"]
    assert alone == pytest.approx(estimate["cycles"] / 1.5e9)
    assert estimate["images_per_second"] == pytest.approx(16 / estimate["step_seconds"])
    work = found["flops"]["analytic"] / (16 * 197e12)
    assert estimate["mfu"] == pytest.approx(work / estimate["step_seconds"])
    said = capsys.readouterr().out
    assert (
        "fits: 15." in said and f"estimate: step {1e3 * estimate['step_seconds']:,.1f} ms" in said
    )


@needs_libtpu
def test_what_does_not_fit_is_told_with_how_much_is_missing(tmp_path, capsys):
    words = ["--config.train.batch_size=65536", "--config.encoder.image_size=128"]
    code, found = compiled(tmp_path, "v5e-1", *words)
    assert code == 1 and found["fits"] is False and found["bound"] is None
    assert found["bytes_per_device"]["total"] > found["hbm_per_device"]
    assert "does not fit: " in capsys.readouterr().out


@needs_libtpu
def test_slices_meet_along_the_data_axis_alone(tmp_path):
    code, found = compiled(tmp_path, "2xv5e-4", "--config.train.batch_size=8")
    assert code == 0 and found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    words = ["--config.mesh.data=1", "--config.mesh.fsdp=8"]
    assert main(["compile", "--config", CONFIG, "--topology", "2xv5e-4", *words]) == 5


def fake(config, where, devices):
    """Fast but large without recomputation; what does not divide is refused as it would be."""
    if config.mesh.fsdp == 4:
        raise ConfigError("mesh", 4, "does not divide")
    size = {"none": 20, "dots": 12, "full": 4}[config.train.remat] * 2**30
    time = {"none": 1.0, "dots": 1.1, "full": 1.4}[config.train.remat]
    return aot.Compiled(
        topology=where.name, devices=256, mesh={"data": 1, "fsdp": config.mesh.fsdp, "tensor": 1},
        fits=size < 16 * 2**30, hbm=16 * 2**30, memory={"params": size}, analytic={"x": 10},
        compiler=10, moved=0, collectives={}, seconds=1.0, images=config.train.batch_size,
        bounds={"compute": time * config.train.batch_size**0.9}, steps=10, peak=1e12,
    )  # fmt: skip


def test_a_search_prints_the_best_that_fit_and_the_flags_for_the_first(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(aot, "compile_step", fake)
    monkeypatch.setattr(topology, "devices", lambda where: [None] * where.devices)
    code, found = compiled(tmp_path, "v5e-256", "--search")
    text = capsys.readouterr().out
    assert code == 0 and "mesh = 4: does not divide" in text
    assert "the first: --config.train.batch_size=16 --config.train.remat=dots" in text
    ranking = text[text.index("images/s, bound") :].splitlines()[1:]
    rows = [row.split()[:2] for row in ranking if row.split()[:1] in (["8"], ["16"])]
    assert rows == [["16", "dots"], ["8", "dots"], ["8", "dots"]]
    # One setting after another: what is kept, how many devices share parameters, the batch.
    assert [(one["remat"], one["fsdp"], one["batch_size"]) for one in found] == [
        ("dots", 16, 8), ("none", 16, 8), ("full", 16, 8),
        ("dots", 1, 8), ("dots", 4, 8), ("dots", 256, 8), ("dots", 16, 16),
    ]  # fmt: skip
    assert all(one["fits"] == (one["remat"] != "none") for one in found if "fits" in one)


def test_a_search_of_which_nothing_fits_goes_on_from_what_is_nearest(monkeypatch, tmp_path, capsys):
    def large(config, where, devices):
        found = fake(dataclasses.replace(config, mesh=MeshConfig(fsdp=1)), where, devices)
        size = found.memory["params"] * 2**6 // config.mesh.fsdp
        fits = size <= 2**30
        mesh = found.mesh | {"fsdp": config.mesh.fsdp}
        return dataclasses.replace(found, memory={"params": size}, fits=fits, mesh=mesh)

    monkeypatch.setattr(aot, "compile_step", large)
    monkeypatch.setattr(topology, "devices", lambda where: [None] * where.devices)
    assert compiled(tmp_path, "v5e-16", "--search")[0] == 1
    assert "nothing of this fits" in capsys.readouterr().out
    code, found = compiled(tmp_path, "v5e-256", "--search")
    assert code == 0 and found[-1]["remat"] == "full" and found[-1]["fsdp"] == 256


def test_a_search_that_is_killed_has_written_what_it_found(monkeypatch, tmp_path):
    def dies(config, where, devices):
        if config.train.remat == "full":
            raise KeyboardInterrupt
        return fake(config, where, devices)

    monkeypatch.setattr(aot, "compile_step", dies)
    monkeypatch.setattr(topology, "devices", lambda where: [None] * where.devices)
    with contextlib.suppress(KeyboardInterrupt):
        compiled(tmp_path, "v5e-256", "--search")
    found = json.loads((tmp_path / "out.json").read_text())
    assert [one["remat"] for one in found] == ["dots", "none"]


def test_a_search_ranks_by_the_estimate_where_there_is_one(monkeypatch, tmp_path, capsys):
    def slow(config, where, devices):
        """By its estimate `full` is the fastest, which the bound puts last."""
        cycles = {"none": 30, "dots": 20, "full": 10}[config.train.remat]
        found = fake(config, where, devices)
        bounds = found.bounds | {"network": 0.5}
        return dataclasses.replace(found, bounds=bounds, cycles=cycles, clock=2.0)

    monkeypatch.setattr(aot, "compile_step", slow)
    monkeypatch.setattr(topology, "devices", lambda where: [None] * where.devices)
    code, found = compiled(tmp_path, "v5e-256", "--search")
    text = capsys.readouterr().out
    assert code == 0 and "--config.train.batch_size=16 --config.train.remat=full" in text
    assert next(one for one in found if one["remat"] == "full")["estimate"]["step_seconds"] == 5.5
    assert "nothing overlapping: for" in text


def test_recomputation_is_not_counted_as_the_models_work():
    plain, again = (flops.count(tiny(**{"train.remat": name})) for name in ("none", "full"))
    assert plain == again
