"""Every recipe in configs/, with each of its arguments: it resolves, and its step is traced.

Nothing is allocated: shapes alone go through the whole training step.
"""

import functools
import json
from pathlib import Path

import jax
import pytest

from jepa_vl import objectives, pretrained, sharding, tree
from jepa_vl.cli import configs
from jepa_vl.config import ConfigError, resolve, to_dict
from jepa_vl.models import text
from jepa_vl.training import state as train_state
from jepa_vl.training.step import make_step

ROOT = Path(__file__).resolve().parents[1] / "configs"
RECIPES = {
    "quickstart": ("data=shapes_world", "data=tar", "data=folder"),
    "rsicd_study": (
        "arm=own",
        "arm=ijepa_smooth_l1",
        "arm=entropy",
        "arm=adaln",
        "arm=parity_masks",
    ),
    "ijepa_in1k": ("size=B", "size=L", "size=H14", "size=H16_448"),
    "ijepa_in22k": ("size=H14", "size=g16"),
    "tcjepa_in1k": ("size=B", "size=L", "size=H14"),
    "tcjepa_cc27m": ("size=B16", "size=L14"),
    "tijepa_coco": ("size=small", "size=medium", "size=large"),
    "crossmodal_coco": ("size=S", "size=B", "size=L"),
    "contrastive_cc27m": ("size=B16", "size=B16,loss=siglip", "size=L14"),
}
CASES = [(name, arg) for name, args in RECIPES.items() for arg in args]
# I-JEPA's own counts, encoder and predictor.
PUBLISHED = {
    "ijepa_in1k:size=B": (85_646_592, 11_238_912),
    "ijepa_in1k:size=L": (303_098_880, 22_082_560),
    "ijepa_in1k:size=H14": (630_434_560, 22_279_424),
    "ijepa_in1k:size=H16_448": (630_664_960, 22_279_424),
    "ijepa_in22k:size=H14": (630_434_560, 22_279_424),
    "ijepa_in22k:size=g16": (1_011_092_608, 29_475_712),
}
HEADER = ("Command:", "Hardware:", "Wall-clock:")
# What the config.json of the towers that recipes download says, and how many parameters they have.
TOWERS = {
    "hub:google-t5/t5-base": {
        "model_type": "t5", "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072,
        "num_layers": 12, "num_heads": 12, "relative_attention_num_buckets": 32,
    },
    "hub:Alibaba-NLP/gte-base-en-v1.5": {
        "model_type": "new", "vocab_size": 30528, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 8192,
        "type_vocab_size": 0, "rope_theta": 500000, "rope_scaling": {"factor": 2.0, "type": "ntk"},
    },
    "hub:facebook/ijepa_vith14_1k": {
        "model_type": "ijepa", "hidden_size": 1280, "num_hidden_layers": 32,
        "num_attention_heads": 16, "intermediate_size": 5120, "image_size": 224, "patch_size": 14,
        "layer_norm_eps": 1e-6,
    },
}  # fmt: skip
COUNTS = {
    "tcjepa_in1k:size=B": {"text": 109_628_544},
    "tcjepa_cc27m:size=L14": {"text": 109_628_544},
    "tijepa_coco:size=small": {"text": 136_776_192, "image": 630_434_560 + 256 * 1280},
}


@pytest.fixture(scope="module", autouse=True)
def no_downloads(tmp_path_factory):
    """The towers that recipes name are folders here, without weights: shapes need none."""
    folders = {}
    for number, (name, content) in enumerate(TOWERS.items()):
        folders[name] = tmp_path_factory.mktemp(f"tower{number}")
        (folders[name] / "config.json").write_text(json.dumps(content))

    def locate(path, key, weights=True):
        return folders[path]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text, "locate", locate)
        patched.setattr(pretrained, "locate", locate)
        yield


@functools.cache
def load(name, arg):
    return configs.load(f"{ROOT / name}.py:{arg}", [configs.Override("data.path", "somewhere")])


@functools.cache
def traced(name, arg):
    """Abstract state, and what a step makes of it."""
    config = load(name, arg)
    objective, mesh = objectives.build(config), sharding.make_mesh(config.mesh)
    spec = train_state.batch_spec(config)
    like = train_state.abstract(config, objective, spec, mesh)
    frozen = objective.frozen_spec()
    with jax.set_mesh(mesh):
        out = jax.eval_shape(make_step(config, objective, mesh, like), like, frozen, spec)
    return like, *out


def test_no_recipe_is_left_out():
    assert {path.stem for path in ROOT.glob("*.py")} == set(RECIPES)


@pytest.mark.parametrize(("name", "arg"), CASES)
def test_a_recipe_resolves_to_itself_and_says_what_it_costs(name, arg):
    config = load(name, arg)
    assert resolve(to_dict(config)) == config
    text = (ROOT / f"{name}.py").read_text().split('"""')[1]
    assert all(line in text for line in HEADER)
    assert f"configs/{name}.py" in text
    if name not in ("quickstart", "rsicd_study"):
        assert "not run at this scale" in text and "Published:" in text and "We ran:" in text


@pytest.mark.parametrize("name", RECIPES)
def test_an_argument_that_a_recipe_does_not_know_is_refused(name):
    with pytest.raises(ConfigError, match="config argument"):
        configs.load(f"{ROOT / name}.py:sise=B")


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(("name", "arg"), CASES)
def test_the_step_of_a_recipe_is_traced_and_keeps_the_shape_of_the_state(name, arg):
    like, state, metrics = traced(name, arg)
    assert tree.diff(like.params, state.params) == tree.diff(like.target, state.target) == []
    assert {x.shape for x in metrics.values()} == {()} and "loss" in metrics


@pytest.mark.parametrize("case", PUBLISHED)
def test_encoder_and_predictor_have_the_published_number_of_parameters(case):
    params = traced(*case.split(":"))[0].params
    assert (tree.count(params["encoder"]), tree.count(params["predictor"])) == PUBLISHED[case]


@pytest.mark.parametrize("case", COUNTS)
def test_the_frozen_towers_of_a_recipe_are_the_published_ones(case):
    config = load(*case.split(":"))
    frozen = objectives.build(config).frozen_spec()
    assert {name: tree.count(part) for name, part in frozen.items()} == COUNTS[case]


@pytest.mark.parametrize(
    ("case", "steps", "warmup"),
    [
        ("ijepa_in1k:size=B", 600 * 625, 15 * 625),
        ("ijepa_in1k:size=H14", 300 * 625, 40 * 625),
        ("tcjepa_in1k:size=L", 600 * 625, 15 * 625),
        ("tijepa_coco:size=small", 300 * 4, 40 * 4),
    ],
)
def test_steps_follow_from_epochs_and_images(case, steps, warmup):
    config = load(*case.split(":"))
    assert (config.train.steps, config.optim.warmup_steps) == (steps, warmup)
