"""Experiments: fan_out runs one strategy once, sweep a grid of them, interleaved."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from swarmkv_lab.documents import load_agents
from swarmkv_lab.errors import ContextBudgetError, SwarmKVError
from swarmkv_lab.llama import GREEDY, Model, Sampling
from swarmkv_lab.run import Agent, Run
from swarmkv_lab.strategies import STRATEGIES

Prompt = str | Sequence[int] | np.ndarray
Prompts = Sequence[Prompt] | Mapping[str, Prompt]
"""Agents' prompts, named or not: a question in words (the model's chat template is put around it) or token ids."""


def fan_out(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    agents: Prompts,
    strategy: str = "shared",
    *,
    max_tokens: int = 32,
    sampling: Sampling = GREEDY,
    n_ctx: int | None = None,
    repeats: int = 1,
    **settings: Any,
) -> Run:
    """All agents answer over one document (``tokens``, its prefix) by one strategy; see strategies.STRATEGIES.

    n_ctx: cells of each context, None for as many as the budget needs. settings: kv_type, flash_attn, n_batch,
    n_threads as in Context. repeats: run that often and return the run of median end_to_end_ms, the rest in its
    ``repeats``. Raises ContextBudgetError, before any decode, when prefix, branches and max_tokens do not fit.
    """
    if strategy not in STRATEGIES:
        raise SwarmKVError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    if max_tokens < 0 or repeats < 1:
        raise SwarmKVError(f"max_tokens={max_tokens} and repeats={repeats}: at least 0 and at least 1")
    prefix = model.check_tokens(tokens)
    prompts = _prompts(model, agents)
    settings["n_ctx"] = _budget(model, strategy, len(prefix), prompts, max_tokens, n_ctx)
    runs = []
    for _ in range(repeats):
        branches = [Agent(name, prompt) for name, prompt in prompts.items()]
        run = Run(model, prefix, branches, strategy, max_tokens, sampling, settings)
        STRATEGIES[strategy](run)
        runs.append(run)
    runs.sort(key=lambda run: run.metrics["end_to_end_ms"])
    median = runs[(len(runs) - 1) // 2]
    median.repeats = pd.DataFrame([run.metrics for run in runs])
    return median


def measure(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    *,
    depths: Sequence[int],
    n_agents: Sequence[int],
    strategies: Sequence[str],
    repeats: int = 3,
    agents: Prompts | None = None,
    **settings: Any,
) -> Iterator[tuple[int, Run, pd.DataFrame]]:
    """Yield (repeat, run, exactness against naive) over a grid, the strategies interleaved (A B C, A B C).

    Everything is warmed up once, unmeasured. Agents' prompts are taken in turn from ``agents``, by default the
    dossier's. Without naive among the strategies exactness is empty.
    """
    if not strategies or min([*depths, *n_agents, repeats], default=0) < 1 or not (depths and n_agents):
        raise SwarmKVError("depths, n_agents and strategies must not be empty; repeats and all numbers at least 1")
    prefix = model.check_tokens(tokens)
    if max(depths) > len(prefix):
        raise SwarmKVError(f"depth {max(depths):,} is more than the document's {len(prefix):,} tokens")
    prompts = _prompts(model, load_agents("dossier") if agents is None else agents)
    groups = {n: _take(prompts, n) for n in n_agents}
    cells = [(depth, n) for depth in depths for n in n_agents]
    strategies = sorted(set(strategies), key=lambda name: (name != "naive", strategies.index(name)))
    for strategy in strategies:  # pages, threads and caches are warm afterwards, and bad arguments have surfaced
        fan_out(model, prefix[: min(64, *depths)], groups[max(n_agents)], strategy, **settings | {"max_tokens": 1})
        for depth, n in cells:
            _budget(model, strategy, depth, groups[n], settings.get("max_tokens", 32), settings.get("n_ctx"))
    bar = tqdm(total=len(cells) * repeats * len(strategies), desc="runs", unit="run", disable=None)
    with bar:
        for depth, n in cells:
            for repeat in range(repeats):
                reference = None
                for strategy in strategies:
                    bar.set_postfix_str(f"{strategy}, {depth:,} tokens, {n} agents")
                    run = fan_out(model, prefix[:depth], groups[n], strategy, **settings)
                    reference = run if strategy == "naive" else reference
                    exactness = run.compare(reference) if reference else pd.DataFrame()
                    bar.update()
                    yield repeat, run, exactness


def race(
    model: Model, tokens: Sequence[int] | np.ndarray, agents: Prompts, strategies: Sequence[str], **settings: Any
) -> dict[str, Run]:
    """Each strategy once on the same agents, after a warm-up: the runs by strategy."""
    grid = {"depths": [len(tokens)], "n_agents": [len(agents)], "strategies": strategies, "repeats": 1}
    return {run.strategy: run for _, run, _ in measure(model, tokens, agents=agents, **grid, **settings)}


def sweep(model: Model, tokens: Sequence[int] | np.ndarray, **grid: Any) -> pd.DataFrame:
    """The grid of ``measure`` as a tidy DataFrame: a row a run, its metrics and its exactness against naive."""
    return pd.DataFrame([record(*measured) for measured in measure(model, tokens, **grid)])


def record(repeat: int, run: Run, exactness: pd.DataFrame) -> dict[str, Any]:
    """One run as one flat record: metrics, and exactness over all its agents."""
    exact = {}
    if len(exactness):
        exact = {
            "max_abs_logit_diff": float(exactness.max_abs_logit_diff.max()),
            "kl": float(exactness.kl.max()),
            "same_tokens": bool(exactness.same_tokens.all()),
        }
    return {"repeat": repeat, **run.metrics, **exact}


def _prompts(model: Model, agents: Prompts) -> dict[str, np.ndarray]:
    """Named branch tokens from whatever form the prompts were given in."""
    if isinstance(agents, str) or len(agents) == 0:
        raise SwarmKVError("agents is a list of prompts, or a dict of them by name, with at least one in it")
    named = agents if isinstance(agents, Mapping) else {f"agent {i}": p for i, p in enumerate(agents, 1)}
    return {name: model.ask(p) if isinstance(p, str) else model.check_tokens(p) for name, p in named.items()}


def _take(prompts: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """n prompts, going round again when there are fewer: security, ..., security 2, ..."""
    rounds = (
        (name if i < len(prompts) else f"{name} {i // len(prompts) + 1}", prompts[name])
        for i, name in enumerate(islice(cycle(prompts), n))
    )
    return dict(rounds)


def _budget(
    model: Model, strategy: str, n_prefix: int, prompts: Mapping[str, np.ndarray], max_tokens: int, n_ctx: int | None
) -> int:
    """The cells that a strategy's contexts need, or ContextBudgetError: nothing is decoded that cannot be finished."""
    longest = max(map(len, prompts.values()))
    position = n_prefix + longest + max_tokens
    if position > model.n_ctx_train:
        raise ContextBudgetError(
            f"prefix {n_prefix:,} + longest branch {longest:,} + max_tokens {max_tokens:,} = {position:,} positions, "
            f"and {model.name} was trained for {model.n_ctx_train:,}: shorten the document or the answer"
        )
    tails = sum(len(prompt) + max_tokens for prompt in prompts.values())
    need = n_prefix + tails if strategy == "batched" else position
    if n_ctx is not None and need > n_ctx:
        parts = (
            f"{len(prompts)} branches and answers {tails:,}"
            if strategy == "batched"
            else (f"longest branch {longest:,} + max_tokens {max_tokens:,}")
        )
        raise ContextBudgetError(
            f"prefix {n_prefix:,} + {parts} = {need:,} tokens do not fit n_ctx={n_ctx:,}: "
            f"pass n_ctx={need} or more, or None"
        )
    return n_ctx or need
