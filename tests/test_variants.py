"""Sizes of I-JEPA: parameter counts as published, and the images and patches that fit."""

import jax
import jax.numpy as jnp
import pytest

from jepa_vl import objectives, tree
from jepa_vl.config import Config, ConfigError, defaults, resolve
from jepa_vl.training import state as train_state


def make_config(**encoder) -> Config:
    c = defaults()
    c.objective = "ijepa"
    c.encoder.update(encoder)
    return resolve(c)


# variant, image, patch, parameters of encoder and predictor (I-JEPA's code; no position tables).
PUBLISHED = [
    ("Ti", 224, 16, 5_486_400, 10_795_968),
    ("S", 224, 16, 21_589_632, 10_943_616),
    ("B", 224, 16, 85_646_592, 11_238_912),
    ("L", 224, 16, 303_098_880, 22_082_560),
    ("H", 224, 14, 630_434_560, 22_279_424),
    ("H", 448, 16, 630_664_960, 22_279_424),
    ("g", 224, 16, 1_011_092_608, 29_475_712),
]


@pytest.mark.parametrize(("variant", "image", "patch", "encoder", "predictor"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(variant, image, patch, encoder, predictor):
    config = make_config(variant=variant, image_size=image, patch_size=patch)
    objective, spec = objectives.build(config), train_state.batch_spec(config)
    params = jax.eval_shape(lambda b: objective.init(jax.random.key(0), b), spec)
    assert tree.count(params["encoder"]) == encoder
    assert tree.count(params["predictor"]) == predictor
    assert params.keys() == {"encoder", "predictor"}


@pytest.mark.parametrize(("image", "patch"), [(224, 8), (224, 14), (448, 14), (448, 8), (96, 8)])
def test_any_image_that_the_patch_divides_gives_features_of_each_patch(image, patch):
    config = make_config(variant="Ti", image_size=image, patch_size=patch)
    encoder = objectives.build(config).encoder
    images = jnp.zeros((2, image, image, 3), jnp.uint8)
    shape = jax.eval_shape(lambda x: encoder.init_with_output(jax.random.key(0), x)[0], images)
    assert shape.shape == (2, (image // patch) ** 2, 192)
    assert train_state.batch_spec(config)["ctx_idx"].shape[1] < (image // patch) ** 2


@pytest.mark.parametrize(("image", "patch"), [(224, 15), (225, 16), (8, 16)])
def test_an_image_that_the_patch_does_not_divide_is_refused(image, patch):
    with pytest.raises(ConfigError) as caught:
        make_config(variant="Ti", image_size=image, patch_size=patch)
    assert caught.value.key == "encoder.image_size"


def test_the_predictors_depth_follows_the_variant_unless_it_is_given():
    c = defaults()
    c.encoder.variant = "L"
    assert resolve(c).predictor.depth == 12
    c.predictor.depth = 4
    assert resolve(c).predictor.depth == 4
    c.predictor.depth = -1
    with pytest.raises(ConfigError) as caught:
        resolve(c)
    assert caught.value.key == "predictor.depth"
