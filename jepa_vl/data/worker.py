"""What data worker processes run first, and how they end."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import spawn
from multiprocessing.context import SpawnContext as _SpawnContext
from typing import Any

_GRAIN_WORKER = "grain-process-prefetch"  # how Grain's worker processes are called
_OWN_WORKER = "jepa-vl-worker"

if __name__ == "__mp_main__":  # in a worker, before Grain is imported there
    from absl import logging

    # Ctrl-C, and the SIGTERM of a scheduler, reach the whole process group; the trainer alone
    # decides what they mean, and needs its batches until it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if multiprocessing.current_process().name.startswith(_GRAIN_WORKER):  # Grain ends them by kill
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Grain then uses its own tree functions: 140 MB and half a second less a worker. It also
    # warns that there is no jax profiler.
    sys.modules.setdefault("jax", None)  # pyright: ignore[reportArgumentType]
    logging.set_verbosity(logging.ERROR)

_preparation = spawn.get_preparation_data


def install() -> None:
    """Makes Grain's workers, and ours, start from this module instead of the program's main module.

    A spawned process imports the main module again, which may import jax or lack a ``__main__``
    guard; Grain has no hook before that. Other processes start as ever.
    """
    spawn.get_preparation_data = _prepare
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads them, which fails outside absl.app.run
        flags.FLAGS.mark_as_parsed()


class SpawnContext(_SpawnContext):
    """For pools of our own: their processes start from this module too."""

    def __init__(self):
        super().__init__()
        install()

    def Process(self, *args: Any, **kwargs: Any) -> Any:
        """A process whose name says that it is ours."""
        return super().Process(*args, **kwargs, name=_OWN_WORKER)


def _prepare(name: str) -> dict[str, Any]:
    data = _preparation(name)
    if name.startswith((_GRAIN_WORKER, _OWN_WORKER)):
        data.pop("init_main_from_path", None)
        data["init_main_from_name"] = "jepa_vl.data.worker"
    return data


def end_with_parent(worker: int, workers: int) -> None:
    """Runs first in each worker, with the arguments of Grain's hook: none outlives its parent."""
    del worker, workers
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
