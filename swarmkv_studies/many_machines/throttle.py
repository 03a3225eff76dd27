"""Throttle: a file that is read no faster than a link would bring it."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from swarmkv_lab.snapshot.file import reading

_PIECE = 1 << 16


def throttled(bytes_per_s: float) -> Callable[[str | Path], AbstractContextManager[tuple[BinaryIO, int]]]:
    """Opens a local file that is read at so many bytes per second; yields it and its size, as ``reading`` does."""

    @contextmanager
    def opened(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
        with reading(path) as (file, size):
            yield io.BufferedReader(_Slow(file, bytes_per_s)), size

    return opened


class _Slow(io.RawIOBase):
    """A file whose reads wait until a link of this rate would have brought them."""

    def __init__(self, file: BinaryIO, rate: float) -> None:
        self._file, self._rate = file, rate
        self._due = time.perf_counter()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = int(self._file.readinto(memoryview(buffer)[:_PIECE]) or 0)  # type: ignore[attr-defined]
        self._due = max(self._due, time.perf_counter() - 0.05) + n / self._rate  # a link does not save up for later
        if (wait := self._due - time.perf_counter()) > 0.001:
            time.sleep(wait)
        return n
