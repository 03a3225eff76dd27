"""fan_out: one strategy answers all agents once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError, whole_number
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch, Schedule, require_name
from swarmkv_lab.fanout.strategies import Strategy, strategy_named
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import GREEDY, Sampling
from swarmkv_lab.llama.settings import MAX_SEQUENCES, ContextSettings
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
    callback: Callable[[Run], None] | None = None,
    **settings: Any,
) -> Run:
    """All agents answer over one document (``tokens``, its prefix) by one strategy, of STRATEGIES or of peers.opened.

    tokens: or a snapshot of them, which every strategy but naive restores instead of prefilling. max_tokens: of each
    answer. n_ctx: cells of each context, None for as many as the budget needs. settings: kv_type, flash_attn, n_batch,
    n_threads as in Context. repeats: run that often and return the run of median end_to_end_ms, the rest in its
    ``repeats``. callback: called with the run before each llama_decode; what it raises ends the run.
    Raises ContextBudgetError, before any decode, when prefix, branches and max_tokens do not fit.
    """
    chosen = strategy_named(strategy)
    whole_number("repeats", repeats, 1)
    snapshot = tokens if isinstance(tokens, KVSnapshot) else None
    if snapshot is not None:
        kept = snapshot.identity
        settings = {"kv_type": kept.kv_type, "flash_attn": kept.flash_attn, "swa_full": kept.swa_full} | settings
    prefix = model.check_tokens(tokens.tokens if isinstance(tokens, KVSnapshot) else tokens)
    asked: dict[str, Any] = {
        "prompts": named_prompts(model, agents),
        "max_tokens": max_tokens,
        "sampling": sampling,
        "settings": ContextSettings.of(n_ctx=n_ctx, **settings),
        "snapshot": snapshot,
        "callback": callback,
    }
    runs = [run_once(model, prefix, chosen, **asked) for _ in range(repeats)]
    runs.sort(key=lambda run: run.metrics["end_to_end_ms"])
    median = runs[(len(runs) - 1) // 2]
    median.repeats = pd.DataFrame([run.metrics for run in runs])
    return median


def run_once(
    model: Model,
    prefix: np.ndarray,
    strategy: Strategy,
    *,
    prompts: Mapping[str, np.ndarray],
    max_tokens: int,
    settings: ContextSettings,
    sampling: Sampling = GREEDY,
    snapshot: KVSnapshot | None = None,
    callback: Callable[[Run], None] | None = None,
) -> Run:
    """One run of what fan_out is asked for, checked and tokenized."""
    lengths = {name: len(prompt) for name, prompt in prompts.items()}
    settings = budget(model, strategy, len(prefix), lengths, max_tokens, settings)
    branches = [Branch(name, prompt, max_tokens, sampling, len(prefix)) for name, prompt in prompts.items()]
    asked = model, prefix, Schedule(branches), strategy.name, settings, strategy.packs, snapshot, callback
    run = Run(*asked)
    strategy.answer(run)
    return run.ended()


def named_prompts(model: Model, agents: Prompts) -> dict[str, np.ndarray]:
    """Named branch tokens from whatever form the prompts were given in."""
    if isinstance(agents, str) or not isinstance(agents, Mapping | Sequence | np.ndarray) or len(agents) == 0:
        raise SwarmKVError("agents is a list of prompts, or a dict of them by name, with at least one in it")
    named = agents if isinstance(agents, Mapping) else {f"agent {i}": p for i, p in enumerate(agents, 1)}
    for name in named:
        require_name(name)
    return {name: tokens_of(model, prompt) for name, prompt in named.items()}


def tokens_of(model: Model, prompt: Prompt) -> np.ndarray:
    """A prompt's branch tokens, int32 (n,)."""
    return model.ask(prompt) if isinstance(prompt, str) else model.check_tokens(prompt)


def shared_prefix(tokens: np.ndarray, prompts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(prefix, prompts): what all the prompts begin with alike goes to the end of the prefix, and is decoded once.

    Every prompt keeps at least one token: a branch's logits come from a decode of its own.
    """
    if not prompts:
        raise SwarmKVError("there are no prompts: nothing can be alike in them")
    alike = 0
    rows = list(prompts.values())
    while all(alike < len(row) - 1 and row[alike] == rows[0][alike] for row in rows):
        alike += 1
    return np.concatenate([tokens, rows[0][:alike]]), {name: row[alike:] for name, row in prompts.items()}


def budget(
    model: Model,
    strategy: Strategy,
    n_prefix: int,
    lengths: Mapping[str, int],
    max_tokens: int,
    settings: ContextSettings,
) -> ContextSettings:
    """The settings with the cells that a strategy's contexts need: nothing is decoded that cannot be finished.

    lengths: tokens of each agent's prompt; max_tokens: of each answer. Raises ContextBudgetError with all the numbers.
    """
    whole_number("max_tokens", max_tokens)
    longest = max(lengths.values())
    position = n_prefix + longest + max_tokens
    if position > model.n_ctx_train:
        sizes = {"the document": n_prefix, f"the question of {max(lengths, key=lengths.__getitem__)}": longest}
        excess = position - model.n_ctx_train
        enough = [part for part, n in {**sizes, "the answer": max_tokens}.items() if n > excess]
        raise ContextBudgetError(
            f"prefix {n_prefix:,} + longest branch {longest:,} + max_tokens {max_tokens:,} = {position:,} positions, "
            f"and {model.name} was trained for {model.n_ctx_train:,}: shorten {' or '.join(enough or sizes)} "
            f"by {excess:,} tokens"
        )
    if strategy.shares and not settings.kv_unified:
        raise SwarmKVError(
            f"{strategy.name} needs kv_unified=True: with split caches no agent can be given the document's cells"
        )
    if strategy.shares and strategy.packs and len(lengths) >= MAX_SEQUENCES:
        raise SwarmKVError(
            f"{len(lengths)} agents: {strategy.name} answers at most {MAX_SEQUENCES - 1} in one batch, since a context "
            f"of llama.cpp has {MAX_SEQUENCES} sequences and the document takes one: ask fewer at a time"
        )
    tails = sum(length + max_tokens for length in lengths.values())
    need = n_prefix + tails if strategy.packs else position
    if settings.n_ctx is not None and need > settings.n_ctx:
        parts = (
            f"{len(lengths)} branches and answers {tails:,}"
            if strategy.packs
            else f"longest branch {longest:,} + max_tokens {max_tokens:,}"
        )
        raise ContextBudgetError(
            f"prefix {n_prefix:,} + {parts} = {need:,} tokens do not fit n_ctx={settings.n_ctx:,}: "
            f"pass n_ctx={need} or more, or None"
        )
    return settings.sized(need)
