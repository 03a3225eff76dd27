"""Queueing: agents wait in one queue, and a machine that has the cache and is free takes the next one. Simulated."""

import math

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_studies.many_machines.shipping import WAYS, Document, Link, arrivals, machine_seconds


def service_times(agents: pd.DataFrame) -> pd.DataFrame:
    """What agents take of a machine that has the cache, s: first_s until the first token, rest_s after it.

    agents: measured, with the columns branch_ms, sample_ms and generate_ms: a bench's agents, or a sweep's runs.
    """
    return pd.DataFrame({"first_s": agents.branch_ms + agents.sample_ms, "rest_s": agents.generate_ms}) / 1e3


def simulate_cluster(
    document: Document,
    link: Link,
    n_machines: int,
    n_agents: int,
    service: pd.DataFrame,
    *,
    store_bytes_per_s: float = math.inf,
) -> pd.DataFrame:
    """All agents come at time 0 and are answered by n_machines, which get the cache by ``arrivals``: a row per way.

    service: from ``service_times``; each agent takes as long as one of its rows, drawn. The start is warm. Columns way,
    n_machines, n_agents; first_p50_s, first_p90_s, first_p99_s, first_max_s (quantiles over the agents of the time to
    the first token, waiting included), makespan_s (until the last answer), machine_s (prefills, restores and answers).
    10,000 machines and a million agents take seconds. Raises SwarmKVError as ``arrivals``, and for service times that
    are not above 0.
    """
    n_agents = whole_number("n_agents", n_agents, 1)
    first = service.first_s.to_numpy(float)
    total = first + service.rest_s.to_numpy(float)
    if not (first > 0).all() or not (total >= first).all():
        raise SwarmKVError(f"first_s is down to {first.min()} s, and must be above 0; rest_s must be at least 0")
    rows = []
    for way in WAYS:
        ready = arrivals(way, document, link, n_machines, store_bytes_per_s=store_bytes_per_s)
        _, start, which = serve(ready, n_agents, total, np.random.default_rng(0))
        waited = start + first[which]
        p50, p90, p99, longest = np.quantile(waited, (0.5, 0.9, 0.99, 1))
        rows.append({
            "way": way, "n_machines": n_machines, "n_agents": n_agents,
            "first_p50_s": p50, "first_p90_s": p90, "first_p99_s": p99, "first_max_s": longest,
            "makespan_s": float((start + total[which]).max()),
            "machine_s": machine_seconds(way, document, ready) + float(total[which].sum()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def serve(
    ready: np.ndarray, n_agents: int, durations: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List scheduling (R. Graham, 1969) of n_agents in one queue: (machine, start in s, index of its duration) of each.

    ready: when each machine begins, s, the earliest first. An agent's duration is drawn only when a machine takes it.
    So a machine's turns begin at its ready time plus sums of its own draws, whoever the agents are, and the queue gets
    the n_agents earliest turns of all machines. This is exact, and needs no heap: each machine draws as many turns as
    it is expected to need, and more while it could have one that is earlier than the latest turn of the queue.
    """
    free, mean = ready.astype(float), durations.mean()
    # when the queue would be empty if every answer took the mean time: of the k earliest machines, for the best k
    latest = mean + ((n_agents * mean + ready.cumsum()) / np.arange(1, len(ready) + 1)).min()  # mean: for rounding
    machine, start, which = np.empty(0, int), np.empty(0), np.empty(0, int)
    while len(busy := np.flatnonzero(free <= latest)):
        turns = 1 + ((latest - free[busy]) / mean).astype(int)
        whose, drawn = np.repeat(busy, turns), rng.integers(len(durations), size=turns.sum())
        took = durations[drawn].cumsum()
        last = turns.cumsum() - 1
        before = np.repeat(np.append(0.0, took[last[:-1]]), turns)  # what the machines ahead of this one drew
        ends = free[whose] + took - before
        free[busy] = ends[last]
        machine = np.append(machine, whose)
        start, which = np.append(start, ends - durations[drawn]), np.append(which, drawn)
        kept = np.argpartition(start, n_agents - 1)[:n_agents]
        machine, start, which = machine[kept], start[kept], which[kept]
        latest = np.nextafter(start.max(), 0)
    order = np.lexsort([machine, start])
    return machine[order], start[order], which[order]


def crossing(simulated: pd.DataFrame, way: str, other: str) -> float | None:
    """From how many machines on ``way`` has a slower first_p50_s than ``other``; None if it is not, with most machines.

    Between the two numbers of machines that were simulated around it, the ratio of both is taken to be a power of the
    number. simulated: frames of ``simulate_cluster`` for several n_machines, one under another.
    """
    by_way = simulated.pivot(index="n_machines", columns="way", values="first_p50_s").sort_index()
    slower = np.log(by_way[way] / by_way[other]).to_numpy()
    machines = by_way.index.to_numpy(float)
    if slower[-1] <= 0:
        return None
    before = np.flatnonzero(slower <= 0)
    if not len(before):
        return float(machines[0])
    around = slice(before[-1], before[-1] + 2)
    return float(np.exp(np.interp(0, slower[around], np.log(machines[around]))))
