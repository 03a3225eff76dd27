"""Run: what one fan-out is asked for, and what it records as it goes: spans, answers, memory."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.report import PREFIX, Report, Span
from swarmkv_lab.fanout.schedule import Branch, Schedule
from swarmkv_lab.llama import Context, Model
from swarmkv_lab.snapshot.snapshot import KVSnapshot


class Run(Report):
    """One strategy answering all agents once. Everything reported is derived from its spans and answers.

    ``agents``: DataFrame, a row an agent. ``timeline``: DataFrame, a row a span. ``metrics``: the run's own numbers.
    ``answers``: text by agent name. Times are ms since the run's start.
    """

    def __init__(
        self,
        model: Model,
        tokens: np.ndarray,
        schedule: Schedule,
        strategy: str,
        settings: dict[str, Any],
        watch: "Callable[[Run], None] | None" = None,
        snapshot: KVSnapshot | None = None,
        on_token: Callable[[str, int], None] | None = None,
        threads: int = 1,
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.schedule = schedule
        self.branches = list(schedule.agents.values())
        self.strategy = strategy
        self.settings = settings
        self.snapshot = snapshot
        """of the tokens, when it was there before"""
        self.spans: list[Span] = []
        self.kv_bytes = 0
        """KV memory held at the peak: contexts and snapshots together"""
        self.repeats = pd.DataFrame()
        """the metrics of all runs of which this is the median one, when fan_out was asked for several"""
        self._watch = watch
        self._on_token = on_token
        self._threads = threads
        self._ended = False
        self._lock = threading.RLock()
        self._open: dict[str, tuple[str, float]] = {}
        self._held = 0
        self._start = time.perf_counter()

    def now(self) -> float:
        """Milliseconds since the run's start."""
        return (time.perf_counter() - self._start) * 1e3

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """The run's clock stands still for what is not part of it."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - since

    def add(self, agent: Branch, phase: str, start_ms: float, end_ms: float) -> None:
        """A piece of an agent's work that was timed by ``now`` elsewhere, such as in a thread."""
        self.spans.append(Span(agent.name, phase, start_ms, end_ms, 0))

    @contextmanager
    def attempt(self, agent: Branch) -> Iterator[None]:
        """An agent's work: an error in it is this agent's alone, where the schedule tolerates that."""
        try:
            yield
        except SwarmKVError as error:
            self._open.pop(agent.name, None)
            self.schedule.fail(agent, error)

    def each(self, agents: Sequence[Branch], work: Callable[[Branch], None]) -> None:
        """Every agent does its work: one after another, or in as many threads as the run was given."""

        def one(agent: Branch) -> None:
            with self.attempt(agent):
                work(agent)

        if self._threads == 1:
            for agent in agents:
                one(agent)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            jobs = [pool.submit(one, agent) for agent in agents]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:  # such as Ctrl-C: the other threads end before their next llama_decode
                self._ended = True
                pool.shutdown(cancel_futures=True)
                raise

    def take(self, agent: Branch, token: int) -> None:
        """The next token of an agent's answer."""
        agent.tokens.append(token)
        if self._on_token:
            try:
                self._on_token(agent.name, token)
            except Exception as error:
                self.schedule.fail(agent, SwarmKVError(f"on_token raised {error!r}"))

    @contextmanager
    def phase(self, agents: Branch | Sequence[Branch] | None, name: str, n_bytes: int = 0) -> Iterator[None]:
        """Time a piece of work on an agent's lane, on several that do it together, or (None) on the prefix's."""
        group = [agents] if isinstance(agents, Branch) else agents
        lanes = [PREFIX] if group is None else [agent.name for agent in group]
        start = self.now()
        self._open |= dict.fromkeys(lanes, (name, start))
        yield
        end = self.now()
        for lane in lanes:
            self._open.pop(lane, None)
        self.spans += [Span(lane, name, start, end, n_bytes) for lane in lanes]

    @contextmanager
    def context(self, agent: Branch | None, **settings: Any) -> Iterator[Context]:
        """A context for a while, its making timed and its memory counted."""
        with self.phase(agent, "context"):
            ctx = self.model.context(**self.settings | settings)
        ctx.watch = self._look
        with ctx, self.holding(ctx.nbytes):
            yield ctx

    @contextmanager
    def holding(self, n_bytes: int) -> Iterator[None]:
        """Count KV memory that is held for a while."""
        with self._lock:
            self._held += n_bytes
            self.kv_bytes = max(self.kv_bytes, self._held)
        try:
            yield
        finally:
            with self._lock:
                self._held -= n_bytes

    def whole_prompt(self, agent: Branch) -> list[int]:
        """The document's tokens and the agent's: what somebody who knows of no prefix is given."""
        return [*self.tokens[: agent.n_prefix].tolist(), *agent.prompt.tolist()]

    def capture(self, ctx: Context) -> KVSnapshot:
        """A snapshot of what a context's first sequence holds of the document, captured on the prefix's lane."""
        with self.phase(None, "capture", ctx.state_bytes()):
            return KVSnapshot.capture(ctx, self.tokens[: ctx.n_past()])

    def so_far(self) -> pd.DataFrame:
        """The timeline while the run goes on, its open spans as long as they are now."""
        now = self.now()
        begun = [Span(lane, phase, start, now, 0) for lane, (phase, start) in list(self._open.items())]
        return pd.DataFrame([*self.spans, *begun])

    def _look(self) -> None:
        """Let the watcher look, one thread at a time; its drawing is not measured, unless other threads go on."""
        if self._ended:
            raise SwarmKVError("the run was ended in another thread")
        if self._watch:
            with self._lock, self.off_the_clock() if self._threads == 1 else nullcontext():
                self._watch(self)
