"""Dask: what a cluster of machines needs beyond an Executor: placement, reruns, messages, snapshots between workers."""

import asyncio
import random
import time
import uuid
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from distributed import Client, KilledWorker, Worker, WorkerPlugin, get_worker
from distributed.comm import CommClosedError
from distributed.core import send_recv
from distributed.protocol import to_serialize
from distributed.utils import sync

from swarmkv_lab.cluster.engines import Broken, Future, Gone, own_error
from swarmkv_lab.cluster.job import Held
from swarmkv_lab.cluster.links import Link, NotWanted
from swarmkv_lab.cluster.resident import RESIDENT
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.snapshot.prefix_cache import cached_files
from swarmkv_lab.snapshot.snapshot import KVSnapshot

_GATHER_S = 3.0
"""how long a result of some hundred kilobytes may take from its worker to here, before it is computed again"""
_CONNECT_S = 5.0
"""how long another worker may take to answer the call, before it is taken to be gone; Dask itself tries for 30 s"""
_PATIENCE_S = 20.0
"""how long a scheduler may be gone"""


class DaskLink(Link):
    """To a Dask worker. ``stop_file``: the topic under which it says things."""

    def here(self) -> Link:
        """On the worker, in the thread that was given the task: Dask knows both by the thread."""
        worker = get_worker()
        return OnWorker(self.stop_file, worker, worker.get_current_task())


class OnWorker(Link):
    """A task on a Dask worker, from whatever thread. key: the task's."""

    def __init__(self, topic: str, worker: Worker, key: Any) -> None:
        super().__init__(topic, int(worker.state.nthreads))
        self._worker, self._key = worker, key

    def address(self) -> str:
        """The worker's address."""
        return str(self._worker.address)

    def post(self, *message: object) -> None:
        """Tell the coordinator something, through the scheduler."""
        self._worker.log_event(self.stop_file, [self._worker.address, *message])

    def require_wanted(self) -> None:
        """Raise NotWanted when the task was cancelled: Dask itself does not end what runs."""
        task = self._worker.state.tasks.get(self._key)
        if task is None or task.state not in ("executing", "long-running"):
            raise NotWanted("the run was ended")

    def fetch(self, held: Held) -> KVSnapshot | None:
        """The snapshot from one of the workers that have it, checked; None where none of them answers."""
        others = [address for address in held.workers if address != self._worker.address]
        for address in random.sample(others, len(others)):  # so that they share the work
            try:
                snapshot = sync(self._worker.loop, _ask, self._worker, address, held.name)
            except (TimeoutError, OSError, CommClosedError):  # it died: another one, or a prefill
                continue
            if snapshot is not None:
                return snapshot
        return None


async def _ask(worker: Worker, address: str, name: str) -> KVSnapshot | None:
    comm = await worker.rpc.connect(address, timeout=_CONNECT_S)
    try:
        reply = await send_recv(comm, op="swarmkv_snapshot", name=name)
    finally:
        worker.rpc.reuse(address, comm)
    return reply["snapshot"]


class Sender(WorkerPlugin):
    """Lets a worker send its snapshots to others. uplink: bytes per second of all that it sends, for experiments."""

    name = "swarmkv"

    def __init__(self, uplink: float | None = None) -> None:
        self.uplink = uplink
        self._free_at = 0.0

    def setup(self, worker: Worker) -> None:
        """Answer other workers; and stop Dask's profiler, which disturbs llama.cpp's threads 100 times a second."""
        worker.handlers["swarmkv_snapshot"] = self.send
        for name in ("profile", "profile-cycle"):
            if callback := worker.periodic_callbacks.get(name):
                callback.stop()

    async def send(self, name: str) -> dict[str, Any]:
        """The snapshot of this name: at hand, or in this machine's folder; None where it is not."""
        at_hand, held = RESIDENT.document
        if held is None or at_hand != name:
            held = await asyncio.to_thread(_from_folder, name)
        if held is not None and self.uplink:
            self._free_at = max(self._free_at, time.monotonic()) + held.nbytes / self.uplink
            await asyncio.sleep(self._free_at - time.monotonic())
        return {"snapshot": to_serialize(held) if held is not None else None}


_serving: weakref.WeakSet[Client] = weakref.WeakSet()
_known: weakref.WeakKeyDictionary[Client, dict[Any, Any]] = weakref.WeakKeyDictionary()


def serve(client: Client, uplink: float | None = None) -> None:
    """Let all workers, also those to come, send snapshots to each other."""
    client.register_plugin(Sender(uplink))
    _serving.add(client)


def _from_folder(name: str) -> KVSnapshot | None:
    for path, *_ in cached_files():
        if path.name == name:
            with suppress(OSError):  # evicted meanwhile
                return KVSnapshot.from_bytes(path.read_bytes())
    return None


class DaskEngine:
    """A Dask client's workers. One that dies costs what it was doing, which another one does again."""

    def __init__(self, client: Client) -> None:
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self._client = client
        self.known = _known.setdefault(client, {})
        self._topic = f"swarmkv-{uuid.uuid4().hex}"
        self._link = DaskLink(self._topic, 0)
        self._lost_at: float | None = None
        if client not in _serving:
            serve(client)
        client.subscribe_topic(self._topic, self._hear)

    def workers(self) -> dict[str, int]:
        """Each worker that is alive, which takes one task at a time. Raises SwarmKVError when the scheduler is gone."""
        if self._client.status != "running":
            self._lost_at = self._lost_at or time.monotonic()
            if self._client.status == "closed" or time.monotonic() - self._lost_at > _PATIENCE_S:
                raise Broken(
                    "the scheduler is gone: start it again, connect a new client, and run again (what was captured "
                    "is in the store)"
                )
            return {}
        self._lost_at = None
        try:
            return dict.fromkeys(self._client.sync(self._client.scheduler.ncores, callback_timeout=2), 1)
        except (TimeoutError, OSError):  # it died just now
            return {}

    def ahead(self, worker: str) -> float:
        """How many seconds a worker's clock is ahead of ours; 0 for what cannot be told from the way there and back."""
        before = time.time()
        there = self._client.run(time.time, workers=[worker], on_error="return")[worker]
        after = time.time()
        if isinstance(there, Exception):
            raise SwarmKVError(f"worker {worker} did not answer: {there!r}")
        ahead = there - (before + after) / 2
        return ahead if abs(ahead) > (after - before) / 2 else 0.0

    def submit(self, task: Callable[..., Any], *args: Any, worker: str, key: str = "") -> Future:
        """Run a task on a worker."""
        name = key or f"swarmkv-{task.__name__}-{uuid.uuid4().hex}"
        future: Future = self._client.submit(task, self._link, *args, key=name, pure=False, workers=[worker])
        future.add_done_callback(self.inbox.put)
        return future

    def result(self, future: Any) -> Any:
        """What it has brought, which is still on its worker: when that has died, Dask would wait for another one."""
        if future.status in ("cancelled", "lost", "pending"):
            raise Gone("the task was lost with its worker")
        try:
            return future.result(timeout=_GATHER_S)
        except (TimeoutError, asyncio.CancelledError, CancelledError, KilledWorker) as error:
            raise Gone("the result was lost with the worker that had it") from error
        except Exception as error:
            raise own_error(error) from error

    def cancel(self, futures: Iterable[Any]) -> None:
        """End them: a worker looks before each llama_decode whether its task is still wanted."""
        self._client.cancel(list(futures), force=True)

    def close(self) -> None:
        """Hear no more."""
        if self._client.status == "running":
            self._client.unsubscribe_topic(self._topic)

    def _hear(self, event: tuple[float, Any]) -> None:
        worker, *message = event[1]
        self.inbox.put((worker, message))
