"""Engine: whoever runs tasks in other processes, as the coordinator sees it."""

from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Protocol

from swarmkv_lab.errors import SwarmKVError


class Future(Protocol):
    """What concurrent.futures' and Dask's have in common."""

    def add_done_callback(self, call: Callable[[Any], object]) -> None:
        """Call this with the future when it is done."""


class Engine(Protocol):
    """Runs tasks. ``inbox``: futures that are done, and (worker, message) of tasks that say something meanwhile."""

    inbox: SimpleQueue[Any]
    known: dict[Any, Any]
    """what is remembered of workers from one run to the next"""

    def workers(self) -> dict[str, int]:
        """How many tasks each worker that is alive takes at a time."""

    def ahead(self, worker: str) -> float:
        """How many seconds a worker's clock is ahead of ours."""

    def submit(self, task: Callable[..., Any], *args: Any, worker: str, key: str = "") -> Future:
        """Run a task on a worker. Tasks of one key are one task, also of different runs."""

    def result(self, future: Future) -> Any:
        """What a done future has brought. Raises its error as one of ours, or Gone where it died on its way here.

        And whatever means that nothing can go on.
        """

    def cancel(self, futures: Iterable[Future]) -> None:
        """Nobody waits for these any more: they end before their next llama_decode."""

    def close(self) -> None:
        """The run is over."""


class Broken(SwarmKVError):
    """Nothing can go on."""


class Gone(SwarmKVError):
    """A result died with the worker that had it."""


def own_error(error: BaseException) -> SwarmKVError:
    """A task's error as one of ours."""
    return (
        error if isinstance(error, SwarmKVError) else SwarmKVError(f"a worker raised {type(error).__name__}: {error}")
    )
