"""A checkpoint that is no longer what was written is noticed, set aside, and not trained on."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jepa_vl import tree
from jepa_vl.config import ConfigError
from jepa_vl.training import checksum, loop
from jepa_vl.training.checkpoint import ASIDE, load
from tests.test_meshes import SHAPES, config_of
from tests.test_step import Bench
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")


def config():
    return tiny(**{"checkpoint.every": 2, "mesh.data": 1, "mesh.fsdp": 1, "log.progress": "lines"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of six steps; checkpoints of steps 4 and 6."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jax, "devices", one_device(jax.devices))
        assert loop.train(config(), workdir) == loop.DONE
    return workdir


def one_device(devices):
    return lambda *args: devices(*args)[:1]


@pytest.fixture
def run(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "devices", one_device(jax.devices))
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "result.json").unlink()
    return workdir


def largest_file(folder: Path) -> Path:
    """Of the arrays: the file that holds most of them."""
    return max(
        (p for p in (folder / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def flip(workdir, step):
    path = largest_file(workdir / "checkpoints" / str(step))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    for place in range(middle, middle + 64):
        content[place] ^= 0xFF
    path.write_bytes(content)


def cut(workdir, step):
    path = largest_file(workdir / "checkpoints" / str(step))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete_arrays(workdir, step):
    largest_file(workdir / "checkpoints" / str(step)).unlink()


def delete_meta(workdir, step):
    shutil.rmtree(workdir / "checkpoints" / str(step) / "meta")


def empty(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    shutil.rmtree(folder)
    folder.mkdir()


KINDS = [flip, empty, *(pytest.param(f, marks=pytest.mark.slow) for f in (cut, delete_arrays))]
KINDS += [pytest.param(delete_meta, marks=pytest.mark.slow)]


@pytest.mark.parametrize("damage", KINDS)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_goes_on(
    damage, run, whole, capsys
):
    damage(run, 6)
    assert loop.train(config(), run) == loop.DONE
    said = capsys.readouterr().out
    assert "warning: the checkpoint of step 6" in said and "it was moved to" in said
    assert "resumed from the checkpoint of step 4" in said
    assert [path.name for path in (run / ASIDE).iterdir()] == ["6.0"]
    jax.tree.map(np.testing.assert_array_equal, load(run)[1], load(whole)[1])


def test_with_no_checkpoint_left_nothing_is_trained(run):
    flip(run, 4)
    delete_meta(run, 6)
    with pytest.raises(ConfigError, match="no checkpoint is whole"):
        loop.train(config(), run)
    assert len(list((run / ASIDE).iterdir())) == 2


def test_readers_are_told_which_checkpoint_is_damaged(run):
    flip(run, 6)
    with pytest.raises(
        ConfigError, match=r"step 6 is damaged: .* arrays are not what .*steps 4, 6"
    ):
        load(run)
    assert load(run, 4)[2] == 4
    assert not (run / ASIDE).exists()


def test_a_checkpoint_without_checksums_is_taken_as_it_is(run):
    path = run / "checkpoints" / "6" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    assert len(meta.pop("checksums")) > 50
    path.write_text(json.dumps(meta))
    flip(run, 6)
    assert load(run)[2] == 6


@pytest.mark.slow
def test_checksums_are_the_same_on_every_mesh_and_change_with_each_bit_and_place():
    sums = []
    for shape in ((1, 1, 1), *SHAPES):
        bench = Bench(config_of("tcjepa", shape), devices=int(np.prod(shape)))
        sums.append(checksum.checksums(bench.state.params))
    values = [np.asarray(x) for x in jax.tree.leaves(bench.state.params)]
    assert all(found.keys() == sums[0].keys() for found in sums)
    same = checksum.checksums(jax.tree.map(np.asarray, bench.state.params))
    assert same == sums[-1] and len(set(same.values())) > len(values) // 3
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    for dtype in (np.float32, np.int32, np.uint8, np.bool_, "bfloat16"):
        base = {"x": np.asarray(jax.numpy.asarray(x, dtype))}
        swapped = {"x": base["x"][::-1].copy()}
        changed = {"x": base["x"].copy()}
        changed["x"].view(np.uint8)[0, 0] ^= 1
        three = [checksum.checksums(part)["x"] for part in (base, swapped, changed)]
        assert len(set(three[:2])) == 2 or dtype == np.bool_
        assert three[0] != three[2], dtype


def test_names_of_what_differs_are_told():
    assert checksum.differing({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "0"}) == ["b", "c"]
    assert tree.flatten({"a": 1}) == {"a": 1}
