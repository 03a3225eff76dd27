"""A concurrent.futures.Executor of this machine as an engine."""

import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Executor, wait
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from swarmkv_lab.cluster.engines import Broken, Future, own_error
from swarmkv_lab.cluster.links import Link
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.api import default_threads


class ExecutorEngine:
    """Processes of this machine. When one of them dies, so does a ProcessPoolExecutor, and with it the run."""

    def __init__(self, executor: Executor) -> None:
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.known: dict[Any, Any] = {}
        self._executor = executor
        self._n = getattr(executor, "_max_workers", None) or os.cpu_count() or 1
        self._stop = Path(tempfile.gettempdir()) / f"swarmkv-stop-{os.getpid()}-{id(self)}"
        self._link = Link(str(self._stop), max(1, default_threads() // self._n))

    def workers(self) -> dict[str, int]:
        """One name for all of its processes."""
        return {"pool": self._n}

    def ahead(self, worker: str) -> float:
        """There is one clock."""
        return 0.0

    def submit(self, task: Callable[..., Any], *args: Any, worker: str, key: str = "") -> Future:
        """Run a task in whatever process is free."""
        try:
            future = self._executor.submit(task, self._link, *args)
        except RuntimeError as error:  # it is broken, or shut down
            raise SwarmKVError(f"the executor takes no tasks: {error}") from error
        future.add_done_callback(self.inbox.put)
        return future

    def result(self, future: Any) -> Any:
        """What it has brought. Raises its error; and SwarmKVError where a process has died."""
        try:
            return future.result()
        except BrokenExecutor as error:
            raise Broken(
                f"a process of the pool died, and the pool with it ({error}): what was answered until then is in the "
                "run that the callback is given; on a Dask cluster the others go on"
            ) from error
        except Exception as error:
            raise own_error(error) from error

    def cancel(self, futures: Iterable[Any]) -> None:
        """What has not begun does not begin; what runs sees the file, and is waited for."""
        running = [future for future in futures if not future.cancel()]
        if running:
            self._stop.touch()
            with suppress(KeyboardInterrupt):
                wait(running)

    def close(self) -> None:
        """Remove the file."""
        self._stop.unlink(missing_ok=True)
