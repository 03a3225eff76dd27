"""Storage: where snapshots lie: a local file, written whole and mapped, or whatever fsspec has a backend for."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import replacing, user_path
from swarmkv_lab.snapshot.mapped import MappedFile


class Source(Protocol):
    """A file's bytes to read: ``data``, uint8 (n,), which may be touched while ``pinned()`` lasts."""

    data: np.ndarray

    def pinned(self) -> AbstractContextManager[None]:
        """Keep the bytes as they are for a while."""


class InMemory:
    """Bytes that nobody else can reach."""

    pinned = staticmethod(nullcontext)

    def __init__(self, data: np.ndarray) -> None:
        self.data = data


def read(path: str | Path) -> Source:
    """The bytes behind a path or an fsspec URL such as s3://bucket/doc.kv.safetensors; a local file is mapped."""
    local, system, name = _place(path)
    if local is not None:
        return MappedFile(local)
    with _remote(path, "read"):
        return InMemory(np.frombuffer(system.cat_file(name), np.uint8))


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
