"""Crew: the workers of a run: who takes part, who is free, and who is gone."""

import time
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty
from typing import Any

import pandas as pd

from swarmkv_lab.cluster import tasks
from swarmkv_lab.cluster.engines import Engine, Future, Gone
from swarmkv_lab.cluster.job import Hello, Standing, most_common
from swarmkv_lab.errors import SnapshotMismatchError, SwarmKVError
from swarmkv_lab.fanout.recorder import Recorder

_COLUMNS = ["worker", "process", "n_threads", "agents", "model_loads", "kv_bytes", "joined_ms", "gone_ms", "refused"]
_LOOK_EVERY_S = 0.2
_NOBODY_FOR_S = 60.0
_REMEMBERED_S = 300.0  # who a worker is, and how far its clock is ahead
_SLOW_S = 60.0  # loading a large model from a cold disk


@dataclass
class Member:
    """A worker, and what it did. Times are ms since the run's start, None: not yet."""

    takes: int
    """tasks at a time; 0 for a process of an Executor, which is given none by name"""
    process: str = ""
    n_threads: int | None = None
    agents: int = 0
    model_loads: int = 0
    kv_bytes: int = 0
    joined_ms: float | None = None
    gone_ms: float | None = None
    refused: str = ""
    """why it takes no part"""
    ahead_s: float = 0.0
    """of its clock, against ours"""
    tasks: list[Future] = field(default_factory=list)
    """what it was given and has not ended, the oldest first: this one it works on"""

    @property
    def able(self) -> bool:
        """Whether it can be given something."""
        return self.joined_ms is not None and self.gone_ms is None


class Crew:
    """``members`` by address. engine: who runs tasks. exact: workers whose last bits would differ take no part.

    alike: nor those of another processor or number of threads. lost: told of a member that has died.
    """

    def __init__(
        self,
        engine: Engine,
        recorder: Recorder,
        *,
        exact: bool = True,
        alike: bool = False,
        lost: Callable[[str, Member], None] = lambda worker, member: None,
    ) -> None:
        self.engine = engine
        self.members: dict[str, Member] = {}
        self._now = recorder.now
        self._how = exact, alike
        self._told = lost
        self._greetings: dict[Future, str] = {}
        self._hellos: dict[str, Hello] = {}
        self._standing: Standing | None = None
        self._seen_at = time.monotonic()
        self._look_at = 0.0

    def gather(self, source: str | None, n_gpu_layers: int, model: str | None) -> Standing:
        """Greet the workers; what decides bits, as the model's hash says, or as most workers have it.

        Raises SwarmKVError when no worker can take part, SnapshotMismatchError when none has the model.
        """
        self._source, self._model = (source, n_gpu_layers), model
        since = time.monotonic()
        self._look()
        while not self._hellos or (self._greetings and time.monotonic() - since < _SLOW_S):  # who is slow joins later
            for _ in self.inbox():
                pass
            reasons = dict.fromkeys(member.refused for member in self.members.values() if member.refused)
            if reasons and not (self._hellos or self._greetings):  # else who is there has gone, and others may come
                raise SwarmKVError(f"no worker can take part: {'; '.join(reasons)}")
        able = [hello for hello in self._hellos.values() if model is None or hello.standing.model == model]
        if not able:
            theirs = sorted({hello.standing.model[:12] for hello in self._hellos.values()})
            raise SnapshotMismatchError(
                f"the model here is {str(model)[:12]}, and the workers' {', '.join(theirs)}: give all the same file"
            )
        self._standing = most_common(able)
        for worker, hello in self._hellos.items():
            self._welcome(worker, hello)
        return self._standing

    def free(self, preferred: Container[str] = (), ahead: int = 0) -> str | None:
        """Who has the least to do, if it can be given a task; ahead: so many beyond those that it takes at a time."""
        able = [
            (worker, one) for worker, one in self.members.items() if one.able and one.takes + ahead > len(one.tasks)
        ]
        return (
            min(able, key=lambda m: (len(m[1].tasks) - m[1].takes, m[0] not in preferred), default=("", None))[0]
            or None
        )

    @property
    def room(self) -> int:
        """Tasks that all take at a time."""
        return sum(member.takes for member in self.members.values() if member.able)

    def give(self, worker: str, task: Callable[..., Any], *arguments: Any, key: str = "") -> Future:
        """Give a worker a task."""
        future = self.engine.submit(task, *arguments, worker=worker, key=key)
        self.members[worker].tasks.append(future)
        return future

    def inbox(self) -> Iterator[Any]:
        """What has come in, and after a while nothing: futures that are done, and (worker, message)."""
        self._look()
        with suppress(Empty):
            item = self.engine.inbox.get(timeout=_LOOK_EVERY_S)
            while True:
                if isinstance(item, tuple):
                    yield item
                elif item in self._greetings:
                    self._answered(self._greetings.pop(item), item)
                else:
                    for member in self.members.values():
                        with suppress(ValueError):
                            member.tasks.remove(item)
                    yield item
                item = self.engine.inbox.get_nowait()

    def each(self, task: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Run a task for each of these arguments, as workers become free: (which one, its result) as they end.

        What a worker was doing when it died is done again. Raises the first failure. When this is closed, nothing goes
        on.
        """
        left = list(enumerate(calls))[::-1]
        running: dict[Future, int] = {}
        try:
            while left or running:
                while left and (worker := self.free()):
                    i, arguments = left.pop()
                    running[self.give(worker, task, *arguments)] = i
                for item in self.inbox():
                    if isinstance(item, tuple) or item not in running:
                        continue
                    i = running.pop(item)
                    try:
                        yield i, self.engine.result(item)
                    except Gone:
                        left.append((i, calls[i]))
                for future in [future for future in running if self.is_lost(future)]:
                    i = running.pop(future)
                    left.append((i, calls[i]))
        finally:
            self.cancel(running)

    def is_lost(self, future: Future) -> bool:
        """Whether nobody works on it any more."""
        return not any(future in member.tasks for member in self.members.values())

    def cancel(self, futures: Sequence[Future] | dict[Future, Any]) -> None:
        """End these, and greetings that nobody has answered."""
        if left := [*futures, *self._greetings]:
            self.engine.cancel(left)
        self._greetings.clear()

    def table(self) -> pd.DataFrame:
        """A row per worker; an Executor's processes have names from their first task on."""
        rows = [vars(member) | {"worker": worker} for worker, member in self.members.items()]
        named = [row for row in rows if not row["takes"]] or rows
        return pd.DataFrame(named, columns=_COLUMNS).astype({"joined_ms": float, "gone_ms": float})

    def _look(self) -> None:
        """From time to time: greet who is new, and bury who is gone."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        present = self.engine.workers()
        if present:
            self._seen_at = time.monotonic()
        elif time.monotonic() - self._seen_at > _NOBODY_FOR_S:
            raise SwarmKVError(f"no worker has been there for {_NOBODY_FOR_S:.0f} s: start some, and run again")
        for worker, member in self.members.items():
            if member.takes and worker not in present and member.gone_ms is None:
                member.gone_ms = self._now()
                self.engine.cancel(member.tasks)
                self._told(worker, member)
                member.tasks.clear()
                self._greetings = {future: other for future, other in self._greetings.items() if other != worker}
        for worker, n in present.items():
            if worker not in self.members:
                self.members[worker] = Member(n)
                hello, ahead_s, told_at = self.engine.known.get(self._key(worker), (None, 0.0, -_REMEMBERED_S))
                if hello is not None and self._model is not None and time.monotonic() - told_at < _REMEMBERED_S:
                    self.members[worker].ahead_s = ahead_s
                    self._hellos[worker] = hello
                    if self._standing is not None:
                        self._welcome(worker, hello)
                else:
                    self._greetings[self.engine.submit(tasks.hello, *self._source, *self._how, worker=worker)] = worker

    def _key(self, worker: str) -> tuple[Any, ...]:
        return worker, *self._source, *self._how, self._model

    def _answered(self, worker: str, greeting: Future) -> None:
        try:
            hello: Hello = self.engine.result(greeting)
            self.members[worker].ahead_s = self.engine.ahead(worker)
        except SwarmKVError as error:
            self._refuse(worker, str(error))
            return
        self._hellos[worker] = hello
        self.engine.known[self._key(worker)] = hello, self.members[worker].ahead_s, time.monotonic()
        if self._standing is not None:
            self._welcome(worker, hello)

    def _welcome(self, worker: str, hello: Hello) -> None:
        assert self._standing is not None
        member = self.members[worker]
        member.process, member.n_threads = hello.process, hello.n_threads
        if difference := self._standing.differences(hello.standing):
            self._refuse(worker, f"it has {difference}")
            return
        member.joined_ms = self._now()

    def _refuse(self, worker: str, why: str) -> None:
        self.members[worker].refused = why
        warnings.warn(f"worker {worker} takes no part: {why}", stacklevel=7)
