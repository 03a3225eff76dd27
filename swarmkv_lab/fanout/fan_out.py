"""fan_out: one strategy answers all agents once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError, whole_number
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import NO_TOKENS, Branch, Schedule, check
from swarmkv_lab.fanout.strategies import COMPOSED, Strategy, strategy_named
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import GREEDY, Sampling
from swarmkv_lab.llama.settings import MAX_SEQUENCES, ContextSettings
from swarmkv_lab.snapshot.snapshot import KVSnapshot

Prompt = str | Sequence[int] | np.ndarray
Prompts = Sequence[Prompt] | Mapping[str, Prompt]
"""Agents' prompts, named or not: a question in words (the model's chat template is put around it) or token ids."""
Roles = Mapping[str, tuple[Prompt, Prompt]]
"""Agents with a prompt of their own before the document, by name: (system prompt, question)."""


def fan_out(
    model: Model,
    tokens: str | Sequence[int] | np.ndarray | KVSnapshot,
    agents: Prompts | Roles,
    strategy: str | Strategy = "shared",
    *,
    max_tokens: int = 32,
    sampling: Sampling = GREEDY,
    recompute: int = 32,
    packed: bool = False,
    callback: Callable[[Run], None] | None = None,
    **settings: Any,
) -> Run:
    """All agents answer over one document (``tokens``, its prefix) by one of STRATEGIES, or by a Strategy of one's own.

    tokens: or the document in words, as model.read reads it; or a snapshot, which every strategy but naive restores
    instead of prefilling. max_tokens: of each answer. settings: as in Context; n_ctx is by default what the budget
    needs. callback: called with the run before each llama_decode; what it raises ends the run.
    Agents that have a prompt of their own before the document are (system prompt, question) by name; they are answered
    by "composed", from what ``prefill(behind=...)`` gave or the document itself, and by naive, which prefills all of
    each. recompute, packed: of composed, the document's first tokens that each agent decodes anew, and whether all
    agents are answered in one batch.
    Raises ContextBudgetError, before any decode, when prefix, branches and max_tokens do not fit.
    """
    snapshot = tokens if isinstance(tokens, KVSnapshot) else None
    if snapshot is not None:
        kept = snapshot.identity.settings
        settings = {name: getattr(kept, name) for name in ("kv_type", "flash_attn", "swa_full", "n_threads")} | settings
    chosen = replace(COMPOSED, packs=packed) if strategy == COMPOSED.name else strategy_named(strategy)
    heads, questions = heads_of(model, agents)
    start, prompts = begins_at(chosen, heads, snapshot), named_prompts(model, questions)
    document = tokens.tokens if isinstance(tokens, KVSnapshot) else tokens
    ids = model.document(document) if heads else model.prefix(document)
    again = min(len(ids), whole_number("recompute", recompute)) if chosen.name == COMPOSED.name else 0
    branches = [
        Branch(name, prompt, max_tokens, sampling, len(ids), heads.get(name, NO_TOKENS))
        for name, prompt in prompts.items()
    ]
    own = {one.name: len(one.prompt) + again + (len(one.head) if packed else 0) for one in branches}
    sized = budget(model, chosen, start + len(ids), own, max_tokens, ContextSettings(**settings))
    about: dict[str, Any] = {"snapshot": snapshot, "callback": callback, "recompute": again}
    return answered(model, ids, Schedule(branches), chosen, sized, **about)


def answered(
    model: Model, tokens: np.ndarray, plan: Schedule, strategy: Strategy, settings: ContextSettings, **about: Any
) -> Run:
    """A schedule's branches answered by a strategy. about: snapshot, callback, on_token and recompute of the Run."""
    how: dict[str, Any] = {"strategy": strategy.name, "packed": strategy.packs, "settings": settings}
    run = Run(model=model, tokens=tokens, schedule=plan, **how, **about)
    strategy.answer(run)
    for branch in run.branches:
        branch.text = model.detokenize(branch.tokens)
    return run


def heads_of(model: Model, agents: Any) -> tuple[Mapping[str, np.ndarray], Any]:
    """({} or all agents' heads, their questions), for agents that are prompts or (system prompt, question) by name."""
    if not isinstance(agents, Mapping):
        return {}, agents
    pairs = {name: one for name, one in agents.items() if isinstance(one, tuple) and len(one) == 2}
    pairs = {name: one for name, one in pairs.items() if not isinstance(one[0], int | np.integer)}  # two tokens
    if not pairs:
        return {}, agents
    if others := [name for name in agents if name not in pairs]:
        raise SwarmKVError(
            f"{others[0]} has no prompt before the document, and others have: give all (system prompt, question)"
        )
    heads = {name: model.head(role) for name, (role, _) in pairs.items()}
    return heads, {name: question for name, (_, question) in pairs.items()}


def begins_at(strategy: Strategy, heads: Mapping[str, np.ndarray], snapshot: KVSnapshot | None) -> int:
    """The position of the document's first token. SwarmKVError where strategy, agents and snapshot disagree."""
    name, longest = strategy.name, max(map(len, heads.values()), default=0)
    if heads and name not in (COMPOSED.name, BASELINE):
        raise SwarmKVError(f"{name} shares what prompts begin with: where agents have their own, use composed")
    if name == COMPOSED.name and not heads:
        raise SwarmKVError("composed is for agents given as {name: (system prompt, question)}; others share exactly")
    if snapshot is None or name == BASELINE:
        return longest
    start = snapshot.identity.start
    if name != COMPOSED.name and not snapshot.identity.exact:
        raise SwarmKVError(f"the snapshot is a document at {start:,}, for composed alone: prefill again")
    if longest > start:
        about = f"the document begins at {start:,}, and the longest prompt before it has {longest:,} tokens"
        raise SwarmKVError(f"{about}: prefill it with at={longest:,} or more")
    return start


def named_prompts(model: Model, agents: Prompts) -> dict[str, np.ndarray]:
    """Named branch tokens from whatever form the prompts were given in."""
    if isinstance(agents, str) or not len(agents):
        raise SwarmKVError("agents is a list of prompts, or a dict of them by name, with at least one in it")
    named = agents if isinstance(agents, Mapping) else {f"agent {i}": p for i, p in enumerate(agents, 1)}
    check(list(named), {})
    return {name: tokens_of(model, prompt) for name, prompt in named.items()}


def tokens_of(model: Model, prompt: Prompt) -> np.ndarray:
    """A prompt's branch tokens, int32 (n,)."""
    return model.ask(prompt) if isinstance(prompt, str) else model.check_tokens(prompt)


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
    longest = max(lengths.values())
    parts = f"prefix {n_prefix:,} + longest branch {longest:,} + max_tokens {whole_number('max_tokens', max_tokens):,}"
    need = n_prefix + longest + max_tokens
    if need > model.n_ctx_train:
        raise ContextBudgetError(
            f"{parts} = {need:,} positions, and {model.name} was trained for {model.n_ctx_train:,}: shorten the "
            f"document, the longest question or the answers by {need - model.n_ctx_train:,} tokens"
        )
    if strategy.packs and not model.kind.packs:
        raise SwarmKVError(f"llama.cpp decodes one sequence of {model.architecture} at a time: use shared, not batched")
    tails = sum(length + max_tokens for length in lengths.values())
    limit = model.kind.long_rope_from
    if limit is not None and need <= limit < n_prefix + tails:
        need = limit + 1  # or packed agents alone would be on the long side, where keys are turned otherwise
    if strategy.packs:  # a context has so many sequences, and the document takes one
        whole_number(f"agents in a batch of {strategy.name}", len(lengths), 1, MAX_SEQUENCES - 1)
        parts, need = f"prefix {n_prefix:,} + {len(lengths)} branches and answers {tails:,}", n_prefix + tails
    if settings.n_ctx is not None and need > settings.n_ctx:
        raise ContextBudgetError(
            f"{parts} = {need:,} tokens do not fit n_ctx={settings.n_ctx:,}: pass n_ctx={need} or more, or None"
        )
    return settings.sized(need)
