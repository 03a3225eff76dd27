"""Tasks: what Dask's workers do: say who they are, capture the document, answer agents. A model stays loaded."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from distributed import Worker, get_worker

from swarmkv_lab.errors import SnapshotMismatchError, SwarmKVError
from swarmkv_lab.fanout.fan_out import Prompts, answered, budget, named_prompts
from swarmkv_lab.fanout.recorder import PREFIX, Recorder, Span
from swarmkv_lab.fanout.schedule import Branch, Schedule
from swarmkv_lab.fanout.strategies import strategy_named
from swarmkv_lab.llama.api import build
from swarmkv_lab.llama.loading import load_model
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.snapshot import KVSnapshot

_Result = TypeVar("_Result")


class Identity(NamedTuple):
    """What must agree between workers, so that their answers are the same to the bit."""

    model: str
    """Model.content_hash"""
    build: str
    """llama.cpp's version and instruction set; "" where the last bits may differ"""


class Hello(NamedTuple):
    """Who a worker is."""

    identity: Identity
    process: str
    n_threads: int


@dataclass(frozen=True)
class Job:
    """What all tasks of a run are told."""

    source: str | None
    n_gpu_layers: int
    identity: Identity
    tokens: np.ndarray
    strategy: str
    settings: ContextSettings


class Stranger(SnapshotMismatchError):
    """A worker that has come later was given a task, and is not like those of the run: another one can do it."""


class Done(NamedTuple):
    """What a task of answers brings back."""

    worker: str
    branches: Sequence[Branch]
    texts: dict[str, str]
    started: float
    """time.time() at its start"""
    spans: list[Span]
    kv_bytes: int
    model_loads: int


@dataclass(eq=False)
class Captured:
    """The document's snapshot on its way between workers: its parts, checked by the task that needs them.

    Not while they are unpickled: a result that Dask cannot unpickle stops the worker that asked for it, without an
    error (dask/distributed#6705). For the same reason what cannot be pickled is refused here, by SwarmKVError.
    """

    done: Done

    def __init__(self, snapshot: KVSnapshot, done: Done) -> None:
        self._made_of, (*self._begins, _) = snapshot.__reduce_ex__(5)
        self._data, self._snapshot, self.done = snapshot.data, snapshot, done

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_snapshot": None}

    def snapshot(self) -> KVSnapshot:
        """The snapshot, checked once in each process. Raises SnapshotCorruptError."""
        if self._snapshot is None:
            self._snapshot = self._made_of(*self._begins, self._data)
        return self._snapshot


class _Resident:
    """This process's model, and the one thread that uses it.

    OpenMP keeps a team for each thread that has called llama.cpp, and more threads than cores sleep at every barrier.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "swarmkv")
        self.loads = 0
        self._model: Model | None = None
        self._loaded: tuple[str | None, int] | None = None

    def model(self, source: str | None, n_gpu_layers: int) -> Model:
        """The model behind a source, loaded once; again where its file is another one now."""
        if self._model is None or self._loaded != (source, n_gpu_layers) or not self._model.is_current:
            if self._model is not None:
                self._model.close()
            self._model, self._loaded = load_model(source, n_gpu_layers=n_gpu_layers), (source, n_gpu_layers)
            self.loads += 1
        return self._model


_RESIDENT = _Resident()
_MAKING = threading.Lock()  # Dask may give a process several threads


def _in_one_thread(work: Callable[[], _Result]) -> _Result:
    with _MAKING:
        return _RESIDENT.thread.submit(work).result()


async def hello(source: str | None, n_gpu_layers: int, exact: bool, dask_worker: Worker) -> Hello:
    """Load the model, and say who this worker is."""
    load = lambda: _identity(_RESIDENT.model(source, n_gpu_layers), exact)  # noqa: E731
    identity = await asyncio.to_thread(_in_one_thread, load)
    return Hello(identity, f"{socket.gethostname()}:{os.getpid()}", dask_worker.state.nthreads)


def prepare(
    job: Job, prompts: Prompts, max_tokens: int, together: int
) -> tuple[ContextSettings, dict[str, np.ndarray]]:
    """The settings with the cells that the largest task needs, and each agent's tokens. Errors as ``prepared``."""
    return _in_one_thread(
        lambda: prepared(_RESIDENT.model(job.source, job.n_gpu_layers), job, prompts, max_tokens, together)
    )


def prepared(
    model: Model, job: Job, prompts: Prompts, max_tokens: int, together: int
) -> tuple[ContextSettings, dict[str, np.ndarray]]:
    """As ``prepare``, with a model that is open. Raises ContextBudgetError before anything is decoded."""
    n_tokens = len(model.check_tokens(job.tokens))
    named = named_prompts(model, prompts)
    longest_first = sorted(named, key=lambda name: len(named[name]), reverse=True)
    largest = {name: len(named[name]) for name in longest_first[:together]}
    return budget(model, strategy_named(job.strategy), n_tokens, largest, max_tokens, job.settings), named


def capture(job: Job) -> Captured:
    """The document prefilled and captured: Dask keeps the result, moves it between workers, and makes it again."""
    worker, wanted, settings = _about(job)

    def work() -> Captured:
        model, recorder, started = _model(job), Recorder(), time.time()
        own = replace(settings, n_ctx=len(job.tokens), n_seq_max=1)
        with recorder.phase([PREFIX], "prefill"), model.open_context(own) as ctx:
            ctx.callback = wanted
            ctx.decode(job.tokens)
            snapshot = KVSnapshot.capture(ctx, job.tokens)
        done = Done(worker, (), {}, started, recorder.spans, snapshot.nbytes, _RESIDENT.loads)
        return Captured(snapshot, done)

    return _in_one_thread(work)


def answer(job: Job, captured: Captured | None, branches: Sequence[Branch]) -> Done:
    """The answers of some agents, by the job's strategy; an agent's failure is in its branch.

    Raises SnapshotCorruptError or SnapshotMismatchError for a snapshot that is damaged, or another document's.
    """
    worker, wanted, settings = _about(job)
    strategy = strategy_named(job.strategy)

    def work() -> Done:
        model, recorder, started = _model(job), Recorder(), time.time()
        snapshot = captured.snapshot() if captured else None
        if snapshot is not None and not np.array_equal(snapshot.tokens, job.tokens):
            raise SnapshotMismatchError(f"the snapshot is of {len(snapshot.tokens):,} other tokens than the run's")
        plan = Schedule(branches, tolerant=True)
        about: dict[str, Any] = {"snapshot": snapshot, "callback": lambda run: wanted(), "recorder": recorder}
        texts = answered(model, job.tokens, plan, strategy, settings, **about).answers
        return Done(worker, branches, texts, started, recorder.so_far(), recorder.kv_bytes, _RESIDENT.loads)

    return _in_one_thread(work)


def _about(job: Job) -> tuple[str, Callable[[], None], ContextSettings]:
    """This worker's address; a check that raises when nobody waits for the task any more; settings with its threads."""
    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise SwarmKVError("the run was ended: nobody waits for this answer")

    return worker.address, wanted, replace(job.settings, n_threads=job.settings.n_threads or worker.state.nthreads)


def _model(job: Job) -> Model:
    """The run's own model. Raises Stranger where this worker has another one, or another llama.cpp."""
    model = _RESIDENT.model(job.source, job.n_gpu_layers)
    mine = _identity(model, exact=bool(job.identity.build))
    if mine != job.identity:
        raise Stranger(f"this worker has {mine}, and the run {job.identity}: it cannot take part")
    return model


def _identity(model: Model, exact: bool) -> Identity:
    return Identity(model.content_hash, build() if exact else "")
