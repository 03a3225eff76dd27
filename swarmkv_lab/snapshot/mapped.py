"""MappedFile: a file's bytes where the page cache has them, held still while they are read."""

import errno
import mmap
import os
import signal
import stat
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from swarmkv_lab.errors import SnapshotCorruptError, SwarmKVError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_POPULATE_READ = 22  # Linux's MADV_POPULATE_READ, which mmap names from Python 3.13 on


class MappedFile:
    """``data``: the file, uint8 (n,), read-only; touch it only inside ``pinned()``.

    A page that the file no longer has kills the process that touches it (SIGBUS), so a mapping alone would leave the
    kernel's life to whoever truncates the file. While ``pinned()`` lasts we hold a lease: whoever opens the file to
    write waits until we are done. Where the system grants no leases (another user's file, a network share, not Linux),
    the file is read into memory instead, and ``mapped`` is False.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            self._close = weakref.finalize(self, os.close, self._fd)
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(None, "it is not a regular file")
            if not status.st_size:
                raise OSError(None, "it is empty")
            self._version = _version(status)
            self._holders, self._lock = 0, threading.Lock()
            self.mapped = self._lease(True)
            if self.mapped:
                self._lease(False)
                mapping = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
                self.data = np.frombuffer(mapping, np.uint8)
                self._populate = getattr(mapping, "madvise", None)
            else:
                with open(self._fd, "rb", closefd=False) as file:
                    self.data = np.frombuffer(file.read(), np.uint8)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or a file that became empty just now
            reason = getattr(error, "strerror", None) or error
            raise SwarmKVError(f"{self.name} could not be read: {reason}") from error

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """While this lasts the bytes can be touched, in any thread.

        Raises SnapshotCorruptError when the file was changed since it was opened, or is open for writing.
        """
        if not self.mapped:
            yield
            return
        with self._lock:
            if not self._holders and not self._lease(True):
                raise SnapshotCorruptError(f"{self.name} is open for writing elsewhere: load it again afterwards")
            self._holders += 1
        try:
            if _version(os.fstat(self._fd)) != self._version:
                raise SnapshotCorruptError(f"{self.name} was changed on the disk since it was loaded: load it again")
            with self._lock:
                self._read_ahead()
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._lease(False)

    def _lease(self, take: bool) -> bool:
        """Take or give back a read lease: whether the system granted it."""
        if not hasattr(fcntl, "F_SETLEASE"):
            return False
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETSIG, signal.SIGURG)  # how we are told that somebody waits: ignored
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK if take else fcntl.F_UNLCK)
        except OSError:
            return False
        return True

    def _read_ahead(self) -> None:
        """Have all pages in one call, which says what a touch could only answer with a signal: the disk's errors."""
        try:
            if self._populate:
                self._populate(_POPULATE_READ)
        except OSError as error:
            if error.errno != errno.EINVAL:  # kernels before 5.14 do not know it
                raise SnapshotCorruptError(f"{self.name} could not be read: {error.strerror}") from error
        self._populate = None  # once is enough


def _version(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
