"""The step compiles in a thread of its own while a run looks at its data and evaluates."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh

from jepa_vl import sharding
from jepa_vl.objectives.base import Batch
from jepa_vl.shapes import PyTree
from jepa_vl.training.state import TrainState

THREAD = "compile"  # begins its name


def compile_step(
    step: Any, state: TrainState, frozen: PyTree, spec: Batch, mesh: Mesh
) -> Future[None]:
    """Begins to compile a step; its first call then finds what was compiled.

    Args:
      step: of :func:`.step.make_step`.
      state: placed; only its shapes are read.
      frozen: as state.
      spec: shapes and dtypes of the global batch, see :func:`.state.batch_spec`.
      mesh: devices.

    Returns:
      To be waited for before the first call; raises what the compiler raised. On GPUs it is done
      at once, and the first call compiles: there the compiler times kernels on the device, which
      nothing else may use meanwhile.
    """
    done: Future[None] = Future()
    if mesh.devices.flat[0].platform == "gpu":
        done.set_result(None)
        return done
    place = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in spec.items()
    }

    def work() -> None:
        with jax.set_mesh(mesh):  # of this thread
            step.lower(state, frozen, batch).compile()

    pool = ThreadPoolExecutor(1, THREAD)
    done = pool.submit(work)
    pool.shutdown(wait=False)
    return done
