"""Recorder: a run's stopwatch: spans on lanes, a clock that can be stopped, and the KV memory held."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

PREFIX = "prefix"  # the lane of the work done once for all agents
BASELINE = "naive"  # the strategy that all others are compared with
# an agent's phases until its context holds the prefix
ACTIVATION = ("context", "prefill", "copy", "restore", "role", "share")


class Span(NamedTuple):
    """One piece of work on one lane: an agent's, or the prefix's. Times are ms since the run's start."""

    agent: str
    phase: str
    start_ms: float
    end_ms: float
    bytes: int
    """of KV state that were copied by it"""
    worker: str = ""
    """where, on a cluster"""


class Recorder:
    """``spans``: what is finished. ``kv_bytes``: KV memory held at the peak, contexts and snapshots together."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.kv_bytes = 0
        self._held = 0
        self._open: dict[str, Span] = {}
        self._start = time.perf_counter()
        self._stopped: float | None = None

    def now(self) -> float:
        """Milliseconds since the run's start."""
        return ((time.perf_counter() if self._stopped is None else self._stopped) - self._start) * 1e3

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The clock stands still for what is not part of the run."""
        self._stopped = since = time.perf_counter()
        try:
            yield
        finally:
            self._stopped = None
            self._start += time.perf_counter() - since

    @contextmanager
    def phase(self, lanes: Sequence[str], name: str, n_bytes: int = 0) -> Iterator[Callable[[str], None]]:
        """Time a piece of work on a lane, or on several that do it together; also when an error ends it.

        The block is given a function that ends one lane's part of the work early.
        """
        start = self.now()
        self._open |= {lane: Span(lane, name, start, start, n_bytes) for lane in lanes}

        def end(lane: str, at: float | None = None) -> None:
            if (span := self._open.pop(lane, None)) is not None:
                self.spans.append(span._replace(end_ms=self.now() if at is None else at))

        try:
            yield end
        finally:
            now = self.now()
            for lane in lanes:
                end(lane, now)

    @contextmanager
    def holding(self, n_bytes: int) -> Iterator[None]:
        """Count KV memory that is held for a while."""
        self._held += n_bytes
        self.kv_bytes = max(self.kv_bytes, self._held)
        try:
            yield
        finally:
            self._held -= n_bytes

    def so_far(self) -> list[Span]:
        """The finished spans, and those that are open, as long as they are now."""
        now = self.now()
        return [*self.spans, *(span._replace(end_ms=now) for span in list(self._open.values()))]
