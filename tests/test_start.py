"""``init_from``: where a run starts, what may be missing, and that a resumed run remembers."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jepa_vl import objectives, sharding, tree
from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.models import vit
from jepa_vl.models.intake import start
from jepa_vl.schema import MeshConfig
from jepa_vl.training import checkpoint, stored
from jepa_vl.training import state as train_state
from tests import exports
from tests.test_intake import written
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")
SIZES = {"encoder.depth": 2, "encoder.mlp_width": 72}


@pytest.fixture(scope="module")
def encoder():
    return exports.encoder()


@pytest.fixture(scope="module")
def hub(encoder, tmp_path_factory):
    """A folder of transformers, with the fixed positions."""
    return written(tmp_path_factory.mktemp("start") / "hf", encoder, "hf")


def shapes(config):
    spec = train_state.batch_spec(config)
    return train_state.shapes(config, objectives.build(config), spec).params


def begin(path, **changed):
    config = tiny(**{"objective": "ijepa", "init_from": str(path), **SIZES, **changed})
    found = start.read(config, shapes(config))
    assert found is not None
    return found


def refused(path, **changed):
    with pytest.raises(ConfigError) as error:
        begin(path, **changed)
    return str(error.value)


@pytest.mark.parametrize("objective", ["ijepa", "crossmodal", "contrastive"])
def test_encoder_and_target_start_from_the_files_whatever_trains_them(objective, encoder, hub):
    wide = {"mup.base_width": 16}  # what files give is not rescaled
    config = tiny(objective=objective, init_from=str(hub), **SIZES, **wide)
    built, spec = objectives.build(config), train_state.batch_spec(config)
    told = []
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4), jax.devices())
    state = train_state.create(config, built, spec, mesh, told.append)
    target = tree.flatten(built.target_of(state.params))
    place = "image" if objective == "crossmodal" else ""
    for name, x in encoder.params.items():
        np.testing.assert_array_equal(target[f"{place}/{name}".strip("/")], x, err_msg=name)
    for name, x in tree.flatten(state.target).items():
        np.testing.assert_array_equal(x, target[name], err_msg=name)
    assert told[0]["arrays"] == len(encoder.params) and told[0]["kind"] == "ijepa of transformers"
    q = tree.flatten(state.params)[
        f"{'image' if objective != 'ijepa' else 'encoder'}/block_0/attn/q/kernel"
    ]
    assert not q.sharding.is_fully_replicated


def test_what_does_not_fit_is_listed_and_allowed_by_name_alone(encoder, hub):
    more = refused(hub, **{"encoder.depth": 3})
    assert "encoder: missing block_2/attn/k/bias" in more and "init_allow=NAME" in more
    found = begin(hub, **{"encoder.depth": 3, "init_allow": ("encoder/block_2/*",)})
    assert not any("block_2" in name for name in found.params)
    assert len(found.told["allowed"]) == 16 and len(found.params) == len(encoder.params)
    assert "unexpected encoder.layer.1" in refused(hub, **{"encoder.depth": 1})
    begin(hub, **{"encoder.depth": 1, "init_allow": ("encoder.layer.1.*",)})
    begin(hub, **{"encoder.depth": 1, "init_allow": ("block_1/*",)})
    wider = {"encoder.mlp_width": 80}
    line = refused(hub, **wider)
    assert (
        "misshapen encoder.layer.0.intermediate.dense.bias" in line and "(80,), not (72,)" in line
    )
    found = begin(hub, **wider, init_allow=("*/mlp/*",))
    mlp = {name for name in found.params if "block_0/mlp" in name}
    assert mlp == {"encoder/block_0/mlp/fc2/bias"}  # which fits
    assert "missing" in refused(hub, **{"encoder.depth": 3, "init_allow": ("block_1/*",)})


def test_heads_that_differ_are_no_matter_of_shapes_and_refused(hub):
    assert "encoder.heads = 4: 2, that of" in refused(hub, **{"encoder.heads": 4})


def test_positions_are_taken_where_they_can_be_and_resized(encoder, hub, tmp_path):
    larger = {"encoder.image_size": 48}
    assert "16 are not the fixed table of 6 x 6 patches" in refused(hub, **larger)
    assert set(begin(hub, **larger, init_allow=("position",)).params) == {
        f"encoder/{name}" for name in encoder.params
    }
    found = begin(hub, **larger, **{"encoder.positions": "learned"}).params
    table = encoder.position().reshape(4, 4, -1)
    resized = found["encoder/position"].reshape(6, 6, -1)
    assert resized.shape == (6, 6, 32)
    # Twice the corner's neighbourhood in the same place: the mean stays.
    np.testing.assert_allclose(resized.mean((0, 1)), table.mean((0, 1)), atol=0.05)
    same = begin(hub, **{"encoder.positions": "learned"}).params
    np.testing.assert_array_equal(same["encoder/position"], encoder.position())
    other = shutil.copytree(hub, tmp_path / "other")
    tensors = load_file(hub / "model.safetensors")
    tensors["embeddings.position_embeddings"] += np.float32(0.1)
    save_file(tensors, other / "model.safetensors")
    assert "are not the fixed table of 4 x 4 patches" in refused(other)
    begin(other, **{"encoder.positions": "learned"})


def test_pixels_of_other_moments_are_folded_into_the_patch_embedding(encoder, hub, tmp_path):
    other = shutil.copytree(hub, tmp_path / "other")
    told = json.loads((other / "preprocessor_config.json").read_text())
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.5, 0.25, 0.2])
    told |= {"image_mean": mean.tolist(), "image_std": std.tolist()}
    (other / "preprocessor_config.json").write_text(json.dumps(told))
    params = exports.nested(
        {name.removeprefix("encoder/"): x for name, x in begin(other).params.items()}
    )
    images, module = exports.images(), vit.build(encoder.config.encoder)
    theirs = ((images / 255 - mean) / std).astype(np.float32)
    expected = np.asarray(module.apply({"params": encoder.nested()}, theirs))
    found = np.asarray(module.apply({"params": params}, images))
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_learned_positions_are_trained_and_leave_with_the_encoder(tmp_path):
    config = exports.config(**{"encoder.positions": "learned"})
    params = exports.random_params(config)
    assert params["position"].shape == (16, 32)
    moved = exports.Encoder(config, params, exports.FACTS)
    still = exports.Encoder(
        exports.config(), {n: x for n, x in params.items() if n != "position"}, exports.FACTS
    )
    images = exports.images()
    assert np.abs(moved.features(images) - still.features(images)).max() > 1e-2
    np.testing.assert_array_equal(moved.position(), params["position"])
    folder = written(tmp_path / "hf", moved, "hf")
    tensors = load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(tensors["embeddings.position_embeddings"][0], params["position"])


def run(workdir, *words):
    sizes = [f"--config.{name}={value}" for name, value in SIZES.items()]
    few = ["--config.train.steps=2", "--config.checkpoint.every=1", "--config.mesh.data=8"]
    config = ["train", "--config", "tests/configs_tiny.py:objective=ijepa", "--workdir"]
    return main([*config, str(workdir), *sizes, *few, *words])


def floors(workdir, card):
    words = ["--task", "knn", "--config.eval.train_images=48", "--config.eval.val_images=16"]
    assert main(["eval", "--workdir", str(workdir), *words, "--json", str(card)]) == 0
    (found,) = [r for r in json.loads(card.read_text())["results"] if r["features"] == "encoder"]
    return found["baselines"].keys()


@pytest.mark.slow
def test_a_resumed_run_does_not_read_the_files_again_and_remembers_them(hub, tmp_path, capsys):
    copy, workdir = shutil.copytree(hub, tmp_path / "copy"), tmp_path / "run"
    words = [f"--config.init_from={copy}", "--config.log.progress=lines"]
    assert run(workdir, *words) == 0
    assert f"encoder of {copy} (ijepa of transformers): 36 arrays" in capsys.readouterr().out
    first = stored.find(workdir).meta
    assert first["init"]["fingerprint"] and first["config"]["init_from"] == str(copy)
    # What it was given to begin with is not untrained: random weights stand beside it.
    assert floors(workdir, tmp_path / "1.json") == {"start", "untrained", "pixels", "majority"}
    newest = workdir / "checkpoints"
    shutil.rmtree(newest / "2")
    (workdir / "result.json").unlink()
    shutil.rmtree(copy)
    assert run(workdir, *words) == 0
    again = stored.find(workdir)
    assert again.step == 2 and again.meta["init"] == first["init"]
    capsys.readouterr()
    assert floors(workdir, tmp_path / "2.json") == {"untrained", "pixels", "majority"}
    assert f"began with: init_from = '{copy}'" in capsys.readouterr().err
    assert run(workdir, "--config.init_from=elsewhere") == 5
    assert "init_from: " in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "checksums", exports.by_numpy)
        return exports.save_run(tmp_path_factory.mktemp("start") / "run")


def test_a_run_of_ours_gives_either_branch(trained):
    one = stored.find(trained)
    for branch, place in (("target", "target/"), ("context", "params/encoder/")):
        found = begin(trained, init_branch=branch)
        wanted = one.read(name for name in one.arrays if name.startswith(place))
        assert len(found.params) == len(wanted) and found.told["branch"] == branch
        for name, x in wanted.items():
            ours = found.params[f"encoder/{name.removeprefix(place)}"]
            np.testing.assert_array_equal(ours, x, err_msg=name)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"init_parts": ("predictor",)}, "holds encoder"),
        ({"init_parts": ("text",)}, "objective 'ijepa' trains encoder, predictor, no text"),
        ({"init_branch": "ema"}, "init_branch = 'ema': one of 'target', 'context'"),
        ({"init_allow": ("",)}, "init_allow = ('',): holds names alone"),
        ({"objective": "tijepa"}, "trains no image encoder"),
        ({"encoder.positions": "rotary"}, "one of 'fixed', 'learned'"),
    ],
)
def test_what_makes_no_sense_is_refused(changed, rule, hub):
    assert rule in refused(hub, **changed)
