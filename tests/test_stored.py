"""Checkpoints read from their files alone: numbers by plain formulas, damage by name."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from jepa_vl import objectives, sharding, tree
from jepa_vl.cli.main import main
from jepa_vl.config import from_dict, to_dict
from jepa_vl.data import pipeline, sources
from jepa_vl.schema import CheckpointConfig
from jepa_vl.training import checkpoint, inspect, rebatch, stored
from jepa_vl.training import state as train_state
from jepa_vl.training.checksum import checksums, on_host
from tests.exports import by_numpy
from tests.test_cli import refused
from tests.test_damage import cut, delete_meta, flip
from tests.tiny import tiny

# All compilation here is of initialisation and checksums.
pytestmark = pytest.mark.usefixtures("quick_module")

ROOT = Path(__file__).parents[1]
CONFIG = {"objective": "ijepa", "mesh.fsdp": 4, "text.vocabulary": 64}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Checkpoints of steps 3 and 6, written on eight devices as the loop writes them.

    Checksums are numpy's, which costs no compilation; those that are compiled are compared with
    them where ``loaded`` is restored.
    """
    workdir, config = tmp_path_factory.mktemp("stored") / "run", tiny(**CONFIG)
    objective, mesh = objectives.build(config), sharding.make_mesh(config.mesh)
    like = train_state.abstract(config, objective, train_state.batch_spec(config), mesh)
    state = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), like)
    data = pipeline.describe(config, sources.open_sources(config)[0])
    meta = checkpoint.provenance(config)
    spent = {"seconds": 9.0, "compiles": 1, "goodput": {"parts": {"step": 3.0, "init": 9.0}}}
    states = {step: moved(state, step) for step in (3, 6)}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "checksums", by_numpy)
        save(states, workdir, data, meta | {"spent": spent})
    (workdir / "config.json").write_text(json.dumps(meta))
    return workdir


def moved(state, step):
    """As if it had been trained: parameters go ahead of the target."""
    rng = np.random.default_rng(step)

    def move(x, far):
        noise = rng.normal(size=x.shape).astype(np.float32)
        return jax.device_put(np.asarray(x) + far * step * noise, x.sharding)

    params = jax.tree.map(lambda x: move(x, 1e-2), state.params)
    target = jax.tree.map(lambda x: move(x, 1e-3), state.target)
    return dataclasses.replace(rebatch.renumber(state, step), params=params, target=target)


def save(states, workdir, data, meta):
    writer = checkpoint.Checkpoints(workdir, CheckpointConfig(keep_last=2))
    for step, state in states.items():
        writer.save(state, step, data, meta)
    writer.close()


@pytest.fixture(scope="module")
def loaded(whole):
    """Of step 6, restored as training restores it, on one device."""
    return checkpoint.load(whole)[1]


@pytest.fixture(scope="module")
def state(loaded):
    """The same, numpy arrays by name."""
    parts = {name: getattr(loaded, name) for name in checkpoint.FIELDS}
    return {name: np.asarray(x) for name, x in tree.flatten(parts).items()}


@pytest.fixture
def run(whole, tmp_path):
    """A copy that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def quick_sums(monkeypatch):
    """Further checkpoints are written with numpy's checksums; that they are the same is tested."""
    monkeypatch.setattr(checkpoint, "checksums", by_numpy)


@pytest.fixture
def alone(whole, loaded, tmp_path, quick_sums):
    """Steps 3 and 6, written by one device: its largest file holds arrays that are read."""
    one = stored.find(whole)
    save(
        {step: rebatch.renumber(loaded, step) for step in (3, 6)},
        tmp_path / "run",
        one.data,
        one.meta,
    )
    return tmp_path / "run"


def command(verb: str, workdir: Path, *words: str) -> int:
    return main(["checkpoint", verb, "--workdir", str(workdir), *words])


def files(workdir: Path) -> dict[str, tuple[int, bytes]]:
    found = [path for path in workdir.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def change_meta(workdir: Path, step: int, **values) -> None:
    path = workdir / "checkpoints" / str(step) / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_arrays_are_those_that_training_restores(whole, state):
    found = stored.find(whole).read(state)
    assert found.keys() == state.keys()
    for name, x in state.items():
        assert found[name].dtype == x.dtype
        np.testing.assert_array_equal(found[name], x, err_msg=name)


def test_one_device_reads_what_eight_have_written_and_no_objective_is_built(run):
    """The run's image tower is gone, and its objective has never been heard of."""
    config = json.loads((run / "config.json").read_text())["config"]
    change_meta(run, 6, config=config | {"objective": "gone", "frozen": {"image": "/nowhere"}})
    code = (
        "import sys, jax; from jepa_vl.cli.main import main\n"
        "assert jax.device_count() == 1\n"
        "sys.exit(main(sys.argv[1:]) or main(['checkpoint', 'show', *sys.argv[3:5]]))"
    )
    argv = [sys.executable, "-c", code, "checkpoint", "verify", "--workdir", str(run)]
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^ +6  whole +\d+ ", done.stdout, re.M)
    assert "written on data 2 x fsdp 4" in done.stdout and ", gone\n" in done.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_a_checksum_by_numpy_equals_the_compiled_one(dtype):
    for shape in ((), (0,), (7,), (4, 6, 5)):
        x = jnp.asarray(np.random.default_rng(0).integers(0, 2, shape), dtype)
        assert on_host(np.asarray(x)) == checksums({"x": x})["x"]


def test_checksums_by_numpy_are_those_that_are_compiled(whole, loaded, state, monkeypatch):
    monkeypatch.setattr("jepa_vl.training.checksum._HOST_PART", 100)  # a state of many parts
    compiled = checksums({name: getattr(loaded, name) for name in checkpoint.FIELDS})
    assert compiled == {name: on_host(x) for name, x in state.items()}
    assert compiled == stored.find(whole).meta["checksums"]


def test_effective_rank_is_the_entropy_of_the_singular_values():
    rng = np.random.default_rng(0)
    orthogonal = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    assert inspect.effective_rank(orthogonal[:, :8]) == pytest.approx(8)
    assert inspect.effective_rank(np.outer(np.ones(6), np.arange(1, 9))) == pytest.approx(1)
    x = rng.normal(size=(2, 3, 5, 9)).astype(np.float32)
    values = np.linalg.svd(x.reshape(30, 9).astype(np.float64), compute_uv=False)
    share = values / values.sum()
    by_hand = np.exp(-(share * np.log(share)).sum())
    for matrix in (x, 1e-30 * x, x.reshape(30, 9).T):
        assert inspect.effective_rank(matrix) == pytest.approx(by_hand)
    assert inspect.effective_rank(np.zeros((3, 4))) is None
    assert inspect.effective_rank(np.full((3, 4), np.nan)) is None


def test_the_part_that_a_target_follows_is_found_by_names_and_shapes():
    block = {"block_0/kernel": (4, 4), "norm/scale": (4,)}
    params = {f"encoder/{n}": x for n, x in block.items()} | {"predictor/norm/scale": (4,)}
    assert inspect.followed(params, block) == "encoder/"
    both = {"image/norm/scale": (4,), "text/norm/scale": (4,)}
    assert inspect.followed(both | {"predictors/norm/scale": (4,)}, both) == ""
    assert inspect.followed(params, block | {"norm/scale": (5,)}) is None


def test_the_numbers_of_a_module_are_those_of_plain_formulas(whole, state, capsys, tmp_path):
    out = tmp_path / "new" / "numbers.json"
    assert command("show", whole, "--json", str(out)) == 0
    page = json.loads(out.read_text())
    rows = {row["module"]: row for row in page["modules"]}
    assert {"encoder", "encoder/block_0", "encoder/norm", "predictor/block_1"} <= rows.keys()
    names = [name for name in state if name.startswith("params/encoder/block_0/")]
    a = np.concatenate([state[name].ravel() for name in names]).astype(np.float64)
    twins = [name.replace("params/encoder", "target") for name in names]
    b = np.concatenate([state[name].ravel() for name in twins]).astype(np.float64)
    row = rows["encoder/block_0"]
    assert row["parameters"] == a.size
    norms = np.linalg.norm(a), np.linalg.norm(b)
    assert (row["norm"], row["target_norm"]) == pytest.approx(norms)
    assert row["cosine"] == pytest.approx(a @ b / norms[0] / norms[1])
    assert row["drift"] == pytest.approx(np.linalg.norm(a - b) / norms[0]) and row["drift"] > 1e-4
    assert rows["predictor/block_1"]["cosine"] is None
    matrix = row["matrices"]["encoder/block_0/mlp/fc1/kernel"]
    assert matrix["of"] == 32 and 1 < matrix["rank"] < 32
    params = [x for name, x in state.items() if name.startswith("params/")]
    assert page["all"]["parameters"] == sum(x.size for x in params)
    assert page["all"]["norm"] == pytest.approx(np.sqrt(sum((x**2).sum() for x in params)))
    assert page["all"]["non_finite"] == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 100 + len(str(out))
    assert "step 6, 48 images of shapes_world/train, ijepa" in told
    blocks = [line.split()[0] for line in told.splitlines() if line.startswith("predictor/")]
    assert blocks == sorted(blocks, key=inspect.natural)


@pytest.mark.usefixtures("quick_sums")
def test_numbers_that_are_not_finite_are_counted_where_they_are(whole, loaded, tmp_path):
    kernel = loaded.params["predictor"]["embed"]["kernel"].at[0, :3].set(jnp.inf)
    predictor = {**loaded.params["predictor"], "embed": {"kernel": kernel, "bias": kernel[1]}}
    broken = dataclasses.replace(loaded, params={**loaded.params, "predictor": predictor})
    one = stored.find(whole)
    save({6: broken}, tmp_path, one.data, one.meta)
    assert command("show", tmp_path, "--json", str(tmp_path / "out.json")) == 0
    page = json.loads((tmp_path / "out.json").read_text())
    bad = {row["module"]: row["non_finite"] for row in page["modules"] if row["non_finite"]}
    assert bad == {"predictor/embed": 3} and page["all"]["non_finite"] == 3
    row = next(row for row in page["modules"] if row["module"] == "predictor/embed")
    assert row["norm"] is None and row["matrices"]["predictor/embed/kernel"]["rank"] is None


def test_steps_of_a_run_differ_by_the_norms_of_their_modules(whole, state, capsys, tmp_path):
    out = tmp_path / "diff.json"
    assert command("diff", whole, "--step", "3", "--against", "@6", "--json", str(out)) == 0
    page = json.loads(out.read_text())
    told = capsys.readouterr().out
    assert told.startswith("run@3 -> run@6\nthe same config, data, provenance\n")
    assert page["counters"]["step"] == [3, 6] and not page["same_bits"]
    before = stored.find(whole, 3).read(state)
    rows = {(row["part"], row["module"]): row for row in page["modules"]}
    for part, module in (("params", "encoder/block_0"), ("target", "encoder/block_0")):
        start = f"{part}/{module.removeprefix('encoder/' if part == 'target' else '')}/"
        names = [name for name in state if name.startswith(start)]
        a = np.concatenate([before[name].ravel() for name in names]).astype(np.float64)
        b = np.concatenate([state[name].ravel() for name in names]).astype(np.float64)
        row = rows[part, module]
        assert row["arrays"] == len(names) == 16
        assert row["difference"] == pytest.approx(np.linalg.norm(a - b)) and row["difference"] > 0
        assert row["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.usefixtures("quick_sums")
def test_copies_are_the_same_bits_and_other_runs_tell_in_what_they_differ(
    whole, loaded, run, capsys, tmp_path
):
    assert command("diff", whole, "--against", str(run)) == 0
    assert "the same bits" in capsys.readouterr().out
    config = json.loads((run / "config.json").read_text())["config"]
    change_meta(run, 6, config=config | {"seed": 7})
    assert command("diff", whole, "--against", f"{run}@6") == 0
    assert re.search(r"^config\n  seed  0  ->  7\n", capsys.readouterr().out, re.M)
    embed = {"kernel": jnp.zeros((32, 8)), "extra": jnp.zeros(2)}
    predictor = {**loaded.params["predictor"], "embed": embed}
    other = dataclasses.replace(loaded, params={**loaded.params, "predictor": predictor})
    one = stored.find(whole)
    save({9: other}, tmp_path / "other", one.data, one.meta)
    out = tmp_path / "diff.json"
    assert command("diff", run, "--against", str(tmp_path / "other"), "--json", str(out)) == 0
    page = json.loads(out.read_text())
    assert page["only_in"] == [["params/predictor/embed/bias"], ["params/predictor/embed/extra"]]
    kinds = ["float32 (32, 16)", "float32 (32, 8)"]
    assert page["other_shape"] == {"params/predictor/embed/kernel": kinds}
    assert "only in other@9\n  params predictor/embed: 1 arrays" in capsys.readouterr().out


def test_whole_checkpoints_are_verified_and_nothing_is_touched(whole, capsys):
    before = files(whole)
    for verb in ("verify", "ls", "show"):
        assert command(verb, whole) == 0
    assert files(whole) == before
    assert re.match(r"step  verdict .*\n +3  whole .*\n +6  whole ", capsys.readouterr().out)


def test_flipped_bytes_are_found_their_array_named_and_not_converted(
    alone, state, capsys, tmp_path
):
    flip(alone, 6)
    out = tmp_path / "verdicts.json"
    assert command("verify", alone, "--json", str(out)) == 1
    verdicts = {x["step"]: x for x in json.loads(out.read_text())}
    assert (verdicts[3]["verdict"], verdicts[6]["verdict"]) == ("whole", "damaged")
    damaged = verdicts[6]["damaged"]
    assert 0 < len(damaged) < len(state) // 2 and damaged.keys() <= state.keys()
    assert f"step 6: {next(iter(damaged))} " in capsys.readouterr().out
    assert command("verify", alone, "--step", "3") == 0
    capsys.readouterr()
    argv = ["--workdir", str(alone), "--out", str(tmp_path / "new" / "x.safetensors")]
    line = refused(capsys, "checkpoint", "convert", *argv)
    assert "is damaged" in line or "cannot be read" in line
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("damage", [cut, delete_meta])
def test_what_cannot_be_read_is_damage_too(damage, alone, capsys):
    damage(alone, 6)
    assert command("verify", alone) == 1
    assert "6  damaged" in capsys.readouterr().out
    assert command("ls", alone) == 0
    assert "checkpoints/6" in capsys.readouterr().out


def test_a_checkpoint_without_checksums_says_so(run, capsys):
    meta = stored.find(run, 6).meta
    path = run / "checkpoints" / "6" / "meta" / "metadata"
    path.write_text(json.dumps({k: v for k, v in meta.items() if k != "checksums"}))
    assert command("verify", run) == 0
    told = capsys.readouterr().out
    assert "6  no checksums" in told and "saved without checksums" in told


@pytest.mark.parametrize(
    ("branch", "dtype"), [("all", "float32"), ("params", "bfloat16"), ("target", "float32")]
)
def test_a_converted_file_holds_the_same_numbers_and_the_configuration(
    branch, dtype, whole, state, tmp_path
):
    out = tmp_path / "deep" / "run.safetensors"
    words = ("--out", str(out), "--branch", branch, "--dtype", dtype)
    assert command("convert", whole, *words) == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    wanted = {n: x for n, x in state.items() if branch == "all" or n.startswith(f"{branch}/")}
    with safe_open(out, "np") as opened:
        assert set(opened.keys()) == wanted.keys()
        for name, x in wanted.items():
            expected = x.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else x
            found = opened.get_tensor(name)
            assert (found.dtype, found.shape) == (expected.dtype, x.shape)
            np.testing.assert_array_equal(found, expected, err_msg=name)
        metadata = opened.metadata()
    assert (metadata["step"], metadata["branch"]) == ("6", branch)
    config = from_dict(json.loads(metadata["config"]))
    assert to_dict(config) == to_dict(tiny(**CONFIG))


def test_those_set_aside_are_listed_too(run, capsys, tmp_path):
    shutil.copytree(run / "checkpoints", run / "checkpoints_batch8_step6")
    shutil.move(run / "checkpoints" / "3", run / "damaged" / "3.0")
    (run / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    out = tmp_path / "rows.json"
    assert command("ls", run, "--json", str(out)) == 0
    rows = json.loads(out.read_text())
    folders = ["checkpoints/6", *(f"checkpoints_batch8_step6/{n}" for n in (3, 6)), "damaged/3.0"]
    assert [row["where"] for row in rows] == folders
    assert [row["images"] for row in rows] == [48, 24, 48, 24]
    meta = stored.find(run).meta
    assert all(row["config_hash"] == meta["config_hash"] for row in rows)
    assert all(row["bytes"] > 10_000 and row["bad_steps"] == 0 for row in rows)
    assert capsys.readouterr().out.count("\n") == 1 + len(rows) + 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["ls"], "--workdir = '/nowhere': no such folder"),
        (["ls", "RUN/checkpoints"], "holds no finished checkpoint"),
        (["show", "RUN", "--step", "4"], "has checkpoints of steps 3, 6"),
        (["show", "RUN", "--step", "x"], "a whole number"),
        (["verify", "RUN", "--step", "4"], "has checkpoints of steps 3, 6"),
        (["diff", "RUN"], "--against"),
        (["diff", "RUN", "--against", "@6"], "is the checkpoint of step 6 itself"),
        (["diff", "RUN", "--against", "@5"], "has checkpoints of steps 3, 6"),
        (["diff", "RUN", "--against", "/nowhere@5"], "'/nowhere': no such folder"),
        (["convert", "RUN"], "--out"),
        (["convert", "RUN", "--out", "OUT/a.bin"], "ends in .safetensors"),
        (["convert", "RUN", "--out", "OUT/a.safetensors", "--branch", "ema"], "one of 'params'"),
        (["convert", "RUN", "--out", "OUT/a.safetensors", "--dtype", "f16"], "one of 'float32'"),
        (["show", "RUN", "--config.seed=1"], "takes no overrides"),
    ],
)
def test_bad_input_is_one_line(words, part, whole, capsys, tmp_path):
    verb, workdir, *rest = [*words, "/nowhere"] if len(words) == 1 else words
    argv = [x.replace("RUN", str(whole)).replace("OUT", str(tmp_path)) for x in (workdir, *rest)]
    assert part in refused(capsys, "checkpoint", verb, "--workdir", *argv)
    assert not list(tmp_path.iterdir())
