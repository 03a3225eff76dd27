"""Cluster bench: what workers cost and bring on this machine, each against one process, in turns."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab import cluster
from swarmkv_lab.cluster.fan_out import ClusterRun
from swarmkv_lab.cluster.local import local_cluster
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.fan_out import fan_out
from swarmkv_lab.llama.loading import load_model
from swarmkv_lab.llama.model import Model
from swarmkv_lab.snapshot.prefill import prefill
from swarmkv_lab.snapshot.snapshot import KVSnapshot


def against_one_process(
    model: Model,
    tokens: np.ndarray,
    agents: Mapping[str, Any] | Sequence[Any],
    crews: Sequence[tuple[int, int]],
    *,
    max_tokens: int = 16,
    repeats: int = 5,
) -> pd.DataFrame:
    """Agents over a document, its prefill included: one process, and workers x threads, in turns.

    crews: (workers, threads of each). Returns a row per run: workers (0: this process alone), threads, repeat, depth,
    n_agents, end_to_end_ms, and same: whether all logits and tokens are this process's.
    """
    rows = []
    for n_workers, threads in crews:
        with local_cluster(n_workers, threads) as client:
            for repeat in range(-1, repeats):  # a warm-up first
                ways: dict[str, Callable[[], Any]] = {
                    "alone": lambda: fan_out(model, tokens, agents, max_tokens=max_tokens),
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


def run_with_a_death(client: Any, model: Model, tokens: np.ndarray, agents: Any, **how: Any) -> tuple[ClusterRun, str]:
    """A fan-out on a cluster of which a worker is killed (SIGKILL) while it works, once two answers are there.

    Returns the run and the dead worker's address. Raises SwarmKVError when nobody was at work any more.
    """
    killed: list[str] = []

    def kill(run: ClusterRun) -> None:
        at_work = [worker for worker, keys in client.processing().items() if keys and worker in run.hellos]
        if not killed and sum(map(bool, run.answers.values())) >= 2 and at_work:
            killed.append(at_work[0])
            os.kill(int(run.hellos[killed[0]].process.rpartition(":")[2]), signal.SIGKILL)

    run = cluster.fan_out(client, model, tokens, agents, callback=kill, progress=False, **how)
    if not killed:
        raise SwarmKVError(f"nobody was at work when two of {len(run.branches)} answers were there: ask more agents")
    return run, killed[0]


def deaths(model: Model, tokens: np.ndarray, agents: Any, *, repeats: int = 3, **how: Any) -> pd.DataFrame:
    """Two workers, undisturbed and with a death in the middle, in turns, each time on a fresh cluster.

    Columns repeat, depth, n_agents, undisturbed_ms, death_ms (end to end), and same: whether all answers are the same.
    """
    rows = []
    for repeat in range(repeats):
        with local_cluster(2) as client:
            cluster.fan_out(client, model, tokens, agents, progress=False, **how)  # models are loaded
            whole = cluster.fan_out(client, model, tokens, agents, progress=False, **how)
            wounded, _ = run_with_a_death(client, model, tokens, agents, **how)
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
    """A snapshot from one worker to another by Dask, verified and restored, against a plain copy by a socket.

    client: of a Dask cluster with two workers. Returns a row per repeat and way ("verified and restored", timed here
    from the call to the result; "plain copy", timed in the second worker): bytes, ms.
    """
    first, second = list(client.nthreads())[:2]
    source, rows = str(model.path), []
    for repeat in range(-1, repeats):
        held = client.submit(_captured, source, tokens, workers=[first], pure=False)
        n_bytes = client.submit(lambda snapshot: snapshot.nbytes, held, workers=[first], pure=False).result()
        start = time.perf_counter()
        client.submit(_restored, source, held, workers=[second], pure=False).result()
        ways = {
            "verified and restored": 1e3 * (time.perf_counter() - start),
            "plain copy": _plain_copy_ms(client, second, n_bytes),
        }
        rows += [{"repeat": repeat, "way": way, "bytes": n_bytes, "ms": ms} for way, ms in ways.items()]
    frame = pd.DataFrame(rows)
    return frame[frame.repeat >= 0].reset_index(drop=True)


_open_model = cache(load_model)  # one in each worker


def _captured(source: str, tokens: np.ndarray) -> KVSnapshot:
    return prefill(_open_model(source), tokens, progress=False)


def _restored(source: str, snapshot: KVSnapshot) -> None:
    with _open_model(source).context(len(snapshot.tokens)) as ctx:
        snapshot.restore(ctx)


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
