"""Resident: what stays in a worker's process between its tasks: one model, one document, one context that holds it."""

import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from swarmkv_lab.cluster.links import Link
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.loading import load_model
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.snapshot import KVSnapshot


class Resident:
    """``lock``: held by the one task that works. ``loads``: how often a model was loaded."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.loads = 0
        self.document: tuple[str, KVSnapshot | None] = ("", None)
        """a snapshot with the name of its file"""
        self._model: Model | None = None
        self._loaded: tuple[str | None, int] = (None, 0)
        self._context: Context | None = None
        self._holds: tuple[ContextSettings, str] | None = None

    def model(self, source: str | None, n_gpu_layers: int) -> Model:
        """The model behind a source, loaded once; another one, and what was held of it, is closed first.

        It is loaded again when its file is another one now.
        """
        if self._model is None or self._loaded != (source, n_gpu_layers) or not self._model.is_current:
            self.close()
            self._model = load_model(source, n_gpu_layers=n_gpu_layers)
            self._loaded = source, n_gpu_layers
            self.loads += 1
        return self._model

    def hold(self, name: str, snapshot: KVSnapshot) -> KVSnapshot:
        """Keep a snapshot instead of the last one."""
        self.document = name, snapshot
        return snapshot

    def context(self, settings: ContextSettings, open_context: Callable[[ContextSettings], Context]) -> Context:
        """A context with these settings, empty or with the held document in its first sequence."""
        if self._context is None or self._holds != (settings, self.document[0]):
            self.drop_context()
            self._context, self._holds = open_context(settings), (settings, self.document[0])
        return self._context

    def drop_context(self) -> None:
        """Free the context."""
        if self._context is not None:
            self._context.close()
        self._context = self._holds = None

    def let_go(self) -> None:
        """Free the document."""
        self.drop_context()
        self.document = "", None

    def close(self) -> None:
        """Free everything."""
        self.let_go()
        if self._model is not None:
            self._model.close()
        self._model = None


RESIDENT = Resident()
"""this process's"""
_ONE_THREAD = ThreadPoolExecutor(1, "swarmkv")
_Task = TypeVar("_Task", bound=Callable[..., Any])


def in_one_thread(task: _Task) -> _Task:
    """A task whose work is done by one thread of this process, whichever thread was given it.

    OpenMP keeps a team for each thread that has called llama.cpp. With more threads than cores it lets them sleep
    instead of spin between the steps of a decode: measured, answers then take 1.6 times as long.
    """

    @functools.wraps(task)
    def call(link: Link, *arguments: Any) -> Any:
        return _ONE_THREAD.submit(task, link.here(), *arguments).result()

    return cast(_Task, call)


@dataclass(eq=False)
class ResidentRun(Run):
    """A Run whose agents' common context outlives it, with the document in it for the next agents."""

    resident: Resident = field(default_factory=lambda: RESIDENT)

    @contextmanager
    def context(self, agent: Branch | None = None, n_seq_max: int = 1) -> Iterator[Context]:
        """As Run.context; the agents' common one is the resident one, where they have a snapshot to go on from."""
        if agent is not None or self.snapshot is None:
            with super().context(agent, n_seq_max) as ctx:
                yield ctx
            return
        with self.phase(None, "context"):
            settings = replace(self.settings, n_seq_max=max(n_seq_max, self.settings.n_seq_max))
            ctx = self.resident.context(settings, self.model.open_context)
        ctx.callback = self._call_back
        try:
            with self.recorder.holding(ctx.nbytes):
                yield ctx
        except BaseException:  # nobody knows what is in it now
            self.resident.drop_context()
            raise
        finally:
            ctx.callback = None


def release(*_: Any) -> None:
    """Free what this process holds."""
    with RESIDENT.lock:
        RESIDENT.close()
