"""``jepa-vl export``: what leaves a run gives the same features where it arrives, or nothing."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jepa_vl import objectives, sharding
from jepa_vl.cli.main import VERBS, main
from jepa_vl.config import ConfigError
from jepa_vl.export import FORMATS, base, process, write
from jepa_vl.models import intake, tensors
from jepa_vl.schema import MeshConfig
from jepa_vl.training import checkpoint, stored, whole
from jepa_vl.training import state as train_state
from tests import exports
from tests.test_cli import refused
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "checksums", exports.by_numpy)
        return exports.save_run(tmp_path_factory.mktemp("exports") / "run")


def argv(run, out, name="safetensors", *words):
    return ["export", "--workdir", str(run), "--format", name, "--out", str(out), *words]


def test_the_branch_that_is_asked_for_leaves_bit_by_bit_with_a_card(run, tmp_path, capsys):
    result = {"task": "knn", "features": "encoder", "metrics": {"k10": 0.4321}}
    result["protocol"] = {"held_out": {"name": "scenes/val", "images": 16}}
    measured = run / "eval_6_context.json"
    measured.write_text(json.dumps({"results": [result, {**result, "features": "pixels"}]}))
    for branch, start in (("target", "target/"), ("context", "params/encoder/")):
        out = tmp_path / "new" / branch
        assert main(argv(run, out, "safetensors", "--branch", branch)) == 0
        found = load_file(out / "model.safetensors")
        one = stored.find(run)
        wanted = one.read(name for name in one.arrays if name.startswith(start))
        assert len(found) == len(wanted) + 1 and found["position"].shape == (16, 32)
        for name, x in wanted.items():
            np.testing.assert_array_equal(found[name.removeprefix(start)], x, err_msg=name)
        card = (out / "README.md").read_text()
        assert f"| branch | {branch} |" in card and '"objective": "ijepa"' in card
        told = re.search(r"largest difference ([\d.e-]+), mean ([\d.e-]+)", capsys.readouterr().out)
        assert told and 0 < float(told[1]) < 1e-4
        assert f"| largest difference | {told[1]} |" in card
        assert f"| mean difference | {told[2]} |" in card
        assert ("| knn | k10 | 0.4321 | 16 of scenes/val |" in card) == (branch == "context")
    assert sorted(path.name for path in out.parent.iterdir()) == ["context", "target"]


def test_stablehlo_gives_the_same_features_without_us_for_any_number_of_images(tmp_path):
    out, encoder = tmp_path / "out", exports.encoder()
    told = write.export(encoder, "stablehlo", out, exports.images())
    assert told.largest < 1e-5 < told.scale and set(told.versions) == {"jax"}
    program = jax.export.deserialize((out / "encoder.stablehlo").read_bytes())
    assert program.platforms == ("cpu", "cuda", "tpu")
    code = (out / "encoder.stablehlo").read_bytes()
    assert len(code) < 100_000  # weights are no part of it
    assert str(Path(__file__).parents[1]).encode() not in code


def test_an_export_that_computes_something_else_leaves_nothing(run, tmp_path, capsys, monkeypatch):
    right = FORMATS["safetensors"]

    def wrong(encoder, folder):
        params = {**encoder.params, "norm/bias": encoder.params["norm/bias"] + 3e-3}
        right.write(dataclasses.replace(encoder, params=params), folder)

    monkeypatch.setitem(FORMATS, "safetensors", right._replace(write=wrong))
    assert main(argv(run, tmp_path / "out")) == 1
    told = capsys.readouterr()
    assert not told.out and re.search(r"differ by up to 0\.003.*nothing was left\n", told.err)
    nothing = right._replace(load="features = numpy.full((8, 16, 32), numpy.nan)")
    monkeypatch.setitem(FORMATS, "safetensors", nothing)
    assert main(argv(run, tmp_path / "out")) == 1
    other = right._replace(load="features = numpy.zeros((8, 17, 32))")
    monkeypatch.setitem(FORMATS, "safetensors", other)
    assert main(argv(run, tmp_path / "out")) == 1
    assert "(8, 17, 32), not (8, 16, 32)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_files_that_their_library_refuses_are_one_line(run, tmp_path, capsys, monkeypatch):
    load = "print('loading')\nraise KeyError('blocks.0')"
    broken = FORMATS["safetensors"]._replace(load=load)
    monkeypatch.setitem(FORMATS, "safetensors", broken)
    line = refused(capsys, *argv(run, tmp_path / "out"))
    assert "its own library refuses: KeyError: 'blocks.0'" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["hf", "timm", "onnx", "stablehlo"])
def test_libraries_that_are_not_installed_are_named(name, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(process, "find_spec", lambda package: None)
    line = refused(capsys, *argv(run, tmp_path / "out", name))
    assert f"needs {', '.join(FORMATS[name].needs)}: pip install" in line


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--format", "gguf", "--out", "OUT/x"], "--format = 'gguf': one of"),
        (["--format", "safetensors"], "--out"),
        (["--format", "safetensors", "--out", "OUT"], "is there already"),
        (["--format", "safetensors", "--out", "OUT/x", "--branch", "ema"], "one of 'target'"),
        (["--format", "safetensors", "--out", "OUT/x", "--step", "5"], "checkpoints of steps 6"),
    ],
)
def test_bad_input_is_one_line(words, part, run, tmp_path, capsys):
    words = [word.replace("OUT", str(tmp_path)) for word in words]
    assert part in refused(capsys, "export", "--workdir", str(run), *words)
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_not_exported(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    path = copy / "checkpoints" / "6" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["checksums"]["target/norm/bias"] = "0" * 16  # as if its bits had flipped
    path.write_text(json.dumps(meta))
    line = refused(capsys, *argv(copy, tmp_path / "out"))
    assert "not what was written: target/norm/bias; see jepa-vl checkpoint verify" in line
    assert not (tmp_path / "out").exists()
    assert main(argv(copy, tmp_path / "out", "safetensors", "--branch", "context")) == 0


def test_a_checkpoint_of_eight_devices_leaves_as_the_same_bytes(run, tmp_path, monkeypatch):
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2), jax.devices())
    placed = []

    def place(state):
        shardings = sharding.state_shardings(state, mesh)
        placed.append(jax.tree.map(jax.device_put, state, shardings))
        return placed[0]

    monkeypatch.setattr(checkpoint, "checksums", exports.by_numpy)
    sharded = exports.save_run(tmp_path / "run", place=place)
    assert len(placed[0].target["block_0"]["attn"]["q"]["kernel"].sharding.device_set) == 8
    assert not placed[0].target["block_0"]["attn"]["q"]["kernel"].is_fully_replicated
    for name, workdir in (("one", run), ("eight", sharded)):
        assert main(argv(workdir, tmp_path / name)) == 0
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "eight" / file).read_bytes()


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A run that has a text tower, a predictor and conditioners: of no step."""
    return untrained(tmp_path_factory.mktemp("parts") / "run", tiny())


def untrained(workdir, config):
    """Saves a run of random numbers: its workdir and parameters."""
    rng, spec = np.random.default_rng(0), train_state.batch_spec(config)

    def drawn(name, like):
        if not np.issubdtype(like.dtype, np.floating):
            return np.zeros(like.shape, like.dtype)
        x = name.endswith("scale") + 0.2 * rng.normal(size=like.shape)
        return np.asarray(x, like.dtype)

    like = train_state.shapes(config, objectives.build(config), spec)
    state = jax.device_put(base.tree.map_named(drawn, like), jax.devices()[0])
    meta = checkpoint.provenance(config) | {"spent": {"seconds": 1.0}}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "checksums", exports.by_numpy)
        writer = checkpoint.Checkpoints(workdir)
        writer.save(state, 3, {"global_batch": 8, "name": "scenes", "images": 64}, meta)
        writer.close()
    return workdir, base.tree.flatten(state.params)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Parts of a model are held to outputs made once, and fresh processes compile it once."""
    found, compute = {}, whole.outputs

    def outputs(model, batch):
        name = model.config.objective
        if name not in found:
            found[name] = compute(model, batch)
        return found[name]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(whole, "outputs", outputs)
        patched.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patched.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


# Part, and how the names of its arrays begin among the parameters; a fresh process takes seconds.
PARTS = [
    pytest.param("text", "text/", marks=pytest.mark.slow),
    pytest.param("predictor", "predictor/", marks=pytest.mark.slow),
    ("conditioner", "predictor/conditioner_"),
]
OTHERS = ("text", "predictor", "whole")


@pytest.mark.parametrize(("part", "start"), PARTS)
def test_parts_leave_bit_by_bit_under_our_names_and_compute_the_same(
    part, start, reader, once, tmp_path, capsys
):
    workdir, params = reader
    out = tmp_path / part
    assert main(argv(workdir, out, "safetensors", "--part", part)) == 0
    found = load_file(out / "model.safetensors")
    wanted = {name: x for name, x in params.items() if name.startswith(start)}
    assert found.keys() == wanted.keys() and wanted
    for name, x in wanted.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)
    assert json.loads((out / "config.json").read_text())["objective"] == "tcjepa"
    card, said = (out / "README.md").read_text(), capsys.readouterr().out
    assert f"# tcjepa: {part}" in card
    told = re.search(r"largest difference ([\d.e-]+), mean ([\d.e-]+)", said)
    assert told and float(told[1]) < 1e-4 and "8 of the held-out images of shapes" in said
    assert f"| largest difference | {told[1]} |" in card
    assert f"| mean difference | {told[2]} |" in card


@pytest.mark.parametrize(
    "part", ["conditioner", *(pytest.param(part, marks=pytest.mark.slow) for part in OTHERS)]
)
def test_a_part_that_computes_something_else_leaves_nothing(
    part, reader, once, tmp_path, capsys, monkeypatch
):
    rng, write = np.random.default_rng(0), tensors.write

    def wrong(path, held, metadata, key):
        if "part" in metadata:
            noise = {name: 0.01 * rng.normal(size=x.shape) for name, x in held.items()}
            held = {name: (x + noise[name]).astype(x.dtype) for name, x in held.items()}
        write(path, held, metadata, key)

    monkeypatch.setattr(tensors, "write", wrong)
    assert main(argv(reader[0], tmp_path / "out", "safetensors", "--part", part)) == 1
    told = capsys.readouterr()
    assert not told.out
    assert re.search(rf"{part}: \w+ differ by up to .*; nothing was left\n", told.err)
    assert not list(tmp_path.iterdir())


def test_a_whole_model_leaves_bit_by_bit_and_comes_in_again(reader, once, tmp_path):
    workdir, params = reader
    out = tmp_path / "whole"
    assert main(argv(workdir, out, "safetensors", "--part", "whole")) == 0
    sources = [intake.open_source(str(place), "--model") for place in (workdir, out)]
    models = [whole.load(source, "the test") for source in sources]
    assert models[0].config == models[1].config
    for model in models:
        found = base.tree.flatten(model.params)
        assert found.keys() == params.keys() and model.target.keys() >= {"patch_kernel", "norm"}
        for name, x in params.items():
            np.testing.assert_array_equal(found[name], x, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["tijepa", "crossmodal", "contrastive"])
def test_models_of_every_objective_are_compared_whole(objective, tmp_path, capsys):
    workdir = untrained(tmp_path / "run", tiny(objective=objective))[0]
    assert main(argv(workdir, tmp_path / "out", "safetensors", "--part", "whole")) == 0
    assert "largest difference" in capsys.readouterr().out


def test_parts_that_are_not_there_and_formats_that_have_none_are_refused(run, tmp_path, capsys):
    out = tmp_path / "out"
    line = refused(capsys, *argv(run, out, "safetensors", "--part", "text"))
    assert "--part = 'text': the run (objective 'ijepa') trains none" in line
    assert "safetensors alone" in refused(capsys, *argv(run, out, "hf", "--part", "predictor"))
    assert "one of 'encoder'" in refused(capsys, *argv(run, out, "hf", "--part", "head"))
    assert not out.exists()


def test_the_same_arrays_and_metadata_are_the_same_bytes(tmp_path):
    metadata = {"step": "1", "format": "np", "branch": "target", "config": '{"a": "é\\n"}'}
    for i in range(8):
        tensors.write(tmp_path / f"{i}", {"x": np.arange(3.0)}, metadata, "--out")
    assert len({(tmp_path / f"{i}").read_bytes() for i in range(8)}) == 1


def test_every_format_is_offered_by_the_command():
    told = VERBS["export"].text
    assert all(re.search(rf"^{name} +\w", told, re.M) for name in FORMATS)


@pytest.mark.parametrize(
    ("objective", "target", "context"),
    [
        ("tcjepa", "target/", "params/encoder/"),
        ("crossmodal", "target/image/", "params/image/"),
        ("contrastive", "target/", "params/image/"),
    ],
)
def test_the_encoder_is_found_in_the_state_of_every_objective(objective, target, context):
    shapes = state_shapes(objective)
    assert base.find(shapes, tiny(objective=objective), "target") == target
    assert base.find(shapes, tiny(objective=objective), "context") == context


def test_what_no_library_has_is_refused():
    with pytest.raises(ConfigError, match="TI-JEPA's is a frozen tower and a crosser"):
        base.find(state_shapes("tijepa"), tiny(objective="tijepa"), "target")


def state_shapes(objective):
    config = tiny(objective=objective)
    spec = train_state.batch_spec(config)
    state = train_state.shapes(config, objectives.build(config), spec)
    parts = {"params": state.params, "target": state.target}
    return {name: tuple(leaf.shape) for name, leaf in base.tree.flatten(parts).items()}


def test_a_table_of_names_that_leaves_a_parameter_out_is_noticed():
    rows = [base.Row("a.weight", ("a/kernel",)), base.Row("b", ("a/kernel",))]
    with pytest.raises(ValueError, match="one twice"):
        base.rename({"a/kernel": np.zeros(2)}, rows)
    with pytest.raises(ValueError, match="'a/bias'"):
        base.rename({"a/kernel": np.zeros(2), "a/bias": np.zeros(2)}, rows[:1])
