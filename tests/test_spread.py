"""Batches of heads lie over the devices of a mesh, and sums are those of one device."""

import jax
import numpy as np
import pytest

from jepa_vl import sharding
from jepa_vl.evaluators import spread
from jepa_vl.schema import MeshConfig


@pytest.mark.parametrize(("size", "divided"), [(16, True), (6, False)])
def test_rows_are_shared_where_the_devices_divide_them(size, divided):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices())
    rng, seen = np.random.default_rng(0), []
    data = rng.normal(size=(20, 3)).astype(np.float32)
    batches = rng.integers(20, size=(4, size)).astype(np.int32)

    def step(state, data, rows):
        now = spread.rows(data, rows)
        jax.debug.inspect_array_sharding(now, callback=seen.append)
        return state + now.sum(axis=0)

    found = spread.scan(step, np.zeros(3, np.float32), data, np.split(batches, 2), mesh)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, data[batches.ravel()].sum(axis=0), rtol=1e-5)
    assert seen and all(place.is_fully_replicated != divided for place in seen)
    if divided:
        assert all(place.shard_shape((size, 3)) == (2, 3) for place in seen)
