"""Where each array of each recipe lives on a pod, as text for reviewers."""

import math
import re

import pytest
from jax.sharding import AbstractMesh, AxisType

from jepa_vl import objectives, sharding, tree
from jepa_vl.training import state as train_state
from tests.goldens import assert_golden
from tests.test_recipes import CASES, load, no_downloads  # noqa: F401

POD = AbstractMesh((16, 16, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
TENSOR = AbstractMesh((4, 8, 8), sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def lines_of(state, mesh):
    """Name, count of equal layers, shape and partition: one line for all layers of a stack."""
    rows = {}
    for name, leaf in tree.flatten(state).items():
        spec = sharding.parameter_spec(name, leaf.shape, mesh)
        row = re.sub(r"(block|conditioner)_\d+", r"\1_*", name), tuple(leaf.shape), spec
        rows[row] = rows.get(row, 0) + 1
    width = max(len(name) for name, *_ in rows)
    return [
        f"{name:<{width}}  x{count:<3} {shape!s:<22} {tuple(spec)}"
        for (name, shape, spec), count in rows.items()
    ]


def share_whole(state, mesh):
    """Of the bytes of the state, those that no axis splits."""
    sizes = {name: math.prod(leaf.shape) for name, leaf in tree.flatten(state).items()}
    whole = [
        name
        for name, leaf in tree.flatten(state).items()
        if not any(sharding.parameter_spec(name, leaf.shape, mesh))
    ]
    return sum(sizes[name] for name in whole) / sum(sizes.values())


def abstract(name, arg):
    config = load(name, arg)
    objective = objectives.build(config)
    return train_state.shapes(config, objective, train_state.batch_spec(config))


@pytest.mark.parametrize(("name", "arg"), CASES)
def test_the_shardings_of_a_recipe_are_those_that_were_reviewed(name, arg):
    state = abstract(name, arg)
    parts = {"params": state.params, "target": state.target}
    text = [f"data 16 x fsdp 16 x tensor 1; {share_whole(state, POD):.2%} of the bytes are whole"]
    text += ["params, both moments and the target lie alike", "", *lines_of(parts, POD)]
    if name == "tcjepa_in1k":
        text += ["", "data 4 x fsdp 8 x tensor 8", "", *lines_of(parts, TENSOR)]
    assert_golden(
        f"shardings/{name}_{arg.replace('=', '_').replace(',', '_')}.txt", "\n".join(text) + "\n"
    )


@pytest.mark.parametrize(
    ("name", "arg"), [case for case in CASES if case[0] not in ("quickstart", "rsicd_study")]
)
def test_at_most_two_in_a_hundred_bytes_of_a_recipe_are_whole_on_every_device(name, arg):
    assert share_whole(abstract(name, arg), POD) <= 0.02


def test_moments_lie_where_their_parameters_do():
    state = abstract("tcjepa_in1k", "size=B")
    spec = {n: sharding.parameter_spec(n, x.shape, POD) for n, x in tree.flatten(state).items()}
    moments = {n: s for n, s in spec.items() if n.startswith("opt_state/") and s}
    assert len(moments) > 400
    for name, found in moments.items():
        assert found == spec["params/" + re.sub(r"opt_state/\w+/", "", name)], name
