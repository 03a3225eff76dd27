"""fan_out on a cluster: the snapshot is a task's result, agents are tasks, and Dask does the rest.

Dask places tasks, moves the snapshot to the workers that need it, runs what a dead worker had to do again on another
one, and makes the snapshot again if all copies are lost.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import ModelNotFoundError, SnapshotMismatchError, SwarmKVError, whole_number
from swarmkv_lab.fanout.fan_out import Prompts
from swarmkv_lab.fanout.outcome import Outcome
from swarmkv_lab.fanout.recorder import Recorder
from swarmkv_lab.fanout.schedule import Branch, Schedule
from swarmkv_lab.fanout.strategies import STRATEGIES, Strategy, strategy_named
from swarmkv_lab.fanout.timeline import PREFIX
from swarmkv_lab.files import user_path
from swarmkv_lab.llama.loading import model_path
from swarmkv_lab.llama.model import Model, content_hash
from swarmkv_lab.llama.sampling import GREEDY, Sampling
from swarmkv_lab.llama.settings import MAX_SEQUENCES, ContextSettings
from swarmkv_lab.progress import tqdm

if TYPE_CHECKING:  # Dask is an extra, and takes half a second to import
    from distributed import Client, Future

    from swarmkv_lab.cluster.tasks import Done, Hello, Job


@dataclass(eq=False)
class ClusterRun(Outcome):
    """An Outcome of many processes: ``timeline`` has a column worker."""

    schedule: Schedule
    strategy: str
    packed: bool
    n_tokens: int
    """of the document"""
    recorder: Recorder = field(default_factory=Recorder)
    hellos: "dict[str, Hello]" = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    done: "list[Done]" = field(default_factory=list)
    _texts: dict[str, str] = field(default_factory=dict)
    _began: float = field(default_factory=time.time)

    @property
    def depth(self) -> int:
        """Tokens of the document."""
        return self.n_tokens

    @property
    def answers(self) -> dict[str, str]:
        """The answers' text by agent; empty until an agent has ended."""
        return {branch.name: self._texts.get(branch.name, "") for branch in self.branches}

    @property
    def workers(self) -> pd.DataFrame:
        """A row per worker: worker, process, n_threads, agents answered, model_loads, and why it was refused."""
        rows = []
        for worker in dict.fromkeys([*self.hellos, *(done.worker for done in self.done)]):
            hello, work = self.hellos.get(worker), [done for done in self.done if done.worker == worker]
            rows.append(
                {
                    "worker": worker,
                    "process": hello.process if hello else "",
                    "n_threads": hello.n_threads if hello else 0,
                    "agents": sum(len(done.branches) for done in work),
                    "model_loads": max((done.model_loads for done in work), default=0),
                    "refused": self.refused.get(worker, ""),
                }
            )
        return pd.DataFrame(rows)

    @property
    def metrics(self) -> dict[str, Any]:
        """As Outcome.metrics; and n_workers that worked, and prefills of the document.

        kv_bytes is the sum of the workers' peaks.
        """
        peaks = pd.Series({done.worker: 0 for done in self.done}, dtype="int64")
        for done in self.done:
            peaks[done.worker] = max(peaks[done.worker], done.kv_bytes)
        prefills = sum(span.agent == PREFIX and span.phase == "prefill" for span in self.recorder.spans)
        return super().metrics | {"kv_bytes": int(peaks.sum()), "n_workers": len(peaks), "prefills": prefills}

    def take(self, done: "Done") -> None:
        """What a task has brought back, its times on this run's clock."""
        took = max((span.end_ms for span in done.spans), default=0.0)
        shift = max(0.0, min(1e3 * (done.started - self._began), self.recorder.now() - took))  # clocks may differ
        for span in done.spans:
            moved = span._replace(start_ms=span.start_ms + shift, end_ms=span.end_ms + shift, worker=done.worker)
            self.recorder.spans.append(moved)
        for branch in done.branches:
            self.schedule.branches[branch.name].__dict__.update(vars(branch))
        self._texts |= done.texts
        self.done.append(done)


def fan_out(
    client: "Client",
    model_source: str | Path | Model | None,
    tokens: Sequence[int] | np.ndarray,
    agents: Prompts,
    strategy: str | Strategy = "shared",
    *,
    max_tokens: int = 32,
    sampling: Sampling = GREEDY,
    n_ctx: int | None = None,
    n_gpu_layers: int = -1,
    together: int = 8,
    exact: bool = True,
    callback: Callable[[ClusterRun], None] | None = None,
    progress: bool = True,
    **settings: Any,
) -> ClusterRun:
    """All agents answer over one document on a Dask cluster: as lab.fan_out, with the same answers to the bit.

    model_source: as load_model takes it, on each worker's machine; or a Model that is open here. together: at most so
    many agents are one task (batched packs just these into one decode). exact: only workers with the same llama.cpp for
    the same instruction set take part; False: the last bits may differ. n_threads: by default Dask's threads per
    worker. callback: called with the run when some agents' answers have come; what it raises ends the run, as an
    interrupt does, and nothing goes on in the workers.
    An agent that fails, or whose worker dies each time, is in the run's ``errors``; the others' answers are whole.
    Raises SnapshotMismatchError when no worker has the model, ContextBudgetError before anything is decoded, and
    SwarmKVError when there are no workers.
    """
    try:
        from swarmkv_lab.cluster import tasks
    except ImportError as error:
        raise SwarmKVError("a cluster needs Dask: pip install 'swarmkv-lab[cluster]'") from error
    chosen = strategy_named(strategy)
    if chosen.name not in STRATEGIES:
        raise SwarmKVError(f"{chosen.name} runs in this process alone; on a cluster: {', '.join(STRATEGIES)}")
    whole_number("together", together, 1, MAX_SEQUENCES - 1)
    whole_number("max_tokens", max_tokens)
    prefix, asked = _tokens(tokens), ContextSettings.of(n_ctx=n_ctx, **settings)
    source, known = _source(model_source)
    run = ClusterRun(Schedule([], tolerant=True), chosen.name, chosen.packs, len(prefix))
    identity, able = _able(client, run, tasks, (source, n_gpu_layers, exact), known)
    job = tasks.Job(source, n_gpu_layers, identity, prefix, chosen.name, asked)
    where: dict[str, Any] = {"pure": False, "workers": able}
    rest = job, agents, max_tokens, together
    if isinstance(model_source, Model):
        sized, named = tasks.prepared(model_source, *rest)
    else:
        sized, named = client.submit(tasks.prepare, *rest, **where).result()
    job = tasks.Job(source, n_gpu_layers, identity, prefix, chosen.name, sized)
    branches = [Branch(name, prompt, max_tokens, sampling, len(prefix)) for name, prompt in named.items()]
    run.schedule = Schedule(branches, tolerant=True)
    size = together if chosen.packs else min(together, -(-len(branches) // (2 * len(run.hellos))))
    groups = [branches[i : i + size] for i in range(0, len(branches), size)]
    with tqdm(total=len(branches), unit="agent", desc=chosen.name, disable=None if progress else True) as bar:
        _answer(client, run, tasks, job, groups, where, lambda n: _tell(run, bar, n, callback))
    return run


def _answer(
    client: "Client",
    run: ClusterRun,
    tasks: Any,
    job: "Job",
    groups: Sequence[Sequence[Branch]],
    where: Mapping[str, Any],
    told: Callable[[int], None],
) -> None:
    """Submit the capture and a task per group of agents, and take what comes in as it comes."""
    from distributed import KilledWorker, as_completed

    captured = None if job.strategy == "naive" else client.submit(tasks.capture, job, **where)
    waiting: dict[Future, Sequence[Branch]] = {}
    suspects: list[Sequence[Branch]] = []

    def submit(group: Sequence[Branch]) -> "Future":
        future = client.submit(tasks.answer, job, captured, group, **where)
        waiting[future] = group
        return future

    def take(future: "Future", group: Sequence[Branch]) -> None:
        try:
            run.take(future.result())
        except SwarmKVError as error:
            _fail(run, group, error)
        told(len(group))

    try:
        for future in as_completed([submit(group) for group in groups]):
            group = waiting.pop(future)
            try:
                take(future, group)
            except KilledWorker:  # Dask suspects all tasks that a dead worker had
                suspects += [group] if run.packed else [[branch] for branch in group]
        for group in suspects:  # one at a time: whose worker dies now is to blame
            future = submit(group)
            try:
                take(future, group)
            except KilledWorker as error:
                _fail(run, group, SwarmKVError(f"its worker died {error.allowed_failures + 1} times"))
                told(len(group))
        if captured is not None and captured.status == "finished":
            run.take(client.submit(_second, captured, **where).result())
    finally:
        client.cancel([*waiting, *([captured] if captured is not None else [])])


def _second(captured: Any) -> "Done":
    return captured[1]


def _fail(run: ClusterRun, group: Sequence[Branch], error: SwarmKVError) -> None:
    for branch in group:
        run.schedule.fail(run.schedule.branches[branch.name], error)


def _tell(run: ClusterRun, bar: Any, n: int, callback: Callable[[ClusterRun], None] | None) -> None:
    bar.update(n)
    if callback:
        callback(run)


def _able(
    client: "Client", run: ClusterRun, tasks: Any, asked: tuple[Any, ...], known: str | None
) -> tuple[Any, list[str] | None]:
    """(the run's identity, the workers to use: None for all, also those that come later).

    The identity is that of the first worker that has the client's model, or any where the client has none.
    """
    workers = list(client.nthreads())
    if not workers:
        raise SwarmKVError("the cluster has no workers: start some, and call this again")
    futures = {worker: client.submit(tasks.hello, *asked, workers=[worker], pure=False) for worker in workers}
    for worker, future in futures.items():
        try:
            run.hellos[worker] = future.result()
        except SwarmKVError as error:
            run.refused[worker] = str(error)
    fits = [hello.identity for hello in run.hellos.values() if known in (None, hello.identity.model)]
    for worker, hello in run.hellos.items():
        if not fits or hello.identity != fits[0]:
            run.refused[worker] = f"it has {hello.identity}"
    if not fits:
        wanted = f"the model {known}" if known else "such a model"
        raise SnapshotMismatchError(f"none of {len(workers)} workers has {wanted}: {run.refused}")
    return fits[0], [worker for worker in workers if worker not in run.refused] if run.refused else None


def _tokens(tokens: Any) -> np.ndarray:
    """Token ids as int32 (n,); whether the model has them, a worker says."""
    row = np.asarray(tokens)
    span = np.iinfo(np.int32)
    if row.ndim != 1 or row.dtype.kind not in "iu" or not row.size or row.min() < span.min or row.max() > span.max:
        raise SwarmKVError(
            f"tokens is {tokens!r:.60} ({type(tokens).__name__}): give one row of token ids, at least one, as "
            "model.tokenize returns"
        )
    return row.astype(np.int32)


def _source(source: str | Path | Model | None) -> tuple[str | None, str | None]:
    """(what workers are told, the model's hash where the file is here too)."""
    if isinstance(source, Model):
        return str(source.path.absolute()), source.content_hash
    try:
        path = model_path(source)
    except ModelNotFoundError:  # the workers may have it
        return (None if source is None else str(source)), None
    is_file = source is not None and user_path(source).is_file()
    return (str(path.absolute()) if is_file or source is None else str(source)), content_hash(path)
