"""Composed: agents that have a prompt of their own before the document share its cells all the same.

RoPE is relative. The document's cells are computed once, behind some prompt; each agent's own prompt is decoded so that
it ends where the document begins, and the cells stand behind it as they are: nothing is rotated, no bytes move. What
the document's tokens saw of the first prompt stays in them: the bits are not those of a prefill of the whole, and each
agent decodes the document's first tokens anew, which brings them closer.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import Strategy, answer
from swarmkv_lab.fanout.watermarks import BRANCH, DOCUMENT
from swarmkv_lab.llama.model import Model
from swarmkv_lab.snapshot.prefill import place
from swarmkv_lab.snapshot.snapshot import KVSnapshot

Heads = Mapping[str, np.ndarray]
"""{agent's name: the tokens before the document, int32 (n,)}"""


def composed(run: Run) -> None:
    """The document once, behind the first agent's head; then each agent's head, the document's cells, its question."""
    groups = [run.branches] if run.packed else [[branch] for branch in run.branches]
    first = run.tokens[: run.recompute]
    with run.context(n_seq_max=1 << len(groups[0]).bit_length()) as ctx:
        if run.snapshot:
            run.restore(ctx, run.snapshot)
        else:
            run.computed = len(run.branches[0].head) + len(run.tokens)
            with run.phase(None, "prefill"):
                place(ctx, run.tokens, run.branches[0].head, max(len(branch.head) for branch in run.branches))
        start, _ = ctx.origins[DOCUMENT]
        for agents in groups:
            branches = dict(enumerate(agents, BRANCH))
            before = {seq_id: np.concatenate([agent.head, first]) for seq_id, agent in branches.items()}
            before = {seq_id: tokens for seq_id, tokens in before.items() if len(tokens)}
            try:
                with run.phase(agents, "role"):
                    if before:
                        starts = {seq_id: start - len(branches[seq_id].head) for seq_id in before}
                        ctx.decode_many(before, starts=starts)
                with run.phase(agents, "share"):
                    for seq_id, agent in branches.items():
                        ctx.splice(DOCUMENT, seq_id)
                        agent.computed += len(before.get(seq_id, ()))
                answer(run, ctx, branches)
            finally:
                for seq_id in branches:
                    ctx.clear(seq_id)


COMPOSED = Strategy("composed", composed)


def heads_of(model: Model, agents: Any) -> tuple[Heads, Any]:
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


def begins_at(strategy: Strategy, heads: Heads, snapshot: KVSnapshot | None) -> int:
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
