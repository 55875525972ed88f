"""What a run works out before anything costs: the mesh, the objective, every shape.

Nothing is allocated, computed or read but the descriptions of pretrained towers.
"""

from typing import NamedTuple

from jax.sharding import Mesh

from jepa_vl import objectives, sharding
from jepa_vl.config import Config
from jepa_vl.objectives import Objective
from jepa_vl.objectives.base import Batch
from jepa_vl.shapes import PyTree
from jepa_vl.training import flops
from jepa_vl.training import state as train_state
from jepa_vl.training.state import TrainState


class Plan(NamedTuple):
    """A run on a mesh, in shapes.

    Attributes:
      config: resolved.
      mesh: the devices.
      objective: built; its weights are not there.
      batch: shapes and dtypes of the global batch.
      state: shapes and dtypes of the train state, with shardings.
      frozen: likewise, of the weights that nothing updates.
    """

    config: Config
    mesh: Mesh
    objective: Objective
    batch: Batch
    state: TrainState
    frozen: PyTree

    def flops(self) -> flops.Flops:
        """Of a step; traces it."""
        return flops.count(self.config, self.state)


def make(config: Config, mesh: Mesh) -> Plan:
    """Plans the run of a resolved configuration on a mesh.

    Raises:
      ConfigError: the batch does not divide among the devices, masks cannot be drawn, a name is
        not registered, or a tower that is named is absent or does not fit.
    """
    sharding.check_batch(config.train, mesh)
    objective, batch = objectives.build(config), train_state.batch_spec(config)
    state = train_state.abstract(config, objective, batch, mesh)
    frozen = sharding.placed_spec(objective.frozen_spec(), mesh)
    return Plan(config, mesh, objective, batch, state, frozen)
