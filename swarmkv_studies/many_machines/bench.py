"""Cluster bench: what workers cost and bring on this machine, each against one process, in turns."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

import swarmkv_lab as lab
from swarmkv_lab.cluster import ClusterRun
from swarmkv_lab.cluster.dispatch import local_cluster


def against_one_process(
    model: lab.Model,
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
                asked = (model, tokens, agents)
                ways: dict[int, Callable[[], Any]] = {
                    0: partial(lab.fan_out, *asked, max_tokens=max_tokens),
                    n_workers: partial(lab.cluster.fan_out, client, *asked, max_tokens=max_tokens, progress=False),
                }
                order = list(ways)[:: -1 if repeat % 2 else 1]  # who is second is not always the same
                runs = {workers: ways[workers]() for workers in order}
                exact = runs[n_workers].compare(runs[0])
                same = bool((exact.max_abs_logit_diff == 0).all() and exact.same_tokens.all())
                about = {
                    "crew": f"{n_workers} x {threads}", "threads": threads, "repeat": repeat, "depth": len(tokens),
                    "n_agents": len(agents), "same": same,
                }  # fmt: skip
                for workers in ways:
                    ms = runs[workers].metrics["end_to_end_ms"]
                    rows.append(about | {"workers": workers, "end_to_end_ms": ms})
    frame = pd.DataFrame(rows)
    return frame[frame.repeat >= 0].reset_index(drop=True)


def run_with_a_death(
    client: Any, model: lab.Model, tokens: np.ndarray, agents: Any, **how: Any
) -> tuple[ClusterRun, str]:
    """A fan-out on a cluster of which a worker is killed (SIGKILL) while it works, once two answers are there.

    Returns the run and the dead worker's address. Raises SwarmKVError when nobody was at work any more.
    """
    killed: list[str] = []

    def kill(run: ClusterRun) -> None:
        at_work = [worker for worker, keys in client.processing().items() if keys and worker in run.infos]
        if not killed and sum(map(bool, run.answers.values())) >= 2 and at_work:
            killed.append(at_work[0])
            os.kill(int(run.infos[killed[0]].process.rpartition(":")[2]), signal.SIGKILL)

    run = lab.cluster.fan_out(client, model, tokens, agents, callback=kill, progress=False, **how)
    if not killed:
        raise lab.SwarmKVError(
            f"nobody was at work when two of {len(run.branches)} answers were there: ask more agents"
        )
    return run, killed[0]


def cluster_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One process against workers x threads: medians in s, and whether all answers are the same.

    rows: from ``against_one_process``. ratio: the median of the repeats' own, as a machine changes its
    speed between them.
    """
    by = ["n_agents", "crew", "repeat"]
    alone, crew = (rows[rows.workers.eq(0) == own].set_index(by).end_to_end_ms / 1e3 for own in (True, False))
    table = pd.DataFrame({"one_process_s": alone, "workers_s": crew, "ratio": crew / alone})
    return table.groupby(by[:2]).median().assign(same=rows.groupby(by[:2]).same.all()).reset_index()
