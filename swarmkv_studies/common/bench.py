"""bench: measure strategies on one document at one depth; one report with environment, runs and summary."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from swarmkv_lab.fanout.fan_out import Prompts
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import Strategy
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.common.provenance import environment
from swarmkv_studies.common.rounds import measure, plan, record, rounds
from swarmkv_studies.common.summary import summarize
from swarmkv_studies.snapshot_file.limits import restore_against_memcpy


def bench(
    model: Model,
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
        for this, run, exactness in measure(asked, tries):
            per_agent = run.agents.merge(exactness, on="agent") if len(exactness) else run.agents
            records.append({**record(this, run, exactness), "agents": per_agent.to_dict("records")})
            runs.append(run)
        restore = restore_against_memcpy(model, tokens[:depth], settings=chosen)
    except KeyboardInterrupt:
        if not records:
            raise
    return {"environment": env, "restore": restore, "runs": records, "summary": summarize(records)}, runs
