"""State dicts of torch: checkpoints of facebookresearch/ijepa, of timm, and hostile ones."""

import os
import pickle
import sys
from typing import Any

import numpy as np
import pytest

from jepa_vl import objectives, tree
from jepa_vl.config import ConfigError
from jepa_vl.export import base, timm
from jepa_vl.models import intake
from jepa_vl.models.intake import pickles, start
from jepa_vl.training import state as train_state
from tests import exports
from tests.shared import shared
from tests.test_intake import KEY, features, refused
from tests.tiny import tiny

torch = pytest.importorskip("torch")


def state_dict(encoder, prefix=""):
    rows = timm.rows(encoder.config.encoder.depth)
    named = base.rename({**encoder.params, "position": encoder.position()}, [*rows])
    return {prefix + name: torch.tensor(x) for name, x in named.items()}


def checkpoint(encoders, **more):
    """Shaped as train.py of facebookresearch/ijepa saves it, its optimizer and scaler too."""
    whole = {name: state_dict(encoder, "module.") for name, encoder in encoders.items()}
    moments = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(7)}}}
    groups = [{"lr": 1e-3, "betas": (0.9, 0.999), "WD_exclude": True, "params": [0]}]
    return {
        **whole, "opt": {**moments, "param_groups": groups}, "scaler": {"scale": 65536.0},
        "epoch": 3, "loss": 0.25, "batch_size": 8, "world_size": 2, "lr": 1e-3, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def branches():
    c = exports.config()
    make = lambda seed: base.Encoder(c, exports.random_params(c, seed), exports.FACTS)  # noqa: E731
    return {"target_encoder": make(1), "encoder": make(2)}


@pytest.mark.parametrize("zipped", [True, False])
def test_both_branches_of_an_ijepa_checkpoint_give_their_own_features(branches, zipped, tmp_path):
    file = tmp_path / "jepa-latest.pth.tar"
    predictor = {"module.mask_token": torch.zeros(1, 1, 16)}
    whole = checkpoint(branches, predictor=predictor)
    torch.save(whole, file, _use_new_zipfile_serialization=zipped)
    for branch, name in (("target", "target_encoder"), ("context", "encoder")):
        expected = branches[name].features(exports.images())
        found = features(file, branch=branch, heads=2)
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
        source = intake.open_source(str(file), KEY, branch, heads=2)
        assert source.branch == branch and set(source.parts) == {"predictor"}


def test_a_branch_that_the_file_has_not_is_named(branches, tmp_path):
    file = tmp_path / "a.pth.tar"
    torch.save(checkpoint({"encoder": branches["encoder"]}), file)
    assert "holds no target_encoder, which is the target branch" in refused(file, heads=2)
    features(file, branch="context", heads=2)


def test_a_plain_state_dict_may_lie_inside_another_dictionary_and_be_half_precision(
    branches, tmp_path
):
    encoder = branches["encoder"]
    tensors, expected = state_dict(encoder), encoder.features(exports.images())
    torch.save(tensors, tmp_path / "a.pth")
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "b.pth")
    torch.save({n: x.bfloat16() for n, x in tensors.items()}, tmp_path / "c.pt")
    for name, most in (("a.pth", 1e-5), ("b.pth", 1e-5), ("c.pt", 0.1)):
        found = features(tmp_path / name, heads=2)
        assert np.abs(found - expected).max() < most * np.abs(expected).max()


def test_weights_of_the_public_code_give_the_features_that_it_computed(tmp_path):
    golden = np.load(shared("golden/ijepa_train.npz"))

    def part(start):
        found = {n.removeprefix(start): golden[n] for n in golden.files if n.startswith(start)}
        return {f"module.{name}": torch.tensor(x) for name, x in found.items()}

    whole = {name: part(f"final/{name}/") for name in ("encoder", "target_encoder", "predictor")}
    whole["target_encoder"] = part("init/encoder/")  # where the target starts
    file = tmp_path / "jepa-ep0.pth.tar"
    torch.save({**whole, "opt": None, "epoch": 0}, file)
    source = intake.open_source(str(file), KEY, heads=4)
    module = intake.build(source)
    images = golden["step0/images_nchw"].transpose(0, 2, 3, 1)
    found = np.asarray(module.apply({"params": intake.load(source, module)}, images))
    expected = golden["step0/target_encoder_full"]
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    source = intake.open_source(str(file), KEY, "context", heads=4)
    params = intake.load(source, intake.build(source))
    key = golden["final/encoder/blocks.2.attn.qkv.weight"][48:96]
    np.testing.assert_array_equal(params["block_2"]["attn"]["k"]["kernel"], key.T)


class Hostile:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').write('it ran')",)


@pytest.mark.parametrize("form", ["torch", "torch, inside", "old torch", "plain pickle"])
def test_no_code_of_a_hostile_file_is_run(form, branches, tmp_path):
    file, mark = tmp_path / "a.pth.tar", tmp_path / "mark"
    whole = checkpoint(branches)
    if form == "torch, inside":
        whole["target_encoder"]["module.norm.bias"] = Hostile(mark)
    else:
        whole["opt"] = Hostile(mark)
    if form == "plain pickle":
        with open(file, "wb") as stream:
            pickle.dump({"encoder": {}, "opt": Hostile(mark)}, stream)
    else:
        torch.save(whole, file, _use_new_zipfile_serialization=form != "old torch")
    line = refused(file, heads=2)
    assert "holds more than tensors and plain values, which is never run" in line
    assert "\n" not in line and not mark.exists()
    with open(file, "rb") as stream:
        if form == "plain pickle":
            pickle.load(stream)
        else:
            torch.load(file, weights_only=False)
    assert mark.read_text() == "it ran"  # so that this would have been seen


def test_files_that_are_no_checkpoints_are_refused_with_one_line(branches, tmp_path):
    file = tmp_path / "a.pth"
    torch.save(checkpoint(branches), file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PK\x03\x04", os.urandom(300)):
        file.write_bytes(content)
        line = refused(file, heads=2)
        assert "\n" not in line and ("cannot be read" in line or "never run" in line)
    for odd in ([1, 2], torch.zeros(3), {"encoder": 3}, {"encoder": {"a": [1]}}):
        torch.save(odd, file)
        assert "holds " in refused(file, branch="context", heads=2)


def test_without_torch_one_line_says_what_to_install(branches, tmp_path, monkeypatch):
    file = tmp_path / "a.pth"
    torch.save(checkpoint(branches), file)
    monkeypatch.setattr(pickles, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "only torch reads this file (pip install torch)" in refused(file)


def test_weights_of_another_architecture_are_listed(tmp_path):
    sizes = {"0.weight": torch.zeros(3, 3), "fc.bias": torch.zeros(3)}
    torch.save(sizes, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="no ViT under the names of timm or facebookresearch"):
        features(tmp_path / "a.pth")


def test_encoder_and_predictor_of_the_public_code_start_a_run_that_predicts_as_it_did(tmp_path):
    golden = np.load(shared("golden/ijepa_train.npz"))

    def part(name):
        found = {n.removeprefix(name): golden[n] for n in golden.files if n.startswith(name)}
        return {f"module.{n}": torch.tensor(x) for n, x in found.items()}

    file = tmp_path / "jepa-ep0.pth.tar"
    parts = {"encoder": part("init/encoder/"), "predictor": part("init/predictor/")}
    torch.save({**parts, "target_encoder": parts["encoder"], "opt": None}, file)
    sizes = {"image_size": 32, "patch_size": 4, "width": 48, "depth": 3, "heads": 4}
    keys = {f"encoder.{name}": value for name, value in sizes.items()}
    keys |= {
        "predictor.width": 24,
        "predictor.depth": 2,
        "predictor.heads": 4,
        "encoder.mlp_width": 0,
    }
    keys |= {"masks.mode": "reference", "masks.min_keep": 4, "init_from": str(file)}
    config = tiny(objective="ijepa", **keys, init_parts=("encoder", "predictor"))
    objective: Any = objectives.build(config)
    like = train_state.shapes(config, objective, train_state.batch_spec(config)).params
    found = start.read(config, like)
    assert (
        found is not None
        and found.params.keys() == tree.flatten(like).keys()
        and found.told["branch"] == "target"
    )
    params = base.nested(found.params)
    images = golden["step0/images_nchw"].transpose(0, 2, 3, 1)
    context = golden["step0/context_index_0"]
    seen = objective.encoder.apply({"params": params["encoder"]}, images, context)
    expected = golden["step0/context_encoder_out"]
    assert np.abs(seen - expected).max() < 1e-5 * np.abs(expected).max()
    targets = np.stack([golden[f"step0/target_index_{i}"] for i in range(4)], axis=1)
    predicted = objective.predictor.apply({"params": params["predictor"]}, seen, context, targets)[
        0
    ]
    expected = golden["step0/prediction"].reshape(4, *predicted.shape[:1], *predicted.shape[2:])
    expected = expected.transpose(1, 0, 2, 3)  # theirs are block by block
    assert np.abs(predicted - expected).max() < 2e-5 * np.abs(expected).max()
