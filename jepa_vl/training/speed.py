"""How fast a run is: images, tokens, the share of the peak, memory, waiting for data."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from jepa_vl import hardware
from jepa_vl.config import Config
from jepa_vl.objectives.base import Batch
from jepa_vl.training.goodput import Clock

# What two runs of equal numbers may differ in.
CLOCKED = (
    "seconds", "images_per_second", "tokens_per_second", "mfu", "data_wait", "goodput",
    "memory/in_use", "memory/peak",
)  # fmt: skip
# A window of steps is not slower for what happened between them.
BETWEEN = ("init", "evaluation", "profile")


def _masked(config: Config, spec: Batch) -> int:
    (k,), (m, c) = spec["ctx_idx"].shape[1:], spec["tgt_idx"].shape[1:]
    return k + config.encoder.grid**2 + m * (k + c)


def _crossed(config: Config, spec: Batch) -> int:
    del spec
    whole, fraction = config.encoder.grid**2, config.crossmodal.context_fraction
    shown = min(max(round(fraction * whole), 1), whole - 1) if fraction else 0
    asked = whole - shown if config.crossmodal.targets == "tokens" else 0
    pairs = config.text.captions
    return whole + shown + whole + pairs * (shown + asked) + pairs * whole


# Objectives that do not predict the masked blocks of one image from what is visible of it.
TOKENS: dict[str, Callable[[Config, Batch], int]] = {
    "crossmodal": _crossed,
    "contrastive": lambda config, spec: config.encoder.grid**2,
}


def tokens_of_an_image(config: Config, spec: Batch) -> int:
    """Patches of one image that the context encoder, the target encoder and the predictor process.

    A patch counts once for each of the three that it goes through, and in the predictor once for
    each sequence that holds it: K + T + M (K + C) for the JEPAs with masks (the frozen tower and
    the crosser of TI-JEPA are one encoder here), T for the contrastive control, and for the
    cross-modal JEPA both predictors of each pair of image and caption. Words count nowhere.

    Args:
      config: resolved.
      spec: see ``state.batch_spec``.
    """
    return TOKENS.get(config.objective, _masked)(config, spec)


def memory() -> dict[str, int]:
    """Bytes of this process's first device, in use and at most so far; {} where it cannot tell."""
    stats = jax.local_devices()[0].memory_stats() or {}
    names = {"memory/in_use": "bytes_in_use", "memory/peak": "peak_bytes_in_use"}
    return {name: stats[key] for name, key in names.items() if key in stats}


class Speed:
    """Measures the steps between two logged rows: a window."""

    def __init__(
        self,
        config: Config,
        spec: Batch,
        mesh: Mesh,
        clock: Clock,
        start: int,
        count_flops: Callable[[], int],
    ):
        """The first window begins here.

        Args:
          config: resolved.
          spec: see ``state.batch_spec``.
          mesh: the devices of all processes.
          clock: of the run.
          start: steps already done.
          count_flops: model FLOPs of a step on the global batch. A trace of some seconds, so it is
            called once, when the first steps are over, and only where the chip's peak is known.
        """
        self.batch, self.tokens = config.train.batch_size, tokens_of_an_image(config, spec)
        chip = hardware.of_device(mesh.devices.flat[0].device_kind)
        self.peak = chip.flops * mesh.devices.size if chip else 0.0
        self.clock, self._count, self._flops = clock, count_flops, 0
        self._step, self._before = start, self._parts()

    def waited(self) -> float:
        """Seconds in which this process waited for batches so far."""
        return self._parts()["data_wait"]

    def row(self, step: int, waited: float) -> dict[str, Any]:
        """Closes the window at a step that is done, and begins the next one.

        Args:
          step: its number.
          waited: :meth:`waited` when it was started: what was waited for since is the next
            window's.

        Returns:
          ``images_per_second`` and ``tokens_per_second`` (:func:`tokens_of_an_image`) of all
          devices together; ``data_wait``, the share of the window in which the host waited for a
          batch; ``mfu``, the share of the devices' peak that the model's FLOPs are, where it is
          known; ``goodput`` and ``seconds`` of the run so far; :func:`memory`.
        """
        now = self._parts() | {"data_wait": waited}
        spent = {part: now[part] - self._before[part] for part in now if part not in BETWEEN}
        seconds, steps = sum(spent.values()), step - self._step
        images = steps * self.batch / seconds
        out: dict[str, Any] = {"images_per_second": images}
        out["tokens_per_second"] = images * self.tokens
        if self.peak:
            out["mfu"] = self._flops_of_a_step() * steps / (seconds * self.peak)
        out |= {"data_wait": spent["data_wait"] / seconds, **memory()}
        out |= {"goodput": self.clock.share(), "seconds": self.clock.running()}
        self._step, self._before = step, self._parts() | {"data_wait": waited}
        return out

    def _parts(self) -> dict[str, float]:
        self.clock.enter(self.clock.enter("other"))  # charges until now
        return dict(self.clock.own)

    def _flops_of_a_step(self) -> int:
        if not self._flops:
            with self.clock.part("compile"):
                self._flops = self._count()
        return self._flops
