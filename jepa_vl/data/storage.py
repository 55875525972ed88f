"""Files on disks and behind URLs (``gs://`` and whatever else fsspec knows): listed, read in parts.

fsspec and not etils.epath, which would call it underneath: it lists a folder with sizes and times
in one request, where epath asks for each file, and reads a range of bytes in one request without a
buffer that reads ahead. ``gs://`` needs the package gcsfs beside it, ``s3://`` s3fs.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa_vl.config import ConfigError


@dataclass(frozen=True)
class File:
    """One file of a listing: its name without the folder, bytes, and what changes with them."""

    name: str
    size: int
    stamp: str


# What file systems call the time or the version of a file; the first that is there counts.
_STAMPS = ("generation", "etag", "ETag", "mtime", "updated", "LastModified", "created")


def is_url(path: str) -> bool:
    """Is it for fsspec?"""
    return "://" in path


def local(path: str) -> Path:
    """The path with ``~`` replaced; that of an unknown user stays, so there is no such folder."""
    return Path(os.path.expanduser(path))


def expand(path: str) -> str:
    """The path with ``~`` replaced; URLs as they are, without a slash at the end."""
    return path.rstrip("/") if is_url(path) else str(local(path))


def join(folder: str, name: str) -> str:
    """Path or URL of a file in a folder."""
    return f"{folder}/{name}" if is_url(folder) else os.path.join(folder, name)


def split(path: str) -> tuple[str, str]:
    """Folder and name."""
    folder, _, name = path.rpartition("/") if is_url(path) else ("", "", "")
    return (folder, name) if is_url(path) else os.path.split(path)


def is_folder(path: str) -> bool:
    """Does this folder exist?"""
    if not is_url(path):
        return local(path).is_dir()
    system, inner = _system(path)
    try:
        return system.isdir(inner)
    except Exception:  # backends raise almost anything; what matters is said when it is opened
        return False


def list_folder(path: str, suffix: str) -> tuple[list[File], list[str]]:
    """The files of a folder that end so, and the names of its folders, both sorted.

    Hidden files are left out. One listing, whatever the number of files. A path that is such a file
    itself is listed as that one.

    Raises:
      OSError: there is no such folder, or it cannot be read.
      ConfigError: no package is installed that reads such URLs.
    """
    entries = _list_url(path) if is_url(path) else _list_local(path)
    files = [f for f in entries if isinstance(f, File) and _shown(f.name, suffix)]
    folders = [name for name in entries if isinstance(name, str)]
    return sorted(files, key=lambda f: f.name), sorted(folders)


def _shown(name: str, suffix: str) -> bool:
    return name.endswith(suffix) and not name.startswith(".")


def _list_local(path: str) -> list[File | str]:
    if os.path.isfile(path):
        return [_local_file(os.path.basename(path), os.stat(path))]
    with os.scandir(path) as entries:
        return [e.name if e.is_dir() else _local_file(e.name, e.stat()) for e in entries]


def _local_file(name: str, stat: os.stat_result) -> File:
    return File(name, stat.st_size, str(stat.st_mtime_ns))


def _list_url(path: str) -> list[File | str]:
    system, inner = _system(path)
    try:
        system.invalidate_cache()
        found = system.ls(inner, detail=True)
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    out: list[File | str] = []
    for entry in found:
        name = entry["name"].rstrip("/").rpartition("/")[2]
        if entry["type"] == "directory":
            out.append(name)
        else:
            stamp = next((entry[key] for key in _STAMPS if entry.get(key)), "")
            out.append(File(name, int(entry["size"]), str(stamp)))
    return out


class Reader:
    """Ranges of one file; close it, or use ``with``."""

    def __init__(self, path: str):
        """Opens the file; behind a URL the first read does.

        Raises:
          OSError: it cannot be opened.
        """
        self._fd: int | None = None
        if is_url(path):
            self._system, self._inner = _system(path)
        else:
            self._fd = os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        """These bytes; fewer where the file ends before.

        Raises:
          OSError: they cannot be read.
        """
        if self._fd is not None:
            return os.pread(self._fd, size, offset)
        if size == 0:
            return b""
        try:
            return self._system.cat_file(self._inner, start=offset, end=offset + size)
        except OSError:
            raise
        except Exception as error:  # HTTP errors of backends are no OSErrors
            raise OSError(f"{type(error).__name__}: {error}") from error

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there. fsspec keeps one a process."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError("data.path", url, f"cannot be opened: {error}") from error
