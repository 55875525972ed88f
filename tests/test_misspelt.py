"""Whatever key or value is misspelt, the error names the one that was meant."""

import pytest
from ml_collections import ConfigDict

from jepa_vl import objectives
from jepa_vl.config import CHOICES, ConfigError, defaults, flat, resolve, to_dict
from jepa_vl.models.conditioner import CONDITIONERS, FUSIONS, REGULARISERS
from jepa_vl.objectives import REGISTRY
from jepa_vl.objectives.losses import DISTANCES
from tests.tiny import tiny

REGISTERED = {
    "objective": tuple(REGISTRY),
    "conditioner.kind": tuple(CONDITIONERS),
    "conditioner.fusion": tuple(FUSIONS),
    "loss.distance": tuple(DISTANCES),
    "loss.regulariser": tuple(REGULARISERS),
}
KEYS = sorted(flat(defaults().to_dict()))


def misspelt(word: str) -> str:
    """One letter is missing."""
    return word[: len(word) // 2] + word[len(word) // 2 + 1 :]


def error(key: str, value: str) -> str:
    c = ConfigDict(to_dict(tiny(objective="tcjepa")))
    with pytest.raises(ConfigError) as caught:
        c.update_from_flattened_dict({key: value})
        objectives.check(resolve(c))
    return str(caught.value)


@pytest.mark.parametrize("key", [*CHOICES, *REGISTERED])
def test_each_value_is_found_again_with_a_letter_missing(key):
    choices = (CHOICES | REGISTERED)[key]
    for value in choices:
        wrong = misspelt(value)
        if wrong in choices or not wrong:
            continue
        said = error(key, wrong)
        assert said.startswith(f"{key} = {wrong!r}: one of "), said
        assert all(choice in said for choice in choices), said
        if len(value) > 3:
            assert f"did you mean {value!r}?" in said, said


@pytest.mark.parametrize("key", KEYS)
def test_each_key_is_found_again_with_a_letter_missing(key):
    section, _, name = key.rpartition(".")
    wrong = f"{section}.{misspelt(name)}".lstrip(".")
    if wrong in KEYS:
        return
    page = defaults().to_dict()
    inner = page[section] if section else page
    inner[misspelt(name)] = inner.pop(name)
    with pytest.raises(ConfigError) as caught:
        resolve(page)
    assert str(caught.value).startswith(f"{wrong} = "), caught.value
    if len(name) > 3:
        assert f"did you mean {key}?" in str(caught.value)
