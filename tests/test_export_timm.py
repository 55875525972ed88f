"""The export to timm, loaded by timm in a process of its own; on photographs too."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from jepa_vl.export import timm, write
from jepa_vl.schema import VARIANTS, EncoderConfig
from tests import exports
from tests.shared import photographs

# Beside a CPU torch the torchvision of PyPI does not import; see there.
SHIM = Path(__file__).parent / "cpu_torchvision"


@pytest.fixture
def importable(monkeypatch):
    """timm, in the fresh processes that exports are checked in."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed; .ci/run does it last")
    path = os.pathsep.join([str(SHIM), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)


def test_timm_gives_the_same_features_with_heads_that_its_name_does_not_have(tmp_path, importable):
    told = write.export(exports.encoder(), "timm", tmp_path / "out", exports.images())
    assert told.largest < 1e-5 < told.scale and set(told.versions) == {"timm", "torch"}


@pytest.mark.parametrize("size", [224, 160])
def test_features_of_photographs_are_the_same_in_timm(size, tmp_path, importable):
    encoder = exports.encoder(**{"encoder.image_size": size, "encoder.patch_size": 16})
    told = write.export(encoder, "timm", tmp_path / "out", photographs(size))
    assert told.largest < 1e-4 < told.scale


@pytest.mark.parametrize("name", VARIANTS)
def test_timm_is_told_all_sizes_of_a_preset(name):
    width, depth, heads, mlp_width = VARIANTS[name]
    config = EncoderConfig(name, 224, 14, width, depth, heads, mlp_width)
    told = timm.arguments(config)
    assert (told["embed_dim"], told["depth"], told["num_heads"]) == (width, depth, heads)
    assert int(width * told["mlp_ratio"]) == mlp_width  # as timm computes it
    assert (told["class_token"], told["global_pool"], told["fc_norm"]) == (False, "avg", False)
