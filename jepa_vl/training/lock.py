"""One run a workdir: a lock of the file system, which ends with the process that holds it."""

import datetime
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import IO

from jepa_vl.config import ConfigError

FILE = "lock.json"
PATIENCE = "JEPA_VL_LOCK_SECONDS"  # set by the supervisor, whose last child may still be saving


class Lock:
    """Of a workdir. A crash, kill -9 and a power cut release it; nothing is ever left to delete.

    While open as a context it may be taken; at its end it is released.
    """

    def __init__(self, workdir: Path):
        """Nothing is locked yet."""
        self.path = workdir / FILE
        self._file: IO[str] | None = None

    def take(self) -> str:
        """Takes it, or waits as long as the environment says.

        Returns:
          A warning where the file system knows no locks, else nothing.

        Raises:
          ConfigError: another process holds it, says which; or the workdir cannot be written.
        """
        until = time.monotonic() + float(os.environ.get(PATIENCE, "0"))
        try:
            file = self.path.open("a+")
        except OSError as error:
            rule = f"cannot be written: {error.strerror}"
            raise ConfigError("--workdir", str(self.path.parent), rule) from error
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    rule = f"another run trains here: {_holder(file)}"
                    file.close()
                    raise ConfigError("--workdir", str(self.path.parent), rule) from None
                time.sleep(0.2)
            except OSError as error:
                file.close()
                return f"nothing keeps a second run out of {self.path.parent}: {error.strerror}"
            else:
                break
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        file.truncate(0)
        json.dump({"host": socket.gethostname(), "process": os.getpid(), "since": now}, file)
        file.flush()
        self._file = file
        return ""

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Frees it; more than once does no harm."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _holder(file: IO[str]) -> str:
    try:
        file.seek(0)
        told = json.load(file)
        return f"process {told['process']} on {told['host']} since {told['since']}"
    except (ValueError, KeyError):  # it has just been taken
        return "a process that has just begun"
