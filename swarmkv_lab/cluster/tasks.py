"""Tasks: what Dask's workers do: say who they are, capture the document, answer agents. A model stays loaded."""

import asyncio
import os
import pickle
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from distributed import Worker, get_worker

from swarmkv_lab.errors import SnapshotMismatchError, SwarmKVError
from swarmkv_lab.fanout.fan_out import Prompts, answered, budget, named_prompts
from swarmkv_lab.fanout.recorder import Recorder, Span
from swarmkv_lab.fanout.run import Run
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


class WorkerInfo(NamedTuple):
    """Who a worker is."""

    address: str
    identity: Identity
    process: str
    n_threads: int
    model_loads: int


@dataclass(frozen=True)
class Job:
    """What all tasks of a run are told. identity, tokens: once they are known."""

    source: str | None
    n_gpu_layers: int
    exact: bool
    strategy: str
    settings: ContextSettings
    identity: Identity | None = None
    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))


class UnfitWorkerError(SnapshotMismatchError):
    """A worker that has come later was given a task, and is not like those of the run: another one can do it."""


class TaskRecord(NamedTuple):
    """What a task has done."""

    worker: WorkerInfo
    began: float
    """time.time() at its start"""
    spans: list[Span]
    kv_bytes: int
    branches: Sequence[Branch] = ()


class Captured(NamedTuple):
    """The document's snapshot on its way between workers: a pickle and its buffer, checked by the task that needs them.

    Not by Dask: a result that it cannot unpickle stops the worker that asked for it, without an error
    (dask/distributed#6705).
    """

    record: TaskRecord
    pickled: bytes
    state: np.ndarray


_models: dict[tuple[str | None, int], Model] = {}  # the one that is open, by its source and layers on the GPU
_loads: list[tuple[str | None, int]] = []  # all that were, in their order
_ONE_THREAD = ThreadPoolExecutor(1, "swarmkv")
"""the one that uses it: OpenMP keeps a team for each that does, and more threads than cores sleep at every barrier"""


async def identify(job: Job, dask_worker: Worker) -> WorkerInfo:
    """Load the model, and say who this worker is."""
    return await asyncio.wrap_future(_ONE_THREAD.submit(_info, job, dask_worker))


def prepare(
    job: Job, document: Any, prompts: Prompts, max_tokens: int, together: int
) -> tuple[Job, dict[str, np.ndarray]]:
    """The job with the document's tokens, checked, and the cells that the largest task needs; and each agent's tokens.

    Raises ContextBudgetError before anything is decoded.
    """

    def work(model: Model, *_: object) -> tuple[Job, dict[str, np.ndarray]]:
        tokens, named = model.check_tokens(document), named_prompts(model, prompts)
        largest = dict(sorted(((name, len(ids)) for name, ids in named.items()), key=lambda one: -one[1])[:together])
        sized = budget(model, strategy_named(job.strategy), len(tokens), largest, max_tokens, job.settings)
        return replace(job, tokens=tokens, settings=sized), named

    return _in_one_thread(job, work)[0]


def capture(job: Job) -> Captured:
    """The document prefilled and captured: Dask keeps the result, moves it between workers, and makes it again."""

    def work(model: Model, settings: ContextSettings, wanted: Callable[[], None]) -> tuple[KVSnapshot, Recorder]:
        own, recorder = replace(settings, n_ctx=len(job.tokens), n_seq_max=1), Recorder()
        with recorder.phase(None, "prefill"), model.open_context(own) as ctx:
            ctx.callback = wanted
            ctx.decode(job.tokens)
            return KVSnapshot.capture(ctx, job.tokens), recorder

    buffers: list[Any] = []
    (snapshot, did), worker = _in_one_thread(job, work)
    pickled = pickle.dumps(snapshot, protocol=5, buffer_callback=buffers.append)
    record = TaskRecord(worker, did.began, did.spans, snapshot.nbytes)
    return Captured(record, pickled, np.frombuffer(buffers[0], np.uint8))


def answer(job: Job, captured: Captured | None, branches: Sequence[Branch]) -> list[TaskRecord]:
    """The answers of some agents, by the job's strategy, and what came before; an agent's failure is in its branch.

    Raises SnapshotCorruptError or SnapshotMismatchError for a snapshot that is damaged, or another document's.
    """

    def work(model: Model, settings: ContextSettings, wanted: Callable[[], None]) -> Run:
        snapshot: KVSnapshot | None = pickle.loads(captured.pickled, buffers=[captured.state]) if captured else None
        if snapshot is not None and not np.array_equal(snapshot.tokens, job.tokens):
            raise SnapshotMismatchError(f"the snapshot is of {len(snapshot.tokens):,} other tokens than the run's")
        how = model, job.tokens, Schedule(branches, tolerant=True), strategy_named(job.strategy), settings
        return answered(*how, snapshot=snapshot, callback=lambda run: wanted())

    run, worker = _in_one_thread(job, work)
    record = TaskRecord(worker, run.began, run.spans, run.kv_bytes, branches)
    return [captured.record, record] if captured else [record]


def _in_one_thread(job: Job, work: Callable[..., _Result]) -> tuple[_Result, WorkerInfo]:
    """What work gives, done with the run's own model, and who this worker is.

    work is given the model, settings with this worker's threads, and a check that raises when nobody waits for the task
    any more. Raises UnfitWorkerError where this worker has another model, or another llama.cpp.
    """
    worker = get_worker()
    key = worker.get_current_task()
    settings = replace(job.settings, n_threads=job.settings.n_threads or worker.state.nthreads)

    def wanted() -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise SwarmKVError("the run was ended: nobody waits for this answer")

    def run() -> tuple[_Result, WorkerInfo]:
        info = _info(job, worker)
        if info.identity != job.identity:
            raise UnfitWorkerError(f"this worker has {info.identity}, and the run {job.identity}: it cannot take part")
        return work(_model(job), settings, wanted), info

    return _ONE_THREAD.submit(run).result()


def _model(job: Job) -> Model:
    """The job's model, loaded once; again where its file is another one now."""
    asked = job.source, job.n_gpu_layers
    if asked not in _models or not _models[asked].is_current:
        for other in list(_models):
            _models.pop(other).close()
        _models[asked] = load_model(job.source, n_gpu_layers=job.n_gpu_layers)
        _loads.append(asked)
    return _models[asked]


def _info(job: Job, worker: Worker) -> WorkerInfo:
    identity = Identity(_model(job).content_hash, build() if job.exact else "")
    process = f"{socket.gethostname()}:{os.getpid()}"
    return WorkerInfo(worker.address, identity, process, worker.state.nthreads, len(_loads))
