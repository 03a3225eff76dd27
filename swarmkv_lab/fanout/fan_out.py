"""fan_out: one strategy answers all agents once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError
from swarmkv_lab.fanout.run import Branch, Run
from swarmkv_lab.fanout.schedule import Schedule
from swarmkv_lab.fanout.strategies import STRATEGIES, Strategy
from swarmkv_lab.llama import GREEDY, Model, Sampling
from swarmkv_lab.snapshot.snapshot import KVSnapshot

Prompt = str | Sequence[int] | np.ndarray
Prompts = Sequence[Prompt] | Mapping[str, Prompt]
"""Agents' prompts, named or not: a question in words (the model's chat template is put around it) or token ids."""


def fan_out(
    model: Model,
    tokens: Sequence[int] | np.ndarray | KVSnapshot,
    agents: Prompts,
    strategy: str | Strategy = "shared",
    *,
    max_tokens: int = 32,
    sampling: Sampling = GREEDY,
    n_ctx: int | None = None,
    repeats: int = 1,
    watch: Callable[[Run], None] | None = None,
    **settings: Any,
) -> Run:
    """All agents answer over one document (``tokens``, its prefix) by one strategy, of STRATEGIES or of peers.opened.

    tokens: or a snapshot of them, which every strategy but naive restores instead of prefilling.
    n_ctx: cells of each context, None for as many as the budget needs. settings: kv_type, flash_attn, n_batch,
    n_threads as in Context. repeats: run that often and return the run of median end_to_end_ms, the rest in its
    ``repeats``. watch: called with the run before each llama_decode; what it raises ends the run.
    Raises ContextBudgetError, before any decode, when prefix, branches and max_tokens do not fit.
    """
    answer = strategy_named(strategy)
    if max_tokens < 0 or repeats < 1:
        raise SwarmKVError(f"max_tokens={max_tokens} and repeats={repeats}: at least 0 and at least 1")
    snapshot = tokens if isinstance(tokens, KVSnapshot) else None
    if snapshot is not None:
        kept = snapshot.identity
        settings = {"kv_type": kept.kv_type, "flash_attn": kept.flash_attn, "swa_full": kept.swa_full} | settings
    prefix = model.check_tokens(tokens if snapshot is None else snapshot.tokens)
    prompts = named_prompts(model, agents)
    name = answer.__name__
    lengths = {agent: len(prompt) for agent, prompt in prompts.items()}
    settings["n_ctx"] = budget(model, name, len(prefix), lengths, max_tokens, n_ctx)
    runs = []
    for _ in range(repeats):
        branches = [Branch(agent, prompt, max_tokens, sampling, len(prefix)) for agent, prompt in prompts.items()]
        run = Run(model, prefix, Schedule(branches), name, settings, watch, snapshot)
        answer(run)
        runs.append(run)
    runs.sort(key=lambda run: run.metrics["end_to_end_ms"])
    median = runs[(len(runs) - 1) // 2]
    median.repeats = pd.DataFrame([run.metrics for run in runs])
    return median


def strategy_named(strategy: str | Strategy) -> Strategy:
    """One of STRATEGIES by its name, or a callable as it is."""
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise SwarmKVError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    return STRATEGIES[strategy] if isinstance(strategy, str) else strategy


def named_prompts(model: Model, agents: Prompts) -> dict[str, np.ndarray]:
    """Named branch tokens from whatever form the prompts were given in."""
    if isinstance(agents, str) or len(agents) == 0:
        raise SwarmKVError("agents is a list of prompts, or a dict of them by name, with at least one in it")
    named = agents if isinstance(agents, Mapping) else {f"agent {i}": p for i, p in enumerate(agents, 1)}
    return {name: model.ask(p) if isinstance(p, str) else model.check_tokens(p) for name, p in named.items()}


def shared_prefix(tokens: np.ndarray, prompts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(prefix, prompts): what all the prompts begin with alike goes to the end of the prefix, and is decoded once.

    Every prompt keeps at least one token: a branch's logits come from a decode of its own.
    """
    alike = 0
    rows = list(prompts.values())
    while all(alike < len(row) - 1 and row[alike] == rows[0][alike] for row in rows):
        alike += 1
    return np.concatenate([tokens, rows[0][:alike]]), {name: row[alike:] for name, row in prompts.items()}


def budget(
    model: Model, strategy: str, n_prefix: int, lengths: Mapping[str, int], max_tokens: int, n_ctx: int | None
) -> int:
    """The cells that a strategy's contexts need, or ContextBudgetError: nothing is decoded that cannot be finished."""
    longest = max(lengths.values())
    position = n_prefix + longest + max_tokens
    if position > model.n_ctx_train:
        raise ContextBudgetError(
            f"prefix {n_prefix:,} + longest branch {longest:,} + max_tokens {max_tokens:,} = {position:,} positions, "
            f"and {model.name} was trained for {model.n_ctx_train:,}: shorten the document or the answer"
        )
    tails = sum(length + max_tokens for length in lengths.values())
    need = n_prefix + tails if strategy == "batched" else position
    if n_ctx is not None and need > n_ctx:
        parts = (
            f"{len(lengths)} branches and answers {tails:,}"
            if strategy == "batched"
            else (f"longest branch {longest:,} + max_tokens {max_tokens:,}")
        )
        raise ContextBudgetError(
            f"prefix {n_prefix:,} + {parts} = {need:,} tokens do not fit n_ctx={n_ctx:,}: "
            f"pass n_ctx={need} or more, or None"
        )
    return n_ctx or need
