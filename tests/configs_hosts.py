"""The tiny configuration for several processes, which may note what they read, and be struck.

NOTES is a folder: process K writes K.jsonl there, a line of positions and indices for each batch.
STRIKE=SIGNAL:PROCESS:STEP sends a signal to a process after a step, once.
"""

import json
import os
import signal
import time
from pathlib import Path

from tests.tiny import tiny_config


def get_config():
    if "NOTES" in os.environ and "JEPA_VL_PROCESS" in os.environ:
        watch(Path(os.environ["NOTES"]), os.environ["JEPA_VL_PROCESS"])
    c = tiny_config(objective="ijepa")
    c.train.steps, c.checkpoint.every, c.checkpoint.keep_last = 8, 4, 2
    c.optim.warmup_steps = c.loss.ramp_steps = 2
    c.log.diagnostics_every = c.eval.every = 1000
    c.predictor.depth, c.eval.train_images, c.eval.val_images = 1, 16, 8
    return c


def watch(notes: Path, process: str) -> None:
    from jepa_vl.training import loop

    to_device, examine = loop.to_device, loop.Run.examine
    number, struck, at = os.environ.get("STRIKE", "0:none:0").split(":")
    pause = float(os.environ.get("PAUSE", "0"))

    def noted(batch, mesh):
        rows = [batch["position"].tolist(), batch["index"].tolist()]
        with (notes / f"{process}.jsonl").open("a") as file:
            file.write(json.dumps(rows) + "\n")
        return to_device(batch, mesh)

    def examined(self, step):
        if process == struck and step == int(at) and not (notes / "struck").exists():
            (notes / "struck").touch()
            if number == "SIGKILL":
                self.keeper.wait()  # of this process; process 0 makes the whole of it
                while not (self.workdir / "checkpoints" / "4").exists():
                    time.sleep(0.05)
            os.kill(os.getpid(), signal.Signals[number])
        time.sleep(pause)
        return examine(self, step)

    loop.to_device, loop.Run.examine = noted, examined
