"""bench: measure strategies on one document at one depth; one report with environment, runs and summary."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from swarmkv_lab.errors import whole_number
from swarmkv_lab.fanout.fan_out import Prompts
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import STRATEGIES, Strategy
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import GREEDY, Sampling
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.common.provenance import environment
from swarmkv_studies.common.rounds import measure, plan, record, rounds
from swarmkv_studies.common.summary import summarize
from swarmkv_studies.snapshot_file.limits import restore_against_memcpy

# The prefill is the same work in every strategy. If its times in beats differ by more than this factor within a round,
# the machine was disturbed by more than the metronome can follow.
STEADY = 1.1


def bench(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    *,
    depth: int,
    n_agents: int,
    strategies: Sequence[str | Strategy],
    repeats: int = 3,
    max_retries: int = 0,
    max_tokens: int = 16,
    sampling: Sampling = GREEDY,
    agents: Prompts | None = None,
    **settings: Any,
) -> tuple[dict[str, Any], list[Run]]:
    """Measure the strategies in turns. Returns the report, ready for JSON, and the runs behind its medians.

    depth: tokens of the document to read. max_retries: rounds that may be measured again. With retries, a round (every
    strategy once) whose prefills in beats differ by more than STEADY stays in the report but not in the medians, unless
    no round is better. A KeyboardInterrupt ends the bench early; what was measured is returned, if there is any.
    """
    chosen = ContextSettings.of(**settings)
    tries = rounds([depth], [n_agents], repeats + whole_number("max_retries", max_retries))
    how: dict[str, Any] = {"max_tokens": max_tokens, "sampling": sampling}
    asked = plan(model, tokens, tries, strategies, agents=agents, settings=chosen, **how)
    env = environment(model, chosen, depth=depth, n_agents=n_agents, repeats=repeats, max_tokens=max_tokens)
    records: list[dict[str, Any]] = []
    runs: list[Run] = []
    restore = None
    try:
        for this in tries:
            before = len(records)
            for _, run, exactness in measure(asked, [this], warm_up=not records):
                per_agent = run.agents.merge(exactness, on="agent") if len(exactness) else run.agents
                row = {**record(this, run, exactness), "steady": True, "agents": per_agent.to_dict("records")}
                records.append(row)
                runs.append(run)
            if max_retries and not _is_steady(runs[before:]):
                for row in records[before:]:
                    row["steady"] = False
            if len({row["repeat"] for row in records if row["steady"]}) == repeats:
                break
        restore = restore_against_memcpy(model, tokens[:depth], settings=chosen)
    except KeyboardInterrupt:
        if not records:
            raise
    kept = [run for run, row in zip(runs, records, strict=True) if row["steady"]] or runs
    return {"environment": env, "restore": restore, "runs": records, "summary": summarize(records)}, kept


def _is_steady(runs: Sequence[Run]) -> bool:
    prefills = [run.metrics["prefill_beats"] for run in runs if run.strategy in STRATEGIES]  # a peer's may be more work
    return max(prefills) <= STEADY * min(prefills)
