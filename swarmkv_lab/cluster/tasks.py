"""Tasks: what Dask's workers do: say who they are, capture the document, answer agents. A model stays loaded."""

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from distributed import get_worker

from swarmkv_lab.errors import SnapshotMismatchError, SwarmKVError
from swarmkv_lab.fanout.fan_out import Prompts, budget, named_prompts
from swarmkv_lab.fanout.recorder import Recorder, Span
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch, Schedule
from swarmkv_lab.fanout.strategies import strategy_named
from swarmkv_lab.fanout.timeline import PREFIX
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


def hello(source: str | None, n_gpu_layers: int, exact: bool) -> Hello:
    """Load the model, and say who this worker is."""
    n_threads = get_worker().state.nthreads
    identity = _in_one_thread(lambda: _identity(_RESIDENT.model(source, n_gpu_layers), exact))
    return Hello(identity, f"{socket.gethostname()}:{os.getpid()}", n_threads)


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


def capture(job: Job) -> tuple[KVSnapshot, Done]:
    """The document prefilled and captured: Dask keeps the result, moves it between workers, and makes it again."""
    worker, wanted, settings = _about(job)

    def work() -> tuple[KVSnapshot, Done]:
        model, recorder, started = _model(job), Recorder(), time.time()
        own = replace(settings, n_ctx=len(job.tokens), n_seq_max=1)
        with recorder.phase([PREFIX], "prefill"), model.open_context(own) as ctx:
            ctx.callback = wanted
            ctx.decode(job.tokens)
            snapshot = KVSnapshot.capture(ctx, job.tokens)
        return snapshot, Done(worker, (), {}, started, recorder.spans, snapshot.nbytes, _RESIDENT.loads)

    return _in_one_thread(work)


def answer(job: Job, captured: tuple[KVSnapshot, Done] | None, branches: Sequence[Branch]) -> Done:
    """The answers of some agents, by the job's strategy; an agent's failure is in its branch.

    A snapshot that has come from another worker is checked as its bytes arrive (KVSnapshot), and here its identity.
    """
    worker, wanted, settings = _about(job)
    strategy = strategy_named(job.strategy)

    def work() -> Done:
        model, recorder, started = _model(job), Recorder(), time.time()
        snapshot = captured[0] if captured else None
        if snapshot is not None and not np.array_equal(snapshot.tokens, job.tokens):
            raise SnapshotMismatchError(f"the snapshot is of {len(snapshot.tokens):,} other tokens than the run's")
        run = Run(
            model,
            job.tokens,
            Schedule(branches, tolerant=True),
            strategy.name,
            settings,
            packed=strategy.packs,
            snapshot=snapshot,
            callback=lambda run: wanted(),
            recorder=recorder,
        )
        strategy.answer(run)
        texts = run.ended().answers
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
    """The run's own model, or SnapshotMismatchError."""
    model = _RESIDENT.model(job.source, job.n_gpu_layers)
    mine = _identity(model, exact=bool(job.identity.build))
    if mine != job.identity:
        raise SnapshotMismatchError(f"this worker has {mine}, and the run {job.identity}: it cannot take part")
    return model


def _identity(model: Model, exact: bool) -> Identity:
    return Identity(model.content_hash, build() if exact else "")
