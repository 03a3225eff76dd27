"""Join: compute the beginning of a document while its end is loaded, and stop where the two meet.

The idea is Cake's (Jin and others, "Compute Or Load KV Cache? Why Not Both?", ICML 2025).
"""

import io
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.interrupt import Stopped
from swarmkv_lab.llama.model import Model
from swarmkv_lab.snapshot.file import reading
from swarmkv_lab.snapshot.identity import KVIdentity
from swarmkv_lab.snapshot.snapshot import KVSnapshot
from swarmkv_lab.snapshot.state import SequenceState
from swarmkv_studies.many_machines.pages import PageReader

Reading = Callable[[str | Path], AbstractContextManager[tuple[BinaryIO, int]]]
"""opens a file to read: (the file, its size in bytes)"""
_PIECE = 1 << 18  # bytes of one read: a slow one is not waited for longer than this takes
_LOOK_S = 0.01  # until a link's speed is seen
# What comes sooner than a first batch would be computed is waited for: threads that compute would only slow it down.
_SOON_S = {"CPU": 0.5, "GPU": 0.05}


def join(path: str | Path, model: Model, *, opened: Reading = reading) -> KVSnapshot:
    """The snapshot in a file of pages (save_in_pages), loaded and computed at the same time.

    Loading begins with the last page, computing with the first batch, and whichever has the rest first ends it: it
    takes no longer than the faster of the two alone, and about t_c*t_l/(t_c+t_l) of their times where both count. The
    bits are those that were saved. A page that turns out damaged is computed instead, with all before it, with a
    warning. opened: how the file is opened. Raises SwarmKVError when there is no such file, and as KVSnapshot.load.
    """
    with _Tail(path, opened) as tail:
        pages = tail.pages()
        settings = _required(pages.identity, model)
        settings = replace(settings, n_ctx=len(pages.tokens), n_batch=pages.page)
        tail.wait_if_within(_SOON_S["GPU" if model.on_gpu else "CPU"])
        done, states = 0, []
        with model.open_context(settings) as ctx:
            while done < tail.start:
                batch = min(done + pages.page, len(pages.tokens))
                try:
                    with ctx.stopping(lambda done=done: tail.start <= done):  # type: ignore[misc]
                        ctx.decode(pages.tokens[done:batch])
                except Stopped:
                    break
                done = batch
            if done:
                states.append(KVSnapshot.capture(ctx, pages.tokens[:done]).state())
        states += tail.from_token(done)
    if tail.error is not None:
        warnings.warn(f"{tail.error}; what it did not give was computed", stacklevel=2)
    return pages.snapshot(states)


def load_pages(path: str | Path, model: Model, *, opened: Reading = reading) -> KVSnapshot:
    """The same, loaded alone. Raises as KVSnapshot.load."""
    with opened(path) as (file, size):
        pages = PageReader(file, size, str(path))
        _required(pages.identity, model)
        by_start = dict(pages)
    return pages.snapshot([by_start[start] for start in sorted(by_start)])


def _required(identity: KVIdentity, model: Model) -> Any:
    """The settings of a context for a snapshot of this identity. Raises SnapshotMismatchError where it is another's."""
    identity.require(KVIdentity.asked_for(model, identity.settings))
    return identity.settings


class _Tail:
    """A thread that loads a file's pages, the last one first, and that nobody waits for at the end of a ``with`` block.

    ``start``: the first token that is loaded with all after it. ``error``: why there are no more.
    """

    def __init__(self, path: str | Path, opened: Reading) -> None:
        self.start = 1
        self.error: SwarmKVError | None = None
        self._path, self._open = path, opened
        self._pages: PageReader | None = None
        self._loaded: dict[int, SequenceState] = {}
        self._opened, self._enough, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._file: _Stoppable | None = None
        self._size = 0
        self._thread = threading.Thread(target=self._load, daemon=True)

    def pages(self) -> PageReader:
        """The opened file; raises what kept it from being opened."""
        while not self._opened.wait(0.1):  # so that Ctrl-C is heard
            pass
        if self.error is not None and self._pages is None:
            raise self.error
        assert self._pages is not None
        return self._pages

    def wait_if_within(self, seconds: float) -> None:
        """Wait for the file's end, if at the speed of its first bytes it will come in so many seconds."""
        assert self._file is not None
        before = self._file.n_read
        left = self._size - before
        if not self._ended.wait(_LOOK_S) and (self._file.n_read - before) * seconds > left * _LOOK_S:
            self._ended.wait(2 * seconds)

    def from_token(self, first: int) -> list[SequenceState]:
        """The pages from a token on, which is the first one of a page."""
        return [self._loaded[start] for start in sorted(self._loaded) if start >= first]

    def _load(self) -> None:
        try:
            with self._open(self._path) as (file, size):
                self._file, self._size = _Stoppable(file, self._enough), size
                self._pages = PageReader(io.BufferedReader(self._file), size, str(self._path))
                self.start = len(self._pages.tokens)
                self._opened.set()
                for start, state in self._pages:
                    self._loaded[start] = state
                    self.start = start
        except _Enough:
            pass
        except SwarmKVError as error:
            self.error = error
        finally:
            self._opened.set()
            self._ended.set()

    def __enter__(self) -> "_Tail":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()


class _Enough(Exception):
    """The rest of a file is not needed."""


class _Stoppable(io.RawIOBase):
    """A file whose reads are cut in pieces, between which it looks whether ``enough`` is set. ``n_read``: bytes."""

    def __init__(self, file: BinaryIO, enough: threading.Event) -> None:
        self._file, self._enough = file, enough
        self.n_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        if self._enough.is_set():
            raise _Enough
        n = int(self._file.readinto(memoryview(room)[:_PIECE]) or 0)  # type: ignore[attr-defined]
        self.n_read += n
        return n
