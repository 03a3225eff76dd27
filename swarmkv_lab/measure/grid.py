"""Grids of runs: strategies against depth and agents, in turns, each run kept as soon as it is measured."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.documents import load_agents
from swarmkv_lab.fanout.fan_out import Prompts, budget, fan_out, named_prompts
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import Strategy
from swarmkv_lab.llama import Model
from swarmkv_lab.measure.provenance import environment
from swarmkv_lab.measure.runlog import Round, RunLog

# How much longer a token's prefill takes at depth: attention's share of it doubles the time near this many tokens on
# the default model. Only the progress bar's estimate of the time left depends on it.
_DOUBLED_AT = 2600


def rounds(depths: Sequence[int], n_agents: Sequence[int], repeats: int) -> list[Round]:
    """The whole product once, then again: an interrupted sweep has every point rather than some of them often."""
    if not (depths and n_agents) or min(*depths, *n_agents, repeats) < 1:
        raise SwarmKVError("depths and n_agents must not be empty, and all of them and repeats at least 1")
    return [Round(repeat, depth, n) for repeat in range(repeats) for depth in depths for n in n_agents]


def measure(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    rounds: Sequence[Round],
    strategies: Sequence[str | Strategy],
    *,
    agents: Prompts | None = None,
    log: RunLog | None = None,
    progress: bool = True,
    **settings: Any,
) -> Iterator[tuple[Round, Run, pd.DataFrame]]:
    """Yield (round, run, exactness against naive), the strategies in turns within each round (A B C, A B C).

    Everything is warmed up once, unmeasured. Agents' prompts are taken in turn from ``agents``, by default the
    dossier's. Without naive among the strategies exactness is empty. Runs that ``log`` holds are not measured again.
    """
    if not strategies:
        raise SwarmKVError("strategies must not be empty")
    prefix = model.check_tokens(tokens)
    deepest = max(this.depth for this in rounds)
    if deepest > len(prefix):
        raise SwarmKVError(f"depth {deepest:,} is more than the document's {len(prefix):,} tokens")
    prompts = _prompts(model, agents)
    groups = {n: _take(prompts, n) for n in sorted({this.n_agents for this in rounds})}
    named = {one if isinstance(one, str) else one.__name__: one for one in strategies}
    strategies = sorted(named, key=lambda name: name != "naive")
    todo = {key: _work(*key) for key in product(rounds, strategies)}
    done = [key for key in todo if log and key in log]
    if len(done) == len(todo):
        return
    for strategy, this in product(strategies, rounds):
        lengths = {name: len(prompt) for name, prompt in groups[this.n_agents].items()}
        budget(model, strategy, this.depth, lengths, settings.get("max_tokens", 32), settings.get("n_ctx"))
    for strategy in strategies:  # pages, threads and caches are warm afterwards
        fan_out(model, prefix[:64], groups[max(groups)], named[strategy], **settings | {"max_tokens": 1})
    bar = tqdm(
        total=sum(todo.values()), initial=sum(todo[key] for key in done), desc="runs", smoothing=0,
        disable=None if progress else True,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}",
    )  # fmt: skip
    with bar:
        for this in rounds:
            left = [strategy for strategy in strategies if not (log and (this, strategy) in log)]
            group = prefix[: this.depth], groups[this.n_agents]
            reference = log.reference(this) if log else None
            if (
                left and reference is None and log and (this, "naive") in log
            ):  # its answers are gone, its times are kept
                reference = fan_out(model, *group, "naive", **settings).branches
            for strategy in left:
                bar.set_postfix_str(f"{strategy}, {this.depth:,} tokens, {this.n_agents} agents")
                run = fan_out(model, *group, named[strategy], **settings)
                reference = run.branches if strategy == "naive" else reference
                exactness = run.compare(reference) if reference else pd.DataFrame()
                if log:
                    log.append(this, record(this, run, exactness), run.branches)
                bar.update(todo[this, strategy])
                yield this, run, exactness


def race(
    model: Model, tokens: Sequence[int] | np.ndarray, agents: Prompts, strategies: Sequence[str], **settings: Any
) -> dict[str, Run]:
    """Each strategy once on the same agents, after a warm-up: the runs by strategy."""
    once = rounds([len(tokens)], [len(agents)], 1)
    return {run.strategy: run for _, run, _ in measure(model, tokens, once, strategies, agents=agents, **settings)}


def sweep(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    *,
    depths: Sequence[int],
    n_agents: Sequence[int],
    strategies: Sequence[str | Strategy],
    repeats: int = 3,
    agents: Prompts | None = None,
    path: str | Path | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Measure depths x n_agents x strategies x repeats: a tidy DataFrame, a row a run (columns: data/README.md).

    path: a CSV that each run is appended to as it is measured, with a JSON of the machine, the versions and the
    settings beside it. The same call goes on from there after an interrupt; a file measured otherwise is refused.
    Without a path an interrupt returns what was measured until then, with a warning.
    """
    return sweep_rounds(
        model, tokens, rounds(depths, n_agents, repeats), strategies, agents=agents, path=path, **settings
    )


def sweep_rounds(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    rounds: Sequence[Round],
    strategies: Sequence[str | Strategy],
    *,
    agents: Prompts | None = None,
    path: str | Path | None = None,
    progress: bool = True,
    watch: Callable[[Run], None] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """As sweep, over rounds that need not be a whole product."""
    prompts = _prompts(model, agents)
    log = None
    if path is not None:
        log = RunLog(Path(path), environment(model, **_input(model, tokens, prompts), **settings))
    how = {"agents": prompts, "log": log, "progress": progress, "watch": watch, **settings}
    records = []
    try:
        for measured in measure(model, tokens, rounds, strategies, **how):
            records.append(record(*measured))
    except KeyboardInterrupt:
        if log or not records:
            raise
        warnings.warn(f"interrupted: the {len(records)} runs measured until then are returned", stacklevel=2)
    if log:
        log.close()
        return log.frame(rounds, [one if isinstance(one, str) else one.__name__ for one in strategies])
    return pd.DataFrame(records)


def record(this: Round, run: Run, exactness: pd.DataFrame) -> dict[str, Any]:
    """One run as one flat record: metrics, and exactness over all its agents (None without naive)."""
    compared = len(exactness) > 0
    return {
        "repeat": this.repeat,
        **run.metrics,
        "max_abs_logit_diff": float(exactness.max_abs_logit_diff.max()) if compared else None,
        "kl": float(exactness.kl.max()) if compared else None,
        "same_tokens": bool(exactness.same_tokens.all()) if compared else None,
    }


def _work(this: Round, strategy: str) -> float:
    prefills = this.n_agents if strategy == "naive" else 1
    return prefills * this.depth * (1 + this.depth / _DOUBLED_AT)


def _prompts(model: Model, agents: Prompts | None) -> dict[str, np.ndarray]:
    return named_prompts(model, load_agents("dossier") if agents is None else agents)


def _input(model: Model, tokens: Sequence[int] | np.ndarray, prompts: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What the runs read, by its hashes."""
    asked = b"".join(prompt.tobytes() for prompt in prompts.values())
    read = {"document_sha256": model.check_tokens(tokens).tobytes(), "prompts_sha256": asked}
    return {name: hashlib.sha256(data).hexdigest() for name, data in read.items()}


def _take(prompts: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """n prompts, going round again when there are fewer: security, ..., security 2, ..."""
    rounds = (
        (name if i < len(prompts) else f"{name} {i // len(prompts) + 1}", prompts[name])
        for i, name in enumerate(islice(cycle(prompts), n))
    )
    return dict(rounds)
