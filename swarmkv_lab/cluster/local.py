"""Dask clients: of a cluster that is started on this machine for a while, or of one that runs already."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.api import default_threads

try:
    import dask
    from distributed import Client, LocalCluster
except ImportError as error:
    raise SwarmKVError("a cluster needs Dask: pip install 'swarmkv-lab[cluster]'") from error

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
