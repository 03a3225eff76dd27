"""Tasks: what workers are asked to do. Each runs in a worker's process, one at a time, and brings back small things."""

import os
import platform
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from swarmkv_lab.cluster.job import ANY, Done, Held, Hello, Job, Standing
from swarmkv_lab.cluster.links import Link
from swarmkv_lab.cluster.resident import RESIDENT, ResidentRun, in_one_thread
from swarmkv_lab.cluster.store import Store
from swarmkv_lab.errors import SnapshotMismatchError
from swarmkv_lab.fanout.fan_out import Prompts, budget, named_prompts
from swarmkv_lab.fanout.recorder import Recorder
from swarmkv_lab.fanout.schedule import Branch, Schedule
from swarmkv_lab.fanout.strategies import strategy_named
from swarmkv_lab.fanout.timeline import PREFIX
from swarmkv_lab.llama.api import LLAMA_CPP_VERSION, build
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.identity import KVIdentity
from swarmkv_lab.snapshot.snapshot import KVSnapshot

_TELL_EVERY_S = 0.1


@in_one_thread
def hello(link: Link, source: str | None, n_gpu_layers: int, exact: bool, alike: bool) -> Hello:
    """Load the model, and say who this worker is. exact: to the last bit; alike: also how fast."""
    with RESIDENT.lock:
        standing = _standing(RESIDENT.model(source, n_gpu_layers), exact)
    if alike:
        standing = standing._replace(machine=f"{platform.processor()}, {link.n_threads()} threads")
    return Hello(standing, _process(), link.n_threads())


@in_one_thread
def prepare(link: Link, job: Job, prompts: Prompts, max_tokens: int, together: int) -> Job:
    """The job with the cells that its largest task needs, and each agent's tokens in it.

    together: agents that are packed into one decode. Raises ContextBudgetError before anything is decoded.
    """
    with RESIDENT.lock:
        return prepared(RESIDENT.model(job.source, job.n_gpu_layers), job, prompts, max_tokens, together)


def prepared(model: Model, job: Job, prompts: Prompts, max_tokens: int, together: int) -> Job:
    """As ``prepare``, where the model is open already."""
    n_tokens = len(model.check_tokens(job.tokens))
    named = named_prompts(model, prompts)
    lengths = {name: len(prompt) for name, prompt in named.items()}
    settings = sized(model, job.strategy, n_tokens, lengths, max_tokens, job.settings, together)
    return replace(job, settings=settings, prompts=named)


def sized(
    model: Model,
    strategy: str,
    n_tokens: int,
    lengths: Mapping[str, int],
    max_tokens: int,
    settings: ContextSettings,
    together: int,
) -> ContextSettings:
    """The settings with the cells that the largest task needs; arguments and errors as in budget."""
    chosen = strategy_named(strategy)
    names = sorted(lengths, key=lambda name: lengths[name], reverse=True)
    largest = names[: together if chosen.packs else len(names)]
    return budget(model, chosen, n_tokens, {name: lengths[name] for name in largest}, max_tokens, settings)


@in_one_thread
def capture(link: Link, job: Job, n_tokens: int) -> Done:
    """Have the document's first n_tokens in this process and in the store: found there, or prefilled."""
    with _working(link, job) as work:
        snapshot = _document(work, n_tokens, None)
        held = Held(RESIDENT.document[0], n_tokens, snapshot.nbytes, (link.address(),))
    return work.done(held=held)


@in_one_thread
def answer(link: Link, job: Job, held: Held | None, branches: Sequence[Branch]) -> Done:
    """The answers of agents that wait for nothing but the document, by the job's strategy. held: who has it.

    An agent's failure is in its branch; the others' answers are whole.
    """
    strategy = strategy_named(job.strategy)
    n_tokens = branches[0].n_prefix
    by_name = {branch.name: branch for branch in branches}
    with _working(link, job) as work:
        link.post("begin", list(by_name))
        run = ResidentRun(
            work.model,
            job.tokens[:n_tokens],
            Schedule(branches, tolerant=True),
            strategy.name,
            work.settings,
            packed=strategy.packs,
            snapshot=None if strategy.is_baseline else _document(work, n_tokens, held),
            callback=lambda run: link.require_wanted(),
            on_token=_Telling(link, by_name).take if job.tells else None,
            recorder=work.recorder,
        )
        strategy.answer(run)
        texts = run.ended().answers
    return work.done(branches=branches, texts=texts)


class _Telling:
    """Tells of tokens as they come, some at a time: each message costs the worker and the scheduler some work."""

    def __init__(self, link: Link, branches: Mapping[str, Branch]) -> None:
        self._link, self._branches = link, branches
        self._untold: list[tuple[str, int, int]] = []
        self._told_at = time.monotonic()

    def take(self, name: str, token: int) -> None:
        """The next token of an agent. Those that are left untold at the end come with the answer."""
        self._untold.append((name, len(self._branches[name].tokens), token))
        if time.monotonic() - self._told_at > _TELL_EVERY_S:
            self._link.post("tokens", self._untold)
            self._untold, self._told_at = [], time.monotonic()


@dataclass(frozen=True)
class _Work:
    """One task's work."""

    link: Link
    job: Job
    model: Model
    recorder: Recorder
    started: float
    told: list[warnings.WarningMessage]

    @property
    def settings(self) -> ContextSettings:
        """The job's, with this worker's share of the cores."""
        settings = self.job.settings
        return replace(settings, n_threads=settings.n_threads or self.link.n_threads())

    def done(self, **brought: Any) -> Done:
        """What the task brings back."""
        return Done(
            worker=self.link.address(),
            process=_process(),
            started=self.started,
            spans=self.recorder.so_far(),
            kv_bytes=self.recorder.kv_bytes,
            model_loads=RESIDENT.loads,
            warnings=tuple(dict.fromkeys(str(one.message) for one in self.told)),
            **brought,
        )


@contextmanager
def _working(link: Link, job: Job) -> Iterator[_Work]:
    """One task at a time in this process, on the run's own model."""
    with RESIDENT.lock, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        recorder, started = Recorder(), time.time()
        model = RESIDENT.model(job.source, job.n_gpu_layers)
        mine = _standing(model, job.standing.instructions != ANY)._replace(machine=job.standing.machine)
        if difference := job.standing.differences(mine):
            raise SnapshotMismatchError(f"worker {link.address()} has {difference}: it cannot take part")
        link.require_wanted()
        yield _Work(link, job, model, recorder, started, told)


def _document(work: _Work, n_tokens: int, held: Held | None) -> KVSnapshot:
    """The snapshot of the document's first n_tokens: at hand, from the store, from another worker, or prefilled."""
    tokens = work.job.tokens[:n_tokens]
    settings = replace(work.settings, n_ctx=n_tokens, n_seq_max=1)
    store = Store(work.model, settings, work.job.store)
    name = store.name(tokens)
    at_hand, snapshot = RESIDENT.document
    if snapshot is not None and at_hand in (name, held.name if held else name):
        return snapshot
    shorter = snapshot if snapshot is not None and store.goes_on_from(snapshot, at_hand, tokens) else None
    RESIDENT.let_go()
    phase = work.recorder.phase
    with phase([PREFIX], "load"):
        found = store.find(tokens) or shorter
    if found is not None and len(found.tokens) == n_tokens:
        return RESIDENT.hold(name, found)
    if held is not None:
        with phase([PREFIX], "fetch", held.nbytes):
            fetched = work.link.fetch(held)
        if fetched is not None:
            fetched.identity.require(KVIdentity.asked_for(work.model, settings))
            if not np.array_equal(fetched.tokens, tokens):
                raise SnapshotMismatchError(f"another worker sent other tokens than those of {held.name}")
            store.keep_later(fetched)
            return RESIDENT.hold(held.name, fetched)
    with phase([PREFIX], "prefill"), work.model.open_context(settings) as ctx:
        ctx.callback = work.link.require_wanted
        if found is not None:
            found.restore(ctx)
            ctx.truncate(store.usable(len(found.tokens), n_tokens))
        ctx.decode(tokens[ctx.n_past() :])
        snapshot = KVSnapshot.capture(ctx, tokens)
    with phase([PREFIX], "capture", snapshot.nbytes):
        store.keep(snapshot)
    return RESIDENT.hold(name, snapshot)


def _standing(model: Model, exact: bool) -> Standing:
    return Standing(model.content_hash, LLAMA_CPP_VERSION, build() if exact else ANY, ANY)


def _process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
