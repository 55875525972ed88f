"""Files that the user names: found, checked to lie inside their folder, read whole."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from jepa_vl.config import ConfigError


def cache_folder() -> Path:
    """$JEPA_VL_CACHE, or a folder in the user's cache."""
    given = os.environ.get("JEPA_VL_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "jepa_vl"


def write_whole(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Writes to a file of its own, then renames: other writers and readers see all or nothing.

    Raises:
      OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(fd, "wb") as file:
            fill(file)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def find_files(root: Path, suffix: str, key: str, prefix: str = "") -> list[Path]:
    """The file itself, or the files of a folder in the order of their names.

    Args:
      root: a file, of any name, or a folder.
      suffix: with its dot; the end of the names in a folder.
      key: configuration key that gave the root, for errors.
      prefix: the begin of the names in a folder.

    Raises:
      ConfigError: no such folder, or none of its files is meant.
    """
    if root.is_file():
        return [root]
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        rule = f"is no file or folder that can be read: {error.strerror}"
        raise ConfigError(key, str(root), rule) from error
    ours = [name for name in names if name.endswith(suffix) and not name.startswith(".")]
    found = [root / name for name in ours if name.startswith(prefix)]
    if found:
        return found
    if ours:
        have = ", ".join(ours[:4])
        rule = f"no {suffix} file in {root} has a name that begins so (there are: {have})"
        raise ConfigError(key.replace("path", "split"), prefix, rule)
    inside = [name for name in names if any((root / name).glob(f"*{suffix}"))]
    hint = f"; give one of its folders: {', '.join(inside[:4])}" if inside else ""
    raise ConfigError(key, str(root), f"holds no {suffix} file{hint}")


def inside(path: str, key: str, where: str) -> str:
    """The path, if it is relative and stays inside its folder.

    By its letters: a link that the user made inside the folder is followed.

    Raises:
      ConfigError: it leaves the folder.
    """
    parts = PurePosixPath(path.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or Path(path).is_absolute():
        raise ConfigError(key, where, f"{path!r} leaves the folder")
    return path


def check_present(
    root: Path, paths: Sequence[str], key: str, listed_in: str, what: str = "image"
) -> None:
    """Checks that all files are there; each folder is listed once.

    Raises:
      ConfigError: one is absent; names it and where it was listed.
    """
    listed: dict[Path, set[str]] = {}
    for number, relative in enumerate(paths, 1):
        path = root / relative
        if path.parent not in listed:
            listed[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        if path.name not in listed[path.parent]:
            rule = f"{what} {relative!r} (number {number} of {listed_in}) is not there"
            raise ConfigError(key, str(root), rule)


def read_bytes(path: Path, key: str) -> bytes:
    """Content of an image file.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(key, str(path), f"cannot be read: {error.strerror}") from error
