"""Dask's clients, and Dispatch: a run's tasks given to workers that may take them, and again where one has died."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from swarmkv_lab.errors import SnapshotMismatchError, SwarmKVError
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.llama.api import default_threads

try:
    import dask
    from distributed import Client, Future, KilledWorker, LocalCluster, wait
    from distributed.comm import CommClosedError

    from swarmkv_lab.cluster import tasks
except ImportError as error:
    raise SwarmKVError("a cluster needs Dask: pip install 'swarmkv-lab[cluster]'") from error

if TYPE_CHECKING:
    from swarmkv_lab.cluster import ClusterRun

_LOOK_EVERY_S = 1.0  # whether those who were given tasks are still there
_NOBODY_FOR_S = 60.0  # a worker that has died may be started again
_DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""workers never hear Ctrl-C: it is this process's, which ends them without their say"""


@contextmanager
def local_cluster(n_workers: int, threads: int | None = 1) -> Iterator[Client]:
    """A Dask client of a cluster on this machine, without a dashboard.

    threads: of each worker; None: its share of the physical cores.
    """
    threads = threads or max(1, default_threads() // n_workers)
    how: dict[str, Any] = {"n_workers": n_workers, "threads_per_worker": threads, "dashboard_address": None}
    how["scheduler_kwargs"] = {"dashboard_address": "127.0.0.1:0"}  # of its HTTP server: any free port, not Dask's 8787
    # Else a worker that is being started again 15 s after a death, perhaps another one, is given up for good.
    patience = dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"})
    with patience, LocalCluster(**how, silence_logs=50, preload=_DEAF) as workers, Client(workers) as client:
        yield client


def remote_cluster(scheduler: str) -> Client:
    """A Dask client of the cluster with this scheduler's address. SwarmKVError if it does not answer in 10 s."""
    try:
        return Client(scheduler, timeout=10)
    except (OSError, ValueError) as error:
        raise SwarmKVError(f"the scheduler {scheduler} does not answer within 10 s: {error}") from error


@dataclass
class Dispatch:
    """A run's tasks on a cluster. on_answers: called with the number of agents whose answers have come."""

    client: Client
    run: "ClusterRun"
    job: tasks.Job
    on_answers: Callable[[int], None]
    captured: "Future[tasks.Captured] | None" = None

    def agree(self, known: str | None) -> None:
        """The job's identity, in which all must agree: the first worker's that has the model that is known, if any is.

        Raises SwarmKVError where there is no worker, SnapshotMismatchError where none has the model.
        """
        if not self._greet():
            raise SwarmKVError("the cluster has no workers: start some, and call this again")
        theirs = {worker: info.identity for worker, info in self.run.infos.items()}
        fits = [mine for mine in theirs.values() if known in (None, mine.model)]
        if not fits:
            raise SnapshotMismatchError(f"no worker has the model {known or ''}: {theirs | self.run.refused}")
        self.job = replace(self.job, identity=fits[0])

    def able(self) -> list[str] | None:
        """Who may take tasks now; None for all, also those that come later. Raises SwarmKVError after a minute of none.

        They are named, since Dask has no way to except others: it lets a task wait for ever for a worker that has gone.
        """
        until = time.monotonic() + _NOBODY_FOR_S
        while True:
            here, refused = self._greet(), self.run.refused
            if able := [worker for worker in here if worker in self.run.infos and worker not in refused]:
                return able if refused else None
            if time.monotonic() > until:
                nobody = f"for {_NOBODY_FOR_S:.0f} s no worker could go on, of {len(here)}: start some ({refused})"
                raise SwarmKVError(nobody)
            time.sleep(_LOOK_EVERY_S)

    def answer(self, groups: Sequence[Sequence[Branch]]) -> None:
        """Have all agents answered, a task per group; and those that a death has left, one at a time."""
        try:
            suspects = self._without_the_dead(groups)
            if not self.run.packed:
                suspects = [[branch] for group in suspects for branch in group]
            for group in suspects:
                if self._without_the_dead([group]):  # whose worker dies now is to blame
                    self._fail(group, SwarmKVError("each worker that took it has died"))
        except (CancelledError, CommClosedError) as error:
            raise SwarmKVError(f"the scheduler is gone, or has dropped the tasks: connect again ({error})") from error
        finally:
            self.client.cancel([self.captured] if self.captured else [])

    def _without_the_dead(self, groups: Sequence[Sequence[Branch]]) -> list[Sequence[Branch]]:
        """Have groups answered, by other workers where those that were able have gone. Returns whose workers died."""
        died, left = [], list(groups)
        while left:
            how: dict[str, Any] = {"workers": (able := self.able()), "pure": False}
            if self.job.strategy != BASELINE and (self.captured is None or self.captured.status == "error"):
                self.captured = self.client.submit(tasks.capture, self.job, **how)
            waiting = {self.client.submit(tasks.answer, self.job, self.captured, group, **how): group for group in left}
            left, patience = [], _LOOK_EVERY_S
            try:
                while waiting:
                    with suppress(TimeoutError):
                        wait(list(waiting), timeout=_LOOK_EVERY_S, return_when="FIRST_COMPLETED")
                    for future in [future for future in waiting if future.done()]:
                        group = waiting.pop(future)
                        try:
                            records = future.result(timeout=patience)
                        except TimeoutError:  # it is still on its way, or was lost with its worker
                            waiting[future], patience = group, 2 * patience
                        except KilledWorker as error:  # Dask suspects all tasks that a dead worker had
                            if self.captured is not None and self.captured.status == "error":
                                raise SwarmKVError("each worker that took the document has died") from error
                            died.append(group)
                        except tasks.UnfitWorkerError:
                            left.append(group)
                        except SwarmKVError as error:
                            self._fail(group, error)
                        else:
                            self.run.add(records)
                            self.on_answers(len(group))
                    if able and not self.client.nthreads().keys() & able:
                        self.captured, left = None, [*left, *waiting.values()]
                        break
            finally:
                self.client.cancel(list(waiting))
        return died

    def _fail(self, group: Sequence[Branch], error: SwarmKVError) -> None:
        for branch in group:
            self.run.schedule.fail(branch, error)
        self.on_answers(len(group))

    def _greet(self) -> list[str]:
        """Ask all workers who they are, each time, as a model's file may have been replaced: their addresses."""
        said = self.client.run(tasks.identify, self.job, on_error="return")
        for worker, answer in said.items():
            if isinstance(answer, tasks.WorkerInfo):
                self.run.infos[worker] = answer
                if self.job.identity not in (None, answer.identity):
                    self.run.refused[worker] = f"it has {answer.identity}"
            elif not isinstance(answer, OSError):  # else it has died just now
                self.run.refused[worker] = str(answer)
        return list(said)
