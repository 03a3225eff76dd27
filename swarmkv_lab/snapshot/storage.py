"""Storage: where snapshots lie: a local file, written as a whole, or whatever fsspec has a backend for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import open_regular, reason, replacing, user_path


@contextmanager
def reading(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file behind a path or an fsspec URL such as s3://bucket/doc.kv.safetensors, and its size in bytes.

    It is read, not mapped: a mapped page that the file no longer has would end the process that touches it.
    """
    local, system, name = _place(path)
    if local is None:
        with _remote(path, "read"), system.open(name, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            yield file, size
        return
    try:
        with open_regular(local) as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise SwarmKVError(f"{path} could not be read: {reason(error)}") from error


def exists(path: str | Path) -> bool:
    """Whether there is a file behind a path or an fsspec URL. Raises SwarmKVError where nobody can say."""
    local, system, name = _place(path)
    if local is not None:
        return os.path.isfile(local)
    with _remote(path, "reached"):
        return bool(system.isfile(name))


def make_folder(place: str) -> None:
    """A folder, where files lie in folders. Raises SwarmKVError with the reason if it cannot be made."""
    local, system, name = _place(place)
    with _remote(place, "made"):
        os.makedirs(local, exist_ok=True) if local is not None else system.makedirs(name, exist_ok=True)


@contextmanager
def write(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write that appears under its name when the block has ended well; where fsspec's backend can do that."""
    local, system, name = _place(path)
    if local is not None:
        with replacing(local) as file:
            yield file
        return
    with _remote(path, "written"), system.transaction, system.open(name, "wb") as file:
        yield file


def _place(path: str | Path) -> tuple[Path | None, Any, str]:
    """(local path or None, file system, name there)."""
    if not isinstance(path, str | Path):
        raise SwarmKVError(f"{path!r} is no path: give a text, a Path or an fsspec URL")
    if "://" not in str(path):
        return user_path(path), None, ""
    with _remote(path, "reached"):
        system, name = fsspec.core.url_to_fs(str(path), skip_instance_cache=True)  # its transaction is ours alone
    return (Path(name) if isinstance(system, LocalFileSystem) else None), system, name


@contextmanager
def _remote(path: str | Path, what: str) -> Iterator[None]:
    try:
        yield
    except SwarmKVError:
        raise
    except Exception as error:  # each backend has its own kinds, and fsspec names a missing one by an ImportError
        raise SwarmKVError(f"{path} could not be {what}: {type(error).__name__}: {error}") from error
