"""Cluster bench: what workers cost and bring on this machine, each against one process, in turns."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab import cluster
from swarmkv_lab.cluster.fan_out import ClusterRun
from swarmkv_lab.cluster.resident import RESIDENT
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.fan_out import fan_out
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.prefill import prefill


@contextmanager
def local_cluster(n_workers: int, threads: int = 1) -> Iterator[Any]:
    """A Dask client of a cluster on this machine, without a dashboard. Raises SwarmKVError without the extra."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise SwarmKVError("a cluster needs Dask: pip install 'swarmkv-lab[cluster]'") from error
    how: dict[str, Any] = {"n_workers": n_workers, "threads_per_worker": threads, "dashboard_address": None}
    how["scheduler_kwargs"] = {"dashboard_address": "127.0.0.1:0"}  # of its HTTP server: any free port, not Dask's 8787
    with ExitStack() as stack:
        with _deaf_to_interrupts():
            workers = stack.enter_context(LocalCluster(**how, silence_logs=50))
        yield stack.enter_context(Client(workers))


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What starts in this block never hears Ctrl-C: it is this process's, which ends the others without their say."""
    if threading.current_thread() is not threading.main_thread():  # Python sets signals there alone
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def against_one_process(
    model: Model,
    tokens: np.ndarray,
    agents: Mapping[str, Any] | Sequence[Any],
    crews: Sequence[tuple[int, int]],
    *,
    max_tokens: int = 16,
    repeats: int = 5,
) -> pd.DataFrame:
    """Agents over a document that is captured already: one process, and workers x threads, in turns.

    crews: (workers, threads of each). Returns a row per run: workers (0: this process alone), threads, repeat, depth,
    n_agents, end_to_end_ms, and same: whether all logits and tokens are this process's.
    """
    snapshot = prefill(model, tokens, cache=True, progress=False)
    rows = []
    for n_workers, threads in crews:
        with local_cluster(n_workers, threads) as client:
            for repeat in range(-1, repeats):  # a warm-up first
                ways: dict[str, Callable[[], Any]] = {
                    "alone": lambda: fan_out(model, snapshot, agents, max_tokens=max_tokens),
                    "there": partial(
                        cluster.fan_out, client, model, tokens, agents, max_tokens=max_tokens, progress=False
                    ),
                }
                order = list(ways)[:: -1 if repeat % 2 else 1]  # who is second is not always the same
                runs = {way: ways[way]() for way in order}
                alone, there = runs["alone"], runs["there"]
                exact = there.compare(alone)
                same = bool((exact.max_abs_logit_diff == 0).all() and exact.same_tokens.all())
                about = {
                    "crew": f"{n_workers} x {threads}", "threads": threads, "repeat": repeat, "depth": len(tokens),
                    "n_agents": len(agents), "same": same,
                }  # fmt: skip
                for workers, run in ((0, alone), (n_workers, there)):
                    rows.append(about | {"workers": workers, "end_to_end_ms": run.metrics["end_to_end_ms"]})
    frame = pd.DataFrame(rows)
    return frame[frame.repeat >= 0].reset_index(drop=True)


def run_with_a_death(client: Any, model: Model, tokens: np.ndarray, agents: Any, **how: Any) -> ClusterRun:
    """A fan-out on a cluster of which the first worker that says a word of its second answer is killed (SIGKILL)."""
    killed: list[int] = []

    def kill(run: ClusterRun) -> None:
        ended = sum(bool(answer) for answer in run.answers.values())
        if killed or ended < 2 or not run.coordinator.at_work:
            return
        process = run.workers.set_index("worker").process[next(iter(run.coordinator.at_work))]
        killed.append(int(process.rpartition(":")[2]))
        os.kill(killed[0], signal.SIGKILL)

    return cluster.fan_out(client, model, tokens, agents, callback=kill, progress=False, **how)


def deaths(model: Model, tokens: np.ndarray, agents: Any, *, repeats: int = 3, **how: Any) -> pd.DataFrame:
    """Two workers, undisturbed and with a death in the middle, in turns, each time on a fresh cluster.

    Columns repeat, depth, n_agents, undisturbed_ms, death_ms (end to end), and same: whether all answers are the same.
    """
    rows = []
    for repeat in range(repeats):
        with local_cluster(2) as client:
            cluster.fan_out(client, model, tokens, agents, progress=False, **how)  # models are loaded, and the document
            whole = cluster.fan_out(client, model, tokens, agents, progress=False, **how)
            wounded = run_with_a_death(client, model, tokens, agents, **how)
        died = int(wounded.workers.gone_ms.notna().sum())
        if died != 1:
            raise SwarmKVError(f"{died} workers died, and one should have")
        rows.append(
            {
                "repeat": repeat,
                "depth": len(tokens),
                "n_agents": len(agents),
                "undisturbed_ms": whole.metrics["end_to_end_ms"],
                "death_ms": wounded.metrics["end_to_end_ms"],
                "same": whole.answers == wounded.answers,
            }
        )
    return pd.DataFrame(rows)


def transfer(client: Any, model: Model, tokens: np.ndarray, *, repeats: int = 5) -> pd.DataFrame:
    """A snapshot from one worker to another, verified and restored, against the plain copy of its bytes by a socket.

    client: of a Dask cluster with two workers. Returns a row per repeat and way ("verified and restored", "plain
    copy"): bytes, ms. Both are timed in the second worker.
    """
    from swarmkv_lab.cluster.dask import serve
    from swarmkv_studies.many_machines.links import capture

    serve(client)
    first, second = list(client.nthreads())[:2]
    source = str(model.path)
    how = {"pure": False}
    held = client.submit(capture, source, tokens, workers=[first], **how).result()
    rows = []
    for repeat in range(-1, repeats):
        ways = {
            "verified and restored": client.submit(_fetched_ms, source, held, workers=[second], **how).result(),
            "plain copy": _plain_copy_ms(client, second, held.nbytes),
        }
        rows += [{"repeat": repeat, "way": way, "bytes": held.nbytes, "ms": ms} for way, ms in ways.items()]
    frame = pd.DataFrame(rows)
    return frame[frame.repeat >= 0].reset_index(drop=True)


def _fetched_ms(source: str, held: Any) -> float:
    from swarmkv_lab.cluster.dask import DaskLink

    with RESIDENT.lock:
        model = RESIDENT.model(source, 0)
        with model.open_context(ContextSettings(n_ctx=held.n_tokens)) as ctx:
            start = time.perf_counter()
            snapshot = DaskLink("", 0).here().fetch(held)
            if snapshot is None:
                raise SwarmKVError("the other worker did not send its snapshot")
            snapshot.restore(ctx)
            return 1e3 * (time.perf_counter() - start)


def _plain_copy_ms(client: Any, worker: str, n_bytes: int) -> float:
    """So many bytes of this process to a worker, by a socket on loopback."""
    data = np.ones(n_bytes, np.uint8)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send() -> None:
            there, _ = server.accept()
            with there:
                there.sendall(data.data)

        sender = threading.Thread(target=send)
        sender.start()
        ms: float = client.submit(_received_ms, server.getsockname()[1], n_bytes, workers=[worker], pure=False).result()
        sender.join()
    return ms


def _received_ms(port: int, n_bytes: int) -> float:
    start = time.perf_counter()
    data = np.empty(n_bytes, np.uint8)
    room = data.data
    with socket.create_connection(("127.0.0.1", port)) as there:
        while len(room) and (n := there.recv_into(room)):
            room = room[n:]
    return 1e3 * (time.perf_counter() - start)
