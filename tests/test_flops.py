"""FLOPs of a step: equal to a hand count, near the compiler's, for each objective."""

import jax
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.training import flops, state
from jepa_vl.training.step import gradients
from tests.tiny import tiny


def counted(config):
    return flops.count(config)


def block(tokens, width, hidden, queries=None):
    """Forward of a transformer block: q, out and MLP of the queries, k and v of all tokens."""
    queries = tokens if queries is None else queries
    linear = 2 * width * (2 * width * tokens + 2 * width * queries + 2 * hidden * queries)
    return linear + 4 * queries * tokens * width


def by_hand(config):
    """One image of I-JEPA, forward: target, encoder, predictor."""
    e, p, m = config.encoder, config.predictor, config.masks
    spec = state.batch_spec(config)
    context, (blocks, target) = spec["ctx_idx"].shape[1], spec["tgt_idx"].shape[1:]
    patch = 2 * 3 * e.patch_size**2 * e.width
    both = context + target
    predictor = 2 * context * e.width * p.width
    predictor += blocks * (p.depth - 1) * block(both, p.width, 4 * p.width)
    predictor += blocks * block(both, p.width, 4 * p.width, target)
    predictor += blocks * 2 * target * p.width * e.width
    assert m.target_blocks == blocks
    return {
        "target": e.grid**2 * patch + e.depth * block(e.grid**2, e.width, e.mlp_width),
        "encoder": context * patch + e.depth * block(context, e.width, e.mlp_width),
        "predictor": predictor,
    }


WIDE = {
    "encoder.width": 64, "encoder.depth": 2, "encoder.heads": 2, "predictor.width": 48,
    "train.batch_size": 4,
}  # fmt: skip


def test_ijepa_equals_a_count_by_hand():
    config = tiny(objective="ijepa", **WIDE)
    found, expected = counted(config), by_hand(config)
    for name, each in expected.items():
        assert found.forward[name] == pytest.approx(4 * each, rel=1e-3)
    assert set(found.backward) == {"encoder", "predictor"}  # no gradient reaches the target
    assert found.backward["predictor"] == pytest.approx(8 * expected["predictor"], rel=1e-3)
    # Nobody asks for the gradient of the pixels.
    context = state.batch_spec(config)["ctx_idx"].shape[1]
    pixels = context * 2 * 3 * config.encoder.patch_size**2 * config.encoder.width
    assert found.backward["encoder"] == pytest.approx(
        4 * (2 * expected["encoder"] - pixels), rel=1e-3
    )


def test_captions_cost_what_their_conditioners_do():
    config = tiny(**WIDE)
    found, spec = counted(config), state.batch_spec(config)
    context, (blocks, target) = spec["ctx_idx"].shape[1], spec["tgt_idx"].shape[1:]
    rows, words = blocks * (context + target), config.text.captions * config.text.words
    p, e, ratio = config.predictor.width, config.text.width, config.conditioner.mlp_ratio
    one = 2 * rows * p * p + 2 * 2 * words * e * p + 2 * 2 * rows * words * p
    one += 2 * 2 * rows * p * int(p * ratio)
    expected = 4 * config.predictor.depth * one
    assert found.forward["conditioner"] == pytest.approx(expected, rel=1e-3)
    assert found.total == pytest.approx(sum(found.by_component().values()))
    plain = counted(tiny(objective="ijepa", **WIDE))
    assert found.forward["target"] == plain.forward["target"]


@pytest.mark.parametrize("name", ["tijepa", "crossmodal", "contrastive"])
def test_each_objective_is_counted(name):
    found = counted(tiny(objective=name))
    assert all(value > 0 for value in found.by_component().values())
    assert ("target" in found.forward) == (name != "contrastive")
    assert not {"target", "image_tower"} & set(found.backward)
    assert ("image_tower" in found.forward) == (name == "tijepa")


def test_a_loop_counts_as_often_as_it_runs():
    one, two = (counted(tiny(**{"train.micro_batches": parts})) for parts in (1, 2))
    assert two.total == pytest.approx(one.total, rel=1e-6)


def test_the_compiler_counts_the_same_matrix_products():
    sizes = {"encoder.width": 256, "encoder.heads": 4, "predictor.width": 192, "text.width": 64}
    config = tiny(**sizes, **{"train.batch_size": 8})
    objective, batch = objectives.build(config), state.batch_spec(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        step = jax.jit(lambda s, b: gradients(config, objective, s, {}, b)[0])
        compiled = step.lower(state.shapes(config, objective, batch), batch).compile()
    seen = compiled.cost_analysis()["flops"]
    # The compiler's includes what is element-wise, which wider models drown.
    assert 1 <= seen / counted(config).total < 1.1
