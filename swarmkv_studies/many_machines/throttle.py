"""Throttle: files that are read no faster than a link would bring them, as an fsspec file system."""

import io
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem

_PIECE = 1 << 16


def throttled(path: str | Path, bytes_per_s: float) -> str:
    """The URL of a local file that is read at so many bytes per second."""
    fsspec.register_implementation("throttled", _Throttled, clobber=True)
    return f"throttled://{bytes_per_s:.0f}{Path(path).absolute()}"


class _Throttled(AbstractFileSystem):
    """``throttled://RATE/PATH``."""

    protocol = "throttled"
    cachable = False

    def _open(self, path: str, mode: str = "rb", **how: Any) -> io.RawIOBase:
        rate, _, name = path.partition("/")
        return _Slow(Path("/" + name), float(rate))

    def isfile(self, path: str) -> bool:
        return Path("/" + path.partition("/")[2]).is_file()


class _Slow(io.RawIOBase):
    """A file whose reads wait until a link of this rate would have brought them."""

    def __init__(self, path: Path, rate: float) -> None:
        self._file = path.open("rb", buffering=0)
        self._rate = rate
        self._due = time.perf_counter()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        n = self._file.readinto(memoryview(buffer)[:_PIECE]) or 0
        self._due = max(self._due, time.perf_counter() - 0.05) + n / self._rate  # a link does not save up for later
        if (wait := self._due - time.perf_counter()) > 0.001:
            time.sleep(wait)
        return n

    def close(self) -> None:
        self._file.close()
        super().close()
