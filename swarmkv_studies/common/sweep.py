"""sweep: a grid of runs, each saved as soon as it is measured."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.fanout.fan_out import Prompts
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import STRATEGIES, Strategy
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import GREEDY, Sampling
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.common.provenance import environment
from swarmkv_studies.common.rounds import Plan, measure, plan, record, rounds
from swarmkv_studies.common.runlog import Round, RunLog


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
    **settings: Any,
) -> pd.DataFrame:
    """Measure depths x n_agents x strategies x repeats: a DataFrame with a row per run (columns: data/README.md).

    path: a CSV file to which each run is appended once it is measured; a JSON file beside it holds the machine, the
    versions and the settings. After an interrupt, the same call continues with that file; a file measured with other
    settings or on another machine is refused (SwarmKVError). Without a path, an interrupt returns the runs measured so
    far, with a warning. The other arguments are as in fan_out.
    """
    grid = rounds(depths, n_agents, repeats)
    how: dict[str, Any] = {"max_tokens": max_tokens, "sampling": sampling, "callback": callback}
    asked = plan(model, tokens, grid, strategies, agents=agents, settings=ContextSettings.of(**settings), **how)
    return sweep_rounds(asked, grid, path=path, progress=progress)


def sweep_rounds(
    plan: Plan, rounds: Sequence[Round], *, path: str | Path | None = None, progress: bool = True
) -> pd.DataFrame:
    """Like sweep, for a Plan and any list of its rounds."""
    log = None
    if path is not None:
        read = {"document": plan.prefix.tobytes(), "prompts": b"".join(map(np.ndarray.tobytes, plan.prompts.values()))}
        about: dict[str, Any] = {f"{name}_sha256": hashlib.sha256(data).hexdigest() for name, data in read.items()}
        about["max_tokens"] = plan.max_tokens
        if plan.sampling != GREEDY:
            about["sampling"] = asdict(plan.sampling)
        log = RunLog(Path(path), environment(plan.model, plan.settings, **about))
    records: list[dict[str, Any]] = []
    try:
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
