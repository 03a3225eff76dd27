"""fan_out on a cluster: the snapshot is a task's result, agents are tasks, and Dask does the rest.

Dask places tasks, moves the snapshot to the workers that need it, runs what a dead worker had to do again on another
one, and makes the snapshot again if all copies are lost.
"""

import operator
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import ModelNotFoundError, SnapshotMismatchError, SwarmKVError, whole_number
from swarmkv_lab.fanout.fan_out import Prompts
from swarmkv_lab.fanout.outcome import Outcome
from swarmkv_lab.fanout.recorder import BASELINE, PREFIX
from swarmkv_lab.fanout.schedule import Branch, Schedule
from swarmkv_lab.fanout.strategies import STRATEGIES, Strategy, strategy_named
from swarmkv_lab.files import user_path
from swarmkv_lab.llama.loading import model_path
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.model_files import content_hash
from swarmkv_lab.llama.sampling import GREEDY, Sampling
from swarmkv_lab.llama.settings import MAX_SEQUENCES, ContextSettings
from swarmkv_lab.progress import tqdm

if TYPE_CHECKING:  # Dask is an extra, and takes half a second to import
    from distributed import Client, Future

    from swarmkv_lab.cluster.tasks import Captured, Done, Hello, Identity, Job

_LOOK_EVERY_S = 1.0
"""whether those who were given tasks are still there"""
_NOBODY_FOR_S = 60.0
"""a worker that has died may be started again"""


@dataclass(eq=False, kw_only=True)
class ClusterRun(Outcome):
    """An Outcome of many processes: ``timeline`` has a column worker."""

    hellos: "dict[str, Hello]" = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    done: "list[Done]" = field(default_factory=list)
    _began: float = field(default_factory=time.time)

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
        from distributed.comm import CommClosedError

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
    run = ClusterRun(tokens=prefix, schedule=Schedule([], tolerant=True), strategy=chosen.name, packed=chosen.packs)
    crew = _Crew(client, run, (source, n_gpu_layers, exact))
    identity = crew.identity_of(known)
    if asked.uses_flash_attn(on_gpu=False):  # with it the number of threads decides a single token's last bits
        asked = replace(asked, n_threads=asked.n_threads or min(hello.n_threads for hello in run.hellos.values()))
    job = tasks.Job(source, n_gpu_layers, identity, prefix, chosen.name, asked)
    rest = job, agents, max_tokens, together
    if isinstance(model_source, Model):
        sized, named = tasks.prepared(model_source, *rest)
    else:
        sized, named = client.submit(tasks.prepare, *rest, workers=crew.able(), pure=False).result()
    branches = [Branch(name, prompt, max_tokens, sampling, len(prefix)) for name, prompt in named.items()]
    run.schedule = Schedule(branches, tolerant=True)
    size = together if chosen.packs else min(together, -(-len(branches) // (2 * len(run.hellos))))
    groups = [branches[i : i + size] for i in range(0, len(branches), size)]
    with tqdm(total=len(branches), unit="agent", desc=chosen.name, disable=None if progress else True) as bar:

        def told(n: int) -> None:
            bar.update(n)
            if callback:
                callback(run)

        try:
            _Work(crew, replace(job, settings=sized), told).answer(groups)
        except (CancelledError, CommClosedError) as error:
            raise SwarmKVError(f"the scheduler is gone, or has dropped the tasks: connect again ({error})") from error
    return run


@dataclass
class _Crew:
    """The workers that may take a run's tasks. asked: the arguments of tasks.hello."""

    client: "Client"
    run: ClusterRun
    asked: tuple[str | None, int, bool]
    identity: "Identity | None" = None

    def identity_of(self, known: str | None) -> "Identity":
        """What all must agree in: as the first worker that has the client's model, or any where the client has none.

        Raises SwarmKVError where there is no worker, SnapshotMismatchError where none has the model.
        """
        if not self._greet():
            raise SwarmKVError("the cluster has no workers: start some, and call this again")
        fits = [hello.identity for hello in self.run.hellos.values() if known in (None, hello.identity.model)]
        if not fits:
            wanted = f"the model {known}" if known else "such a model"
            theirs = self.run.refused | {worker: str(hello.identity) for worker, hello in self.run.hellos.items()}
            raise SnapshotMismatchError(f"none of {len(theirs)} workers has {wanted}: {theirs}")
        self.identity = fits[0]
        return fits[0]

    def able(self) -> list[str] | None:
        """Who may take tasks now; None for all, also those that come later. Raises SwarmKVError after a minute of none.

        They are named, since Dask has no way to except others: it lets a task wait for ever for a worker that has gone.
        """
        until = time.monotonic() + _NOBODY_FOR_S
        while True:
            here = self._greet()
            for worker in here:
                if (hello := self.run.hellos.get(worker)) and hello.identity != self.identity:
                    self.run.refused[worker] = f"it has {hello.identity}"
            if able := [worker for worker in here if worker in self.run.hellos and worker not in self.run.refused]:
                return able if self.run.refused else None
            if time.monotonic() > until:
                why = (
                    f"for {_NOBODY_FOR_S:.0f} s no worker could go on, of {len(here)}: start some ({self.run.refused})"
                )
                raise SwarmKVError(why)
            time.sleep(_LOOK_EVERY_S)

    def _greet(self) -> list[str]:
        """Ask all workers who they are, each time, as a model's file may have been replaced: their addresses."""
        from swarmkv_lab.cluster import tasks

        said = self.client.run(tasks.hello, *self.asked, on_error="return")
        for worker, answer in said.items():
            if isinstance(answer, tasks.Hello):
                self.run.hellos[worker] = answer
            elif not isinstance(answer, OSError):  # else it has died just now
                self.run.refused[worker] = str(answer)
        return list(said)


@dataclass
class _Work:
    """A run's tasks. told: called with the number of agents whose answers have come."""

    crew: _Crew
    job: "Job"
    told: Callable[[int], None]
    captured: "Future[Captured] | None" = None

    def answer(self, groups: Sequence[Sequence[Branch]]) -> None:
        """Have all agents answered, a task per group; and those that a death has left, one at a time."""
        try:
            suspects = list(self._ended(groups))
            if not self.crew.run.packed:
                suspects = [[branch] for group in suspects for branch in group]
            for group in suspects:
                for _ in self._ended([group]):  # whose worker dies now is to blame
                    self._fail(group, SwarmKVError("each worker that took it has died"))
                    self.told(len(group))
        finally:
            self.crew.client.cancel([self.captured] if self.captured else [])

    def _ended(self, groups: Sequence[Sequence[Branch]]) -> Iterator[Sequence[Branch]]:
        """Have groups answered, by other workers where those that were able have gone: yields whose workers died."""
        from distributed import KilledWorker, wait

        from swarmkv_lab.cluster import tasks

        left, client, run = list(groups), self.crew.client, self.crew.run
        while left:
            how: dict[str, Any] = {"workers": (able := self.crew.able()), "pure": False}
            waiting: dict[Future, Sequence[Branch]] = {}
            if self.job.strategy != BASELINE and (self.captured is None or self.captured.status == "error"):
                self.captured = client.submit(tasks.capture, self.job, **how)
                waiting[client.submit(operator.attrgetter("done"), self.captured, **how)] = ()
            waiting |= {client.submit(tasks.answer, self.job, self.captured, group, **how): group for group in left}
            left, patience = [], _LOOK_EVERY_S
            try:
                while waiting:
                    with suppress(TimeoutError):
                        wait(list(waiting), timeout=_LOOK_EVERY_S, return_when="FIRST_COMPLETED")
                    for future in list(waiting):
                        if not future.done():
                            continue
                        group = waiting.pop(future)
                        try:
                            run.take(future.result(timeout=patience))
                        except TimeoutError:  # it is still on its way, or was lost with its worker
                            waiting[future], patience = group, 2 * patience
                            continue
                        except KilledWorker as error:  # Dask suspects all tasks that a dead worker had
                            if self.captured is not None and self.captured.status == "error":
                                raise SwarmKVError("each worker that took the document has died") from error
                            yield group
                            continue
                        except tasks.Stranger:
                            left += [group] if group else []
                            continue
                        except SwarmKVError as error:
                            self._fail(group, error)
                        if group:
                            self.told(len(group))
                    if able and not client.nthreads().keys() & able:
                        self.captured, left = None, [*left, *filter(None, waiting.values())]
                        break
            finally:
                client.cancel(list(waiting))

    def _fail(self, group: Sequence[Branch], error: SwarmKVError) -> None:
        for branch in group:
            self.crew.run.schedule.fail(self.crew.run.schedule.branches[branch.name], error)


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
