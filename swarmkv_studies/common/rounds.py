"""Grids of runs: strategies by depth and number of agents, in turns; each run is saved as soon as it is measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.fanout.documents import load_agents
from swarmkv_lab.fanout.fan_out import Prompts, budget, fan_out, named_prompts
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import Strategy, strategy_named
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings


class Round(NamedTuple):
    """One repeat of one point of a grid; every strategy runs once in it."""

    repeat: int
    depth: int
    n_agents: int


def rounds(depths: Sequence[int], n_agents: Sequence[int], repeats: int) -> list[Round]:
    """All points once, then all points again: an interrupted sweep has every point rather than many repeats of a few.

    Raises SwarmKVError for an empty list or a number below 1.
    """
    if not (len(depths) and len(n_agents)):
        raise SwarmKVError("depths and n_agents must not be empty: name at least one of each")
    for name, values in (("depths", depths), ("n_agents", n_agents), ("repeats", [repeats])):
        for value in values:
            whole_number(name, value, 1)
    return [Round(repeat, depth, n) for repeat in range(repeats) for depth in depths for n in n_agents]


@dataclass(frozen=True)
class Plan:
    """What to measure, already checked, so that no run is refused halfway. Created by ``plan``."""

    model: Model
    prefix: np.ndarray
    prompts: Mapping[str, np.ndarray]
    rounds: Sequence[Round]
    strategies: Sequence[Strategy]
    """the baseline first, because the other strategies' answers are compared with its answers"""
    max_tokens: int
    settings: ContextSettings
    callback: Callable[[Run], None] | None

    def run(self, strategy: Strategy, depth: int, n_agents: int, max_tokens: int | None = None) -> Run:
        """Run one strategy at one depth (tokens) with one number of agents."""
        return fan_out(
            self.model,
            self.prefix[:depth],
            _prompts_of(self.prompts, n_agents),
            strategy,
            max_tokens=self.max_tokens if max_tokens is None else max_tokens,
            callback=self.callback,
            **vars(self.settings),
        )


def plan(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    rounds: Sequence[Round],
    strategies: Sequence[str | Strategy],
    *,
    agents: Prompts | None = None,
    max_tokens: int = 32,
    settings: ContextSettings = ContextSettings(),  # noqa: B008 it is frozen
    callback: Callable[[Run], None] | None = None,
) -> Plan:
    """Check all runs and return the Plan; raises the SwarmKVError of a run that is impossible.

    agents: by default the questions of the dossier.
    """
    if not strategies:
        raise SwarmKVError("strategies must not be empty: name at least one")
    prefix = model.check_tokens(tokens)
    deepest = max(this.depth for this in rounds)
    if deepest > len(prefix):
        raise SwarmKVError(f"depth {deepest:,} is more than the document's {len(prefix):,} tokens")
    prompts = named_prompts(model, load_agents("dossier") if agents is None else agents)
    by_name = {strategy.name: strategy for strategy in map(strategy_named, strategies)}
    chosen = sorted(by_name.values(), key=lambda strategy: strategy.name != BASELINE)
    for strategy, this in product(chosen, rounds):
        lengths = {name: len(prompt) for name, prompt in _prompts_of(prompts, this.n_agents).items()}
        budget(model, strategy, this.depth, lengths, max_tokens, settings)
    return Plan(model, prefix, prompts, rounds, chosen, max_tokens, settings, callback)


def measure(
    plan: Plan, rounds: Sequence[Round] | None = None, *, progress: bool = True
) -> Iterator[tuple[Round, Run, pd.DataFrame]]:
    """Yield (round, run, exactness against naive); strategies take turns within each round (A B C, A B C).

    rounds: some of the plan's, by default all. If there are more agents than prompts, prompts are used again. exactness
    is empty if naive is not among the strategies.
    """
    rounds = plan.rounds if rounds is None else rounds
    for strategy in plan.strategies if rounds else ():  # a warm-up: memory pages, threads and caches
        plan.run(strategy, 64, max(this.n_agents for this in rounds), min(1, plan.max_tokens))
    total = len(rounds) * len(plan.strategies)
    with tqdm(total=total, unit="run", disable=not progress or None) as bar:
        for this in rounds:
            reference: Run | None = None
            for strategy in plan.strategies:
                bar.set_postfix_str(f"{strategy.name}, {this.depth:,} tokens, {this.n_agents} agents")
                run = plan.run(strategy, this.depth, this.n_agents)
                reference = run if strategy.name == BASELINE else reference
                bar.update()
                yield this, run, run.compare(reference) if reference else pd.DataFrame()


def race(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    agents: Prompts,
    strategies: Sequence[str | Strategy],
    *,
    max_tokens: int = 32,
    **settings: Any,
) -> dict[str, Run]:
    """Run each strategy once on the same agents, after a warm-up: runs by strategy; arguments as in fan_out."""
    once, chosen = rounds([len(tokens)], [len(agents)], 1), ContextSettings(**settings)
    asked = plan(model, tokens, once, strategies, agents=agents, max_tokens=max_tokens, settings=chosen)
    return {run.strategy: run for _, run, _ in measure(asked)}


def record(this: Round, run: Run, exactness: pd.DataFrame) -> dict[str, Any]:
    """One run as a flat record: its metrics, and exactness over all its agents (None without naive)."""
    compared = len(exactness) > 0
    return {
        "repeat": this.repeat,
        **run.metrics,
        "max_abs_logit_diff": float(exactness.max_abs_logit_diff.max()) if compared else None,
        "kl": float(exactness.kl.max()) if compared else None,
        "same_tokens": bool(exactness.same_tokens.all()) if compared else None,
        "same_answers": int(exactness.same_tokens.sum()) if compared else None,
        "first_difference": float(exactness.first_difference.min()) if compared else None,
    }


def _prompts_of(prompts: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """n prompts by agent name; if there are fewer, they are used again: security, ..., security 2, ..."""
    taken = dict(islice(prompts.items(), n))
    for i, name in enumerate(islice(cycle(prompts), n)):
        if i >= len(prompts):
            again = f"{name} {i // len(prompts) + 1}"
            while again in taken:  # somebody is called so already
                again += "'"
            taken[again] = prompts[name]
    return taken
