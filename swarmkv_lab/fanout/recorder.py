"""Recorder: a run's stopwatch: spans on lanes, a clock that can be stopped, and the KV memory held."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # tables and figures need this file's names, and no llama.cpp
    from swarmkv_lab.fanout.schedule import Branch

PREFIX = "prefix"  # the lane of the work done once for all agents
BASELINE = "naive"  # the strategy that all others are compared with
# an agent's phases until its context holds the prefix
ACTIVATION = ("context", "prefill", "copy", "restore", "role", "share")


class Span(NamedTuple):
    """One piece of work on one lane: an agent's, or (None) the prefix's. Times are ms since the run's start."""

    agent: str | None
    phase: str
    start_ms: float
    end_ms: float
    bytes: int
    """of KV state that were copied by it"""
    worker: str = ""
    """where, on a cluster"""


@dataclass(eq=False, repr=False, kw_only=True)
class Recorder:
    """What has been measured so far."""

    began: float = field(default_factory=time.time, init=False)
    """time.time() at the start"""
    spans: list[Span] = field(default_factory=list, init=False)
    """what is finished"""
    kv_bytes: int = field(default=0, init=False)
    """KV memory held at the peak, contexts and snapshots together"""
    _held: int = field(default=0, init=False)
    _open: dict[str | None, Span] = field(default_factory=dict, init=False)
    _start: float = field(default_factory=time.perf_counter, init=False)
    _stopped: float | None = field(default=None, init=False)

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
    def phase(
        self, agents: "Branch | Sequence[Branch] | None", name: str, n_bytes: int = 0
    ) -> Iterator[Callable[[str | None], None]]:
        """Time a piece of work for an agent, for several that do it together, or for all; also when an error ends it.

        The block is given a function that ends one agent's part of the work early.
        """
        lanes = [None if one is None else one.name for one in (agents if isinstance(agents, Sequence) else [agents])]
        start = self.now()
        self._open |= {lane: Span(lane, name, start, start, n_bytes) for lane in lanes}

        def end(lane: str | None) -> None:
            if (span := self._open.pop(lane, None)) is not None:
                self.spans.append(span._replace(end_ms=self.now()))

        try:
            yield end
        finally:
            for lane in lanes:
                end(lane)

    @contextmanager
    def holding(self, n_bytes: int) -> Iterator[None]:
        """Count KV memory that is held for a while."""
        self._held += n_bytes
        self.kv_bytes = max(self.kv_bytes, self._held)
        try:
            yield
        finally:
            self._held -= n_bytes
