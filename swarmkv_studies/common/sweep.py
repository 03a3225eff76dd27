"""sweep: a grid of runs measured here or on a cluster, each saved as soon as it is measured."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from swarmkv_lab.fanout.fan_out import Prompts
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import STRATEGIES, Strategy
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import GREEDY, Sampling
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.common.provenance import environment
from swarmkv_studies.common.rounds import Plan, measure, plan, record, rounds
from swarmkv_studies.common.runlog import Round, RunLog
from swarmkv_studies.many_machines.elsewhere import Elsewhere, elsewhere

# Of what a file says of its rows: where they were measured.
WHERE = ("processor", "cores", "memory_bytes", "system", "gpu", "python", "llama_cpp", "n_threads")


def sweep(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    *,
    depths: Sequence[int],
    n_agents: Sequence[int],
    strategies: Sequence[str | Strategy] = tuple(STRATEGIES),
    repeats: int = 3,
    agents: Prompts | None = None,
    max_tokens: int = 32,
    sampling: Sampling = GREEDY,
    path: str | Path | None = None,
    progress: bool = True,
    callback: Callable[[Run], None] | None = None,
    client: Any = None,
    **settings: Any,
) -> pd.DataFrame:
    """Measure depths x n_agents x strategies x repeats: a DataFrame with a row per run (columns: data/README.md).

    path: a CSV file to which each run is appended once it is measured; a JSON file beside it holds the machine, the
    versions and the settings. After an interrupt, the same call continues with that file; a file measured with other
    settings or on another machine is refused (SwarmKVError). Without a path, an interrupt returns the runs measured so
    far, with a warning. The other arguments are as in fan_out.
    client: a Dask client or an Executor: each round is measured as a whole by one worker, several at the same time by
    workers of the same processor and threads; others take no part. strategies are then names, and there is no callback.
    """
    grid = rounds(depths, n_agents, repeats)
    how: dict[str, Any] = {"max_tokens": max_tokens, "sampling": sampling, "callback": callback}
    asked = plan(model, tokens, grid, strategies, agents=agents, settings=ContextSettings.of(**settings), **how)
    return sweep_rounds(asked, grid, path=path, progress=progress, client=client)


def sweep_rounds(
    plan: Plan, rounds: Sequence[Round], *, path: str | Path | None = None, progress: bool = True, client: Any = None
) -> pd.DataFrame:
    """Like sweep, for a Plan and any list of its rounds."""
    with nullcontext() if client is None else elsewhere(client, plan) as workers:
        return _measured(plan, rounds, path, progress, workers)


def _measured(
    plan: Plan, rounds: Sequence[Round], path: str | Path | None, progress: bool, workers: Elsewhere | None
) -> pd.DataFrame:
    log = None
    if path is not None:
        read = {"document": plan.prefix.tobytes(), "prompts": b"".join(map(np.ndarray.tobytes, plan.prompts.values()))}
        about: dict[str, Any] = {f"{name}_sha256": hashlib.sha256(data).hexdigest() for name, data in read.items()}
        about["max_tokens"] = plan.max_tokens
        if plan.sampling != GREEDY:
            about["sampling"] = asdict(plan.sampling)
        here = environment(plan.model, plan.settings, **about)
        there = {} if workers is None else {name: workers.environment[name] for name in WHERE}
        log = RunLog(Path(path), here | there)
    records: list[dict[str, Any]] = []
    try:
        if workers is not None:
            _on_workers(workers, plan, rounds, log, records, progress)
        else:
            for measured in measure(plan, rounds, log=log, progress=progress):
                records.append(record(*measured))
    except KeyboardInterrupt:
        if log or not records:
            raise
        warnings.warn(f"interrupted: the {len(records)} runs measured so far are returned", stacklevel=2)
    if log:
        log.close()
        return log.frame(rounds, [strategy.name for strategy in plan.strategies])
    return pd.DataFrame(records)


def _on_workers(
    workers: Elsewhere,
    plan: Plan,
    rounds: Sequence[Round],
    log: RunLog | None,
    records: list[dict[str, Any]],
    progress: bool,
) -> None:
    """Measure rounds of which a run is missing, and save each when it is done."""
    names = [strategy.name for strategy in plan.strategies]
    left = [this for this in rounds if not (log and all((this, name) in log for name in names))]
    for this, measured in tqdm(
        workers.records(left), total=len(left), unit="round", disable=None if progress else True
    ):
        for one in measured:
            records.append(one)
            if log and (this, one["strategy"]) not in log:
                log.append(this, one)
