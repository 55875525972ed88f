"""Where the wall-clock of a run goes, from its first process to its last.

Goodput is the share of it that went into training steps whose result was kept.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

# Each with what it holds.
PARTS = {
    "init": "opening data and state, starting workers, the first batch",
    "compile": "the first step, and what of compiling it had to be waited for",
    "data_wait": "the host taking a batch and handing it to the devices, which may be busy then",
    "step": "starting steps and waiting for them",
    "checkpoint": "what a save holds up; most of it goes on in the background",
    "evaluation": "diagnostics and kNN, their compilation included",
    "profile": "starting and writing traces",
    "other": "all else: metrics, messages",
    "lost": "to restarts: from the last checkpoint of a process to the first step of the next one",
}


class Clock:
    """Charges each moment to one part, so that the parts add up to the wall-clock of the run.

    Nothing is charged twice: a part within another one interrupts it. What a process did after its
    last checkpoint is in no checkpoint, hence its next process counts it as lost.
    """

    def __init__(self):
        """Starts in ``init``."""
        self.own = dict.fromkeys(PARTS, 0.0)  # seconds of this process
        self._before = dict.fromkeys(PARTS, 0.0)  # of earlier ones
        self._resumed, self._ran_before = False, 0.0
        self._since, self._started = time.monotonic(), time.time()
        self.began = self._started  # Unix time; of the run, once it is known that it began earlier
        self._now = "init"

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charges what happens inside to a part, and shows it in a profile under that name."""
        outer = self.enter(name)
        try:
            with jax.profiler.TraceAnnotation(name):
                yield
        finally:
            self.enter(outer)

    def enter(self, name: str) -> str:
        """From now on it is this part; returns the one that it was."""
        now = time.monotonic()
        self.own[self._now] += now - self._since
        outer, self._now, self._since = self._now, name, now
        return outer

    def resume(self, spent: dict[str, Any]) -> None:
        """Takes over what was spent before a checkpoint.

        Args:
          spent: of the checkpoint's meta: ``seconds`` and, unless it is older than this file,
            ``goodput`` as :meth:`to_save` made it.
        """
        began = self._started
        older = {"parts": {"other": spent["seconds"]}, "time": began, "began": began}
        saved = spent.get("goodput", older)
        self._before |= {part: value for part, value in saved["parts"].items() if part in PARTS}
        self._before["lost"] += max(0.0, began - saved["time"])
        self.began = saved["began"]
        self._resumed, self._ran_before = True, spent["seconds"]

    def rewind(self, spent: dict[str, Any]) -> None:
        """Counts as lost what was spent since a checkpoint that the run returns to.

        Args:
          spent: of the checkpoint's meta; {}: the run begins again.
        """
        now, saved = self.seconds(), spent.get("goodput", {}).get("parts", {})
        for part in PARTS:
            if part != "lost":
                thrown_away = max(0.0, now[part] - saved.get(part, 0.0))
                self._before[part] -= thrown_away
                self._before["lost"] += thrown_away

    def start_over(self, workdir: Path, config_hash: str) -> None:
        """Counts what an earlier process of this run did as lost, if it left no checkpoint.

        Args:
          workdir: without a checkpoint; its config.json tells when that process began.
          config_hash: of this run; the time of another one is not ours.
        """
        path = workdir / "config.json"
        if not path.exists() or (workdir / "result.json").exists():
            return
        left = json.loads(path.read_text())
        if left["config_hash"] == config_hash:
            self.began = min(self._started, left.get("began", self._started))
            self._before["lost"] += self._started - self.began

    def seconds(self) -> dict[str, float]:
        """Wall-clock of the run by part, earlier processes included."""
        self.enter(self._now)
        own = dict(self.own)
        if self._resumed:  # these would not have been needed a second time
            own["lost"] += own["init"] + own["compile"]
            own |= {"init": 0.0, "compile": 0.0}
        return {part: self._before[part] + own[part] for part in PARTS}

    def running(self) -> float:
        """Seconds that this process and, up to their last checkpoints, earlier ones ran."""
        self.enter(self._now)
        return self._ran_before + sum(self.own.values())

    def share(self) -> float:
        """Goodput: seconds of kept steps over all seconds."""
        seconds = self.seconds()
        return seconds["step"] / max(sum(seconds.values()), 1e-9)

    def to_save(self) -> dict[str, Any]:
        """For the meta of a checkpoint; see :meth:`resume`."""
        return {"parts": self.seconds(), "time": time.time(), "began": self.began}

    def summary(self) -> dict[str, Any]:
        """For result.json: ``share`` (goodput) and ``seconds`` by part."""
        return {"share": self.share(), "seconds": self.seconds()}


def in_words(summary: dict[str, Any]) -> str:
    """One line of :meth:`Clock.summary`; parts below a hundredth are left out."""
    seconds = summary["seconds"]
    whole = max(sum(seconds.values()), 1e-9)
    large = sorted(seconds, key=lambda part: -seconds[part])
    told = [f"{part.replace('_', ' ')} {seconds[part] / whole:.0%}" for part in large]
    kept = [text for text, part in zip(told, large, strict=True) if seconds[part] >= whole / 100]
    return f"goodput {summary['share']:.0%} of {whole:.0f} s: {', '.join(kept)}"
