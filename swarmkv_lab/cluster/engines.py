"""Engine: whoever runs tasks in other processes, as the coordinator sees it."""

from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Protocol

from swarmkv_lab.errors import SwarmKVError


class Future(Protocol):
    """What concurrent.futures' and Dask's have in common."""

    def result(self) -> Any: ...  # noqa: D102
    def exception(self) -> BaseException | None: ...  # noqa: D102
    def add_done_callback(self, call: Callable[[Any], object]) -> None: ...  # noqa: D102


class Engine(Protocol):
    """Runs tasks. ``inbox``: futures that are done, and (worker, message) of tasks that say something meanwhile."""

    inbox: SimpleQueue[Any]

    def workers(self) -> dict[str, int]:
        """How many tasks each worker that is alive takes at a time."""

    def accept(self, worker: str, kind: str) -> float:
        """Give a worker tasks of this kind; how many seconds its clock is ahead of ours."""

    def submit(self, task: Callable[..., Any], *args: Any, worker: str = "", kind: str = "", key: str = "") -> Future:
        """Run a task: on one worker, or on any that takes this kind. Tasks of one key are one task."""

    def argument(self, future: Future) -> Any:
        """A done future as another task's argument."""

    def result(self, future: Future) -> Any:
        """What a done future has brought; raises Gone where it was lost on its way here."""

    def killed(self, future: Future) -> bool:
        """Whether a done future has no result because workers died of it, or of what else they had to do."""

    def failure(self, future: Future) -> SwarmKVError | None:
        """Why a done future has no result; raises SwarmKVError where nothing can go on."""

    def cancel(self, futures: Iterable[Future]) -> None:
        """Nobody waits for these any more: they end before their next llama_decode."""

    def close(self) -> None:
        """The run is over."""


class Gone(SwarmKVError):
    """A result died with the worker that had it."""


def own_error(error: BaseException | None) -> SwarmKVError | None:
    """A task's error as one of ours, or the error itself where it is a defect of the lab."""
    if error is None or isinstance(error, SwarmKVError):
        return error
    if isinstance(error, Exception):
        return SwarmKVError(f"a worker raised {type(error).__name__}: {error}")
    raise error
