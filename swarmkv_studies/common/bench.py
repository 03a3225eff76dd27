"""bench: measure strategies on one document at one depth; one report with environment, runs and summary."""

import timeit
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

import swarmkv_lab as lab
from swarmkv_lab.fanout.fan_out import Prompts
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import Strategy
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.common.provenance import environment, keep
from swarmkv_studies.common.rounds import measure, plan, record, rounds
from swarmkv_studies.common.summary import summarize


def bench(
    model: lab.Model,
    tokens: Sequence[int] | np.ndarray,
    *,
    depth: int,
    n_agents: int,
    strategies: Sequence[str | Strategy],
    repeats: int = 3,
    max_tokens: int = 16,
    agents: Prompts | None = None,
    **settings: Any,
) -> tuple[dict[str, Any], list[Run]]:
    """Measure the strategies in turns, ``repeats`` rounds. Returns the report, ready for JSON, and its runs.

    depth: tokens of the document to read. The report has environment (with load, the machine's load average when it
    began), restore, runs and summary. A KeyboardInterrupt ends the bench early; what was measured is returned (restore
    is None then), if there is any.
    """
    chosen = ContextSettings(**settings)
    tries = rounds([depth], [n_agents], repeats)
    asked = plan(model, tokens, tries, strategies, agents=agents, settings=chosen, max_tokens=max_tokens)
    env = environment(model, chosen, depth=depth, n_agents=n_agents, repeats=repeats, max_tokens=max_tokens)
    env["load"] = psutil.getloadavg()[0]
    records: list[dict[str, Any]] = []
    runs: list[Run] = []
    restore = None
    try:
        for this, run, exactness in measure(asked):
            per_agent = run.agents.merge(exactness, on="agent") if len(exactness) else run.agents
            records.append({**record(this, run, exactness), "agents": per_agent.to_dict("records")})
            runs.append(run)
        restore = restore_against_memcpy(model, tokens[:depth], settings=chosen)
    except KeyboardInterrupt:
        if not records:
            raise
    return {"environment": env, "restore": restore, "runs": records, "summary": summarize(records)}, runs


def restore_against_memcpy(
    model: lab.Model,
    tokens: Sequence[int] | np.ndarray,
    rounds: int = 9,
    settings: ContextSettings = ContextSettings(),  # noqa: B008 it is frozen
) -> dict[str, Any]:
    """Time a restore and a copy of the same bytes between warm buffers, in turns: medians in ms.

    A restore cannot be faster than a copy of its bytes. memcpy_ms: copied as one block, where llama.cpp's cache is many
    pieces: a layer's keys, or without flash attention one element of a layer's values for all tokens. ratio: restore_ms
    over memcpy_ms.
    """
    with model.open_context(settings.sized(len(tokens))) as ctx:
        ctx.decode(tokens)
        snapshot = lab.KVSnapshot.capture(ctx, tokens)
        target = snapshot.data.copy()
        calls = (lambda: snapshot.restore(ctx), lambda: np.copyto(target, snapshot.data))
        seconds = [[timeit.timeit(call, number=1) for call in calls] for _ in range(rounds + 1)]
    restore, memcpy = 1e3 * np.median(seconds[1:], axis=0)  # the first round is a warm-up
    times = {"restore_ms": float(restore), "memcpy_ms": float(memcpy)}
    return {"bytes": snapshot.nbytes, **times, "ratio": float(restore / memcpy)}


def kept_bench(folder: Path, model: lab.Model, tokens: np.ndarray, **how: Any) -> None:
    """The article's experiment, two agents: bench.csv, timelines.csv and, as a sign of the end, bench.json.

    Where that is, nothing is measured. It has no summary, as that is made of the runs (Measurements.bench). how: as in
    bench.
    """
    if (folder / "bench.json").exists():
        return
    report, runs = bench(model, tokens, n_agents=2, strategies=list(lab.STRATEGIES), **how)
    turns = [runs[i : i + len(lab.STRATEGIES)] for i in range(0, len(runs), len(lab.STRATEGIES))]
    turns.sort(key=lambda turn: turn[0].metrics["end_to_end_ms"])
    median = [run.timeline.assign(strategy=run.strategy) for run in turns[(len(turns) - 1) // 2]]
    pd.concat(median).to_csv(folder / "timelines.csv", index=False)
    pd.DataFrame(report["runs"]).drop(columns="agents").to_csv(folder / "bench.csv", index=False)
    if report["restore"] is None:  # bench was interrupted: it returns what it has measured
        raise KeyboardInterrupt
    del report["summary"]
    keep(folder / "bench.json", report)
