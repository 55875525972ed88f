"""The rows of metrics.jsonl in Weights & Biases too, where ``log.wandb`` names a project.

The library is imported here alone, and late: a run without the key never needs it. What fails once
the run goes on is said and ends the sending, never the training.
"""

import importlib
import importlib.util
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jepa_vl.config import ConfigError
from jepa_vl.training.metrics import write_json

KEY, PACKAGE = "log.wandb", "wandb"
FILE = "wandb.json"  # of the workdir: the id by which later processes go on with the same run
HELP = "log in once, or set WANDB_MODE=offline"


class Tracker:
    """One run there for one workdir, restarts included. Without a project it does nothing."""

    def __init__(self, project: str, workdir: Path):
        """Sends nothing yet.

        Args:
          project: its name; empty: none.
          workdir: the library's own files go there as well.

        Raises:
          ConfigError: a project is named, and the library is not there.
        """
        self.project, self.workdir = project, workdir
        self.say: Callable[[str], None] = print
        self._run: Any = None
        if project and importlib.util.find_spec(PACKAGE) is None:
            raise ConfigError(KEY, project, "needs wandb: pip install 'jepa-vl[wandb]'")

    def start(self, config: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Starts the run, or goes on with that of an earlier process.

        Args:
          config: shown beside the curves.
          say: tells people.

        Raises:
          ConfigError: it cannot be started.
        """
        self.say = say
        if not self.project:
            return
        wandb = importlib.import_module(PACKAGE)
        try:
            self._run = wandb.init(
                project=self.project,
                name=self.workdir.name,
                id=_id(self.workdir / FILE),
                dir=str(self.workdir),
                config=dict(config),
                resume="allow",
                settings=wandb.Settings(console="off", silent=True),
            )
            # Steps as a metric of their own: a rewind goes back in them, which its counter cannot.
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # of many kinds, by version, network and account
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            rule = f"cannot be started: {reason}; {HELP}"
            raise ConfigError(KEY, self.project, rule) from error

    def write(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl; what is null there is left out."""
        if self._run is not None:
            self._try(self._run.log, {k: v for k, v in row.items() if v is not None})

    def close(self, code: int, result: Mapping[str, Any] | None = None) -> None:
        """Ends it.

        Args:
          code: exit code of the training.
          result: of result.json, for the table of runs.
        """
        if self._run is None:
            return
        if result:
            self._try(self._run.summary.update, {"result": dict(result)})
        if self._run is not None:
            self._try(self._run.finish, code)
        self._run = None

    def _try(self, call: Callable[[Any], Any], value: Any) -> None:
        try:
            call(value)
        except Exception as error:  # as above
            self._run = None
            self.say(f"warning: no more rows for Weights & Biases: {error}")


def _id(path: Path) -> str:
    """The id of a workdir's run there, made once."""
    try:
        return str(json.loads(path.read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        new = secrets.token_hex(6)
        write_json(path, {"id": new})
        return new
