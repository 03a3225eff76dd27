"""Coordinator: gives a run's work to workers as they become free, and takes what they bring back."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from graphlib import TopologicalSorter
from hashlib import sha256
from queue import Empty
from typing import Any

import pandas as pd

from swarmkv_lab.analysis.timeline import PREFIX
from swarmkv_lab.cluster import tasks
from swarmkv_lab.cluster.engines import Engine, Future, Gone
from swarmkv_lab.cluster.job import Done, Hello, Job, Standing, most_common
from swarmkv_lab.errors import SnapshotMismatchError, SwarmKVError
from swarmkv_lab.fanout.recorder import Recorder, Span
from swarmkv_lab.fanout.schedule import Branch, Schedule
from swarmkv_lab.fanout.strategies import strategy_named

_COLUMNS = ["worker", "process", "n_threads", "agents", "model_loads", "kv_bytes", "joined_ms", "gone_ms", "refused"]
_LOOK_EVERY_S = 0.2
_NOBODY_FOR_S = 60.0
_SLOW_S = 60.0  # loading a large model from a cold disk


class Coordinator:
    """``crew``: a row per worker: what it is, what it did, and why it is not there or takes no part. ``texts``:
    the answers by agent, once they have ended.

    engine: who runs tasks. exact: workers whose last bits would differ take no part. alike: nor those of
    another processor or number of threads.
    """

    def __init__(self, engine: Engine, recorder: Recorder, *, exact: bool = True, alike: bool = False) -> None:
        self.engine = engine
        self.recorder = recorder
        self.crew: dict[str, dict[str, Any]] = {}
        self.texts: dict[str, str] = {}
        self._how = exact, alike
        self._start = time.time() - recorder.now() / 1e3
        self._greetings: dict[Future, str] = {}
        self.at_work: dict[str, tuple[Sequence[str], float]] = {}
        self._captures: dict[int, Future] = {}
        self._captured: set[Future] = set()
        self._asked: dict[Future, list[Branch]] = {}
        self._queue: deque[list[Branch]] = deque()
        self._marks: deque[int] = deque()
        self._all_marks: list[int] = []
        self._attempt = 0
        self._careful = False
        self._may_have_waited: set[Future] = set()
        self._kind = ""
        self._seen_at = time.monotonic()
        self._look_at = 0.0

    # -- who takes part

    def gather(self, source: str | None, n_gpu_layers: int, model: str | None) -> Standing:
        """Greet the workers; what decides bits, as the model's hash says, or as most workers have it."""
        self._source = source, n_gpu_layers
        hellos: dict[str, Hello] = {}
        self._greet()
        since = time.monotonic()
        while self._greetings or not hellos:
            self._greet()
            for item in self._inbox():
                if not isinstance(item, tuple) and item in self._greetings:
                    worker = self._greetings.pop(item)
                    if hello := self._hello(worker, item):
                        hellos[worker] = hello
            if hellos and time.monotonic() - since > _SLOW_S:  # the others join when they answer
                break
            if self.crew and not (hellos or self._greetings):
                reasons = dict.fromkeys(row["refused"] for row in self.crew.values())
                raise SwarmKVError(f"no worker can take part: {'; '.join(reasons)}")
        able = [hello for hello in hellos.values() if model is None or hello.standing.model == model]
        if not able:
            theirs = sorted({hello.standing.model[:12] for hello in hellos.values()})
            raise SnapshotMismatchError(
                f"the model here is {str(model)[:12]}, and the workers' {', '.join(theirs)}: give all the same file"
            )
        self.standing = most_common(able)
        self._kind = "swarmkv-" + sha256(repr(self.standing).encode()).hexdigest()[:12]
        for worker, hello in hellos.items():
            self._welcome(worker, hello)
        return self.standing

    def _greet(self) -> None:
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        present = self.engine.workers()
        if present:
            self._seen_at = time.monotonic()
        elif time.monotonic() - self._seen_at > _NOBODY_FOR_S:
            raise SwarmKVError(f"no worker has been there for {_NOBODY_FOR_S:.0f} s: start some, and run again")
        for worker, row in self.crew.items():
            if row["takes"] and worker not in present and row["gone_ms"] is None:
                row["gone_ms"] = self.recorder.now()
                self._lost(worker)
        for worker, n in present.items():
            if worker not in self.crew:
                self.crew[worker] = _row(n)
                future = self.engine.submit(tasks.hello, *self._source, *self._how, worker=worker)
                self._greetings[future] = worker

    def _welcome(self, worker: str, hello: Hello) -> None:
        row = self.crew[worker]
        row |= {"process": hello.process, "n_threads": hello.n_threads}
        if difference := self.standing.differences(hello.standing):
            self._refuse(worker, f"it has {difference}")
            return
        try:
            row["ahead_s"] = self.engine.accept(worker, self._kind)
        except SwarmKVError as error:
            self._refuse(worker, str(error))
            return
        if not self._room:
            self._begin_again()
        row["joined_ms"] = self.recorder.now()

    def _refuse(self, worker: str, why: str) -> None:
        self.crew[worker]["refused"] = why
        warnings.warn(f"worker {worker} takes no part: {why}", stacklevel=6)

    def workers(self) -> pd.DataFrame:
        """``crew`` as a table; an Executor's processes have names from their first task on."""
        rows = [{"worker": worker, **row} for worker, row in self.crew.items()]
        named = [row for row in rows if not row["takes"]] or rows
        frame = pd.DataFrame(named, columns=_COLUMNS)
        return frame.astype({"joined_ms": float, "gone_ms": float})

    @property
    def _room(self) -> int:
        """Tasks that the accepted workers take at a time."""
        return sum(
            row["takes"] for row in self.crew.values() if row["joined_ms"] is not None and row["gone_ms"] is None
        )

    # -- what they do

    def each(self, task: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Run a task for each of these arguments, as workers become free: (which one, its result) as they end.

        Raises the first failure. When this is closed, nothing goes on.
        """
        left = deque(enumerate(calls))
        running: dict[Future, int] = {}
        try:
            while left or running:
                self._greet()
                while left and len(running) < self._room:
                    i, arguments = left.popleft()
                    running[self.engine.submit(task, *arguments, kind=self._kind)] = i
                for item in self._inbox():
                    if isinstance(item, tuple) or item not in running:
                        self._take(item)
                        continue
                    i = running.pop(item)
                    if error := self.engine.failure(item):
                        raise error
                    try:
                        result = self.engine.result(item)
                    except Gone:
                        left.append((i, calls[i]))
                    else:
                        yield i, result
        finally:
            if running:
                self.engine.cancel(running)

    def run(
        self,
        job: Job,
        schedule: Schedule,
        lane: str,
        *,
        together: int = 1,
        on_token: Callable[[str, int], None] | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Have every branch of a schedule answered.

        lane: the timeline's for what is done once for all. together: branches that are packed into one task, in their
        order, whatever the number of workers. on_token(name, token), changed(): called here as things come in.
        """
        self._job, self._schedule, self._lane, self._on_token = job, schedule, lane, on_token
        chosen = strategy_named(job.strategy)
        marks = {branch.n_prefix for branch in schedule.branches.values()}
        self._all_marks = [] if chosen.is_baseline else sorted(marks)
        self._marks = deque(self._all_marks)
        self._sorter = TopologicalSorter({name: schedule.after.get(name, ()) for name in schedule.branches})
        self._sorter.prepare()
        try:
            while self._sorter.is_active():
                self._greet()
                self._make_ready(together if chosen.packs else 1)
                self._give()
                for item in self._inbox():
                    self._take(item)
                    changed()
        finally:
            left = [*self._asked, *self._greetings, *(f for f in self._captures.values() if f not in self._captured)]
            if left:
                self.engine.cancel(left)
            self._captures.clear()

    def _make_ready(self, together: int) -> None:
        """Queue the branches that wait for no other one's answer any more."""
        while names := self._sorter.get_ready():
            live = []
            for name in names:
                branch = self._schedule.branches[name]
                self._schedule.begin(branch)
                if branch.error is None:
                    live.append(branch)
                else:
                    self._sorter.done(name)
            self._queue += [live[i : i + together] for i in range(0, len(live), together)]

    def _give(self) -> None:
        """Give tasks to free workers: first the document's next part, then agents whose part of it is there."""
        running = len(self._asked) + len(self._captures) - len(self._captured)
        if self._marks and len(self._captures) == len(self._captured) and running < self._room:
            mark = self._marks.popleft()
            before = [self.engine.argument(future) for future in list(self._captures.values())[-1:]]
            key = f"{self._kind}-capture-{_hash(self._job, mark)}-{self._attempt}"
            self._captures[mark] = self.engine.submit(tasks.capture, self._job, mark, *before, kind=self._kind, key=key)
            running += 1
        # While there is enough for all, each worker has its next task at hand; the last ones go to who is free first.
        ahead = 0 if self._careful else min(self._room, max(0, len(self._queue) - self._room))
        for group in list(self._queue):
            if running >= self._room + ahead:
                break
            capture = self._captures.get(group[0].n_prefix)
            if not strategy_named(self._job.strategy).is_baseline and capture not in self._captured:
                continue
            held = None if capture is None else self.engine.argument(capture)
            future = self.engine.submit(tasks.answer, replace(self._job, prompts={}), held, group, kind=self._kind)
            self._asked[future] = group
            if not self._careful:
                self._may_have_waited.add(future)
            self._queue.remove(group)
            running += 1

    def _take(self, item: Any) -> None:
        """What a task says, or brings back."""
        if isinstance(item, tuple):
            self._hear(*item)
        elif item in self._greetings:
            self._answered(item)
        elif item in self._asked:
            self._answer(item, self._asked.pop(item))
        elif item in self._captures.values():
            if error := self.engine.failure(item):
                raise SwarmKVError(f"the document could not be captured: {error}") from error
            try:
                done = self.engine.result(item)
            except Gone:
                self._capture_again(item)
            else:
                self._captured.add(item)
                self._record(done)

    def _hear(self, worker: str, message: Sequence[Any]) -> None:
        what, *about = message
        if what == "begin":
            self.at_work[worker] = (about[0], self.recorder.now())
        elif what == "tokens":
            for name, count, token in about[0]:
                self._token(name, count, token)

    def _answered(self, greeting: Future) -> None:
        worker = self._greetings.pop(greeting)
        if hello := self._hello(worker, greeting):
            self._welcome(worker, hello)

    def _hello(self, worker: str, greeting: Future) -> Hello | None:
        """What a worker says of itself, or None."""
        try:
            if (error := self.engine.failure(greeting)) is None:
                hello: Hello = self.engine.result(greeting)
                return hello
        except Gone as gone:
            error = gone
        self._refuse(worker, str(error))
        return None

    def _capture_again(self, lost: Future) -> None:
        mark = next(mark for mark, future in self._captures.items() if future is lost)
        self.engine.cancel([self._captures.pop(mark)])
        self._marks.appendleft(mark)
        self._attempt += 1

    def _begin_again(self) -> None:
        """After all workers have died: Dask keeps tasks for nobody, and does not look at them when somebody comes."""
        self.engine.cancel([*self._asked, *self._captures.values()])
        self._queue.extendleft(reversed(self._asked.values()))
        self._asked.clear()
        self._captures.clear()
        self._captured.clear()
        self._marks = deque(self._all_marks)
        self._attempt += 1

    def _token(self, name: str, count: int, token: int) -> None:
        branch = self._schedule.branches.get(name)
        if branch is None or branch.error or count != len(branch.tokens) + 1:  # again, after a worker's death
            return
        branch.tokens.append(token)
        self._tell(branch, token)

    def _tell(self, branch: Branch, token: int) -> None:
        if self._on_token:
            try:
                self._on_token(branch.name, token)
            except Exception as error:
                self._schedule.fail(branch, SwarmKVError(f"on_token raised {error!r}"))

    def _answer(self, future: Future, group: list[Branch]) -> None:
        if self.engine.killed(future) and future in self._may_have_waited:  # behind the one that did it
            self._careful = True
            self._queue.append(group)
            return
        error = self.engine.failure(future)
        if error is None:
            try:
                done: Done = self.engine.result(future)
            except Gone:
                self.engine.cancel([future])
                self._queue.appendleft(group)
                return
            self._record(done)
            for branch, its in zip(group, done.branches, strict=True):
                for token in its.tokens[len(branch.tokens) :]:  # that nobody has spoken of yet
                    branch.tokens.append(token)
                    self._tell(branch, token)
                branch.tokens[:] = its.tokens
                branch.logits = its.logits
                branch.error = branch.error or its.error
            self.texts |= done.texts
        for branch in group:
            if error is not None and branch.error is None:
                self._schedule.fail(branch, error)
            self._sorter.done(branch.name)

    def _record(self, done: Done) -> None:
        row = self.crew.setdefault(done.worker, _row(0) | {"joined_ms": self._start_of(done)})
        row["agents"] += len(done.branches)
        row["model_loads"] = max(row["model_loads"], done.model_loads)
        row["process"] = done.process
        self.at_work.pop(done.worker, None)
        to_ms = self._start_of(done) - 1e3 * row["ahead_s"]
        if to_ms < 0:  # a capture for another run, which goes on at the same time
            return
        for span in done.moved(to_ms, done.worker):
            self.recorder.spans.append(span._replace(agent=self._lane) if span.agent == PREFIX else span)
        row["kv_bytes"] = max(row["kv_bytes"], done.kv_bytes)
        self.recorder.kv_bytes = sum(row["kv_bytes"] for row in self.crew.values())
        for text in done.warnings:
            warnings.warn(f"worker {done.worker}: {text}", stacklevel=7)

    def _start_of(self, done: Done) -> float:
        """When a task began, by the worker's clock, in ms since the run's start."""
        return 1e3 * (done.started - self._start)

    def _lost(self, worker: str) -> None:
        """Draw what a worker did when it died: Dask gives it to another one."""
        names, since = self.at_work.pop(worker, ((), 0.0))
        for name in names:
            self.recorder.spans.append(Span(name, "lost", since, self.recorder.now(), 0, worker))

    def _inbox(self) -> Iterator[Any]:
        """What has come in, and after a while nothing."""
        with suppress(Empty):
            yield self.engine.inbox.get(timeout=_LOOK_EVERY_S)
            while True:
                yield self.engine.inbox.get_nowait()


def _row(takes: int) -> dict[str, Any]:
    """A worker of whom nothing is known yet."""
    return {"process": "", "n_threads": None, "agents": 0, "model_loads": 0, "kv_bytes": 0, "joined_ms": None,
            "gone_ms": None, "refused": "", "takes": takes, "ahead_s": 0.0}  # fmt: skip


def _hash(job: Job, n_tokens: int) -> str:
    """Of all that the snapshot of the document's first n_tokens depends on."""
    settings = replace(job.settings, n_ctx=None, n_threads=None, n_threads_batch=None)
    about = (job.standing, job.source, job.n_gpu_layers, settings, job.store, n_tokens)
    return sha256(repr(about).encode() + job.tokens[:n_tokens].tobytes()).hexdigest()[:32]
