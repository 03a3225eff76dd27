"""Coordinator: gives a run's work to workers as they become free, and takes what they bring back."""

import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter
from hashlib import sha256
from typing import Any

from swarmkv_lab.cluster import tasks
from swarmkv_lab.cluster.crew import Crew, Member
from swarmkv_lab.cluster.engines import Broken, Engine, Future, Gone
from swarmkv_lab.cluster.job import Done, Held, Job
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.recorder import Recorder, Span
from swarmkv_lab.fanout.schedule import Branch, Schedule
from swarmkv_lab.fanout.strategies import strategy_named
from swarmkv_lab.fanout.timeline import PREFIX

DEATHS = 3
"""of workers that were at one task: then it is the task's failure"""


class Coordinator:
    """``crew``: the workers. ``texts``: the answers by agent, once they have ended.

    ``at_work``: the agents that each worker is answering, and since when (ms). Arguments as Crew's.
    """

    def __init__(self, engine: Engine, recorder: Recorder, *, exact: bool = True) -> None:
        self.crew = Crew(engine, recorder, exact=exact, lost=self._lost)
        self.recorder = recorder
        self.texts: dict[str, str] = {}
        self.at_work: dict[str, tuple[Sequence[str], float]] = {}
        self._engine = engine
        self._start = time.time() - recorder.now() / 1e3
        self._queue: deque[list[Branch]] = deque()
        self._asked: dict[Future, list[Branch]] = {}
        self._marks: deque[int] = deque()
        self._capture: tuple[Future, int] | None = None
        self._tries: Counter[int] = Counter()
        self._held: dict[int, Held] = {}
        self._holders: dict[int, set[str]] = {}
        self._deaths: Counter[str | int] = Counter()

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
        strategy = strategy_named(job.strategy)
        self._needs_document = not strategy.is_baseline
        if self._needs_document:
            self._marks = deque(sorted({branch.n_prefix for branch in schedule.branches.values()}))
        self._sorter = TopologicalSorter({name: schedule.after.get(name, ()) for name in schedule.branches})
        self._sorter.prepare()
        try:
            while self._sorter.is_active():
                self._make_ready(together if strategy.packs else 1)
                self._give()
                for item in self.crew.inbox():
                    if isinstance(item, tuple):
                        self._hear(*item)
                    elif item in self._asked:
                        self._take_answer(item, self._asked.pop(item))
                    elif self._capture is not None and item is self._capture[0]:
                        self._take_capture(*self._capture)
                    changed()
        finally:
            self.crew.cancel([*self._asked, *([self._capture[0]] if self._capture else [])])

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
        before = self._holders.get(max(self._held, default=0), set())  # who has the longest part goes on from it
        if self._marks and self._capture is None and (worker := self.crew.free(before)):
            mark = self._marks.popleft()
            # Runs that ask for it at the same time share it. A lost one is asked for under another name: Dask takes a
            # name that it knows for the task that it has, which waits for a worker that has died.
            self._tries[mark] += 1
            key = f"swarmkv-capture-{_hash(self._job, mark)}-{worker}-{self._tries[mark]}"
            self._capture = self.crew.give(worker, tasks.capture, self._job, mark, key=key), mark
            first = next((group for group in self._queue if group[0].n_prefix == mark), None)
            if first is not None and not self._deaths:  # it waits behind the capture, and has no way to the document
                self._ask(worker, first, None)
        # While there is enough for all, each worker has its next task at hand; the last ones go to who is free first.
        # Once a worker has died each has one task, so that it is known which one ends workers.
        for group in list(self._queue):
            mark = group[0].n_prefix
            if self._needs_document and mark not in self._held:
                continue
            holders = self._holders.get(mark, set())
            room = self.crew.room
            ahead = not self._deaths and (len(self._queue) > room or room == 1)
            worker = self.crew.free(holders, ahead=int(ahead))
            if worker is None:
                return
            self._ask(
                worker, group, replace(self._held[mark], workers=tuple(holders)) if self._needs_document else None
            )

    def _ask(self, worker: str, group: list[Branch], held: Held | None) -> None:
        self._queue.remove(group)
        fresh = [replace(branch, tokens=[], logits=None) for branch in group]  # also of one who has died over it
        self._asked[self.crew.give(worker, tasks.answer, replace(self._job, prompts={}), held, fresh)] = group

    def _take_capture(self, future: Future, mark: int) -> None:
        self._capture = None
        try:
            done: Done = self._engine.result(future)
        except Gone:
            self._marks.appendleft(mark)
            return
        except SwarmKVError as error:
            raise SwarmKVError(f"the document could not be captured: {error}") from error
        assert done.held is not None
        self._held[mark] = done.held
        self._holders[mark] = {done.worker}
        self._record(done)

    def _take_answer(self, future: Future, group: list[Branch]) -> None:
        error: SwarmKVError | None = None
        try:
            done: Done = self._engine.result(future)
        except Gone:
            self._queue.appendleft(group)
            return
        except Broken:
            raise
        except SwarmKVError as failure:
            error = failure
        else:
            self._record(done)
            if self._needs_document:
                self._holders.setdefault(group[0].n_prefix, set()).add(done.worker)
            for branch, its in zip(group, done.branches, strict=True):
                for token in its.tokens[len(branch.tokens) :]:  # that nobody has spoken of yet
                    branch.tokens.append(token)
                    self._tell(branch, token)
                branch.tokens[:] = its.tokens
                branch.logits = its.logits
                branch.error = branch.error or its.error
            self.texts |= done.texts
        self._end(group, error)

    def _end(self, group: Sequence[Branch], error: SwarmKVError | None = None) -> None:
        for branch in group:
            if error is not None and branch.error is None:
                self._schedule.fail(branch, error)
            self._sorter.done(branch.name)

    def _hear(self, worker: str, message: Sequence[Any]) -> None:
        what, *about = message
        if what == "begin":
            self.at_work[worker] = (about[0], self.recorder.now())
        elif what == "tokens":
            for name, count, token in about[0]:
                branch = self._schedule.branches.get(name)
                # a worker may say again what one said that has died
                if branch is not None and branch.error is None and count == len(branch.tokens) + 1:
                    branch.tokens.append(token)
                    self._tell(branch, token)

    def _tell(self, branch: Branch, token: int) -> None:
        if self._on_token:
            try:
                self._on_token(branch.name, token)
            except Exception as error:
                self._schedule.fail(branch, SwarmKVError(f"on_token raised {error!r}"))

    def _record(self, done: Done) -> None:
        began = 1e3 * (done.started - self._start)
        member = self.crew.members.setdefault(done.worker, Member(0, joined_ms=began))
        member.process = done.process
        member.agents += len(done.branches)
        member.model_loads = max(member.model_loads, done.model_loads)
        member.kv_bytes = max(member.kv_bytes, done.kv_bytes)
        self.recorder.kv_bytes = sum(one.kv_bytes for one in self.crew.members.values())
        self.at_work.pop(done.worker, None)
        for text in done.warnings:
            warnings.warn(f"worker {done.worker}: {text}", stacklevel=7)
        to_ms = began - 1e3 * member.ahead_s
        if to_ms >= 0:  # else a capture for another run that goes on at the same time
            for span in done.moved(to_ms, done.worker):
                self.recorder.spans.append(span._replace(agent=self._lane) if span.agent == PREFIX else span)

    def _lost(self, worker: str, member: Member) -> None:
        """A worker has died: what it worked on, what waited there, and what it alone held is done again elsewhere."""
        names, since = self.at_work.pop(worker, ((), 0.0))
        for name in names:
            self.recorder.spans.append(Span(name, "lost", since, self.recorder.now(), 0, worker))
        for future in reversed(member.tasks):
            guilty = future is member.tasks[0]
            if self._capture is not None and future is self._capture[0]:
                mark = self._capture[1]
                self._capture = None
                self._marks.appendleft(mark)
                if guilty:
                    self._blame(mark, "the capture of the document")
            elif group := self._asked.pop(future, None):
                try:
                    if guilty:
                        self._blame(group[0].name, "it")
                    self._queue.appendleft(group)
                except SwarmKVError as error:
                    self._end(group, error)
        for mark, holders in self._holders.items():
            holders.discard(worker)
            if not holders and mark in self._held:
                del self._held[mark]
                self._marks.appendleft(mark)

    def _blame(self, who: str | int, what: str) -> None:
        self._deaths[who] += 1
        if self._deaths[who] >= DEATHS:
            raise SwarmKVError(f"{what} ended each of the {DEATHS} workers that tried it")


def _hash(job: Job, n_tokens: int) -> str:
    """Of all that the snapshot of the document's first n_tokens depends on."""
    settings = replace(job.settings, n_ctx=None, n_threads=None, n_threads_batch=None)
    about = (job.standing, job.source, job.n_gpu_layers, settings, job.store, n_tokens)
    return sha256(repr(about).encode() + job.tokens[:n_tokens].tobytes()).hexdigest()[:32]
