"""The strategies, side by side: N agents answer over one document, and only the way they get its KV cache differs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from swarmkv_lab.errors import SwarmKVError, not_one_of
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.fanout.watermarks import BRANCH, DOCUMENT, Cells, Snapshots
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.sampling import decode_together, generate_together
from swarmkv_lab.snapshot.prefill import place


def naive(run: Run) -> None:
    """Every agent prefills the whole document in a context of its own: what default stacks do."""
    for agent in run.schedule.turns():
        with run.schedule.attempt(agent), run.context(agent) as ctx:
            run.prefill(ctx, agent.n_prefix, agent)
            answer(run, ctx, {DOCUMENT: agent})


def swarmkv(run: Run) -> None:
    """The article: prefill once and serialize; each agent copies the buffer, makes a context, restores, goes on."""
    with Snapshots(run) as snapshots:
        for agent in run.schedule.turns(snapshots.advance):
            with (
                run.schedule.attempt(agent),
                run.copy(snapshots[agent.n_prefix], agent) as buffer,
                run.context(agent) as ctx,
            ):
                run.restore(ctx, buffer, agent)
                answer(run, ctx, {DOCUMENT: agent})


def pooled(run: Run) -> None:
    """One context is made once and reused, and agents restore straight from the one read-only buffer."""
    with run.context() as ctx, Snapshots(run, ctx) as snapshots:
        for agent in run.schedule.turns(snapshots.advance):
            with run.schedule.attempt(agent):
                run.restore(ctx, snapshots[agent.n_prefix], agent)
                answer(run, ctx, {DOCUMENT: agent})


def shared(run: Run) -> None:
    """One context: each agent in turn tags the document's cells as its own. No bytes move."""
    with Cells(run) as cells:
        for agent in run.schedule.turns(cells.advance):
            with run.schedule.attempt(agent), cells.lent({BRANCH: agent}) as ctx:
                answer(run, ctx, {BRANCH: agent})


def batched(run: Run) -> None:
    """As shared, with a sequence for each agent, and all agents' tokens in one llama_decode per step."""
    with Cells(run, len(run.branches)) as cells:
        for agents in run.schedule.ready(cells.advance):
            branches = dict(enumerate(agents, BRANCH))
            with cells.lent(branches) as ctx:
                answer(run, ctx, branches)


def composed(run: Run) -> None:
    """Agents that have a prompt of their own before the document (a head) share its cells all the same.

    RoPE is relative. The document's cells are computed once, behind the first head; each agent's own head is decoded so
    that it ends where the document begins, and the cells stand behind it as they are: nothing is rotated, no bytes
    move. What the document's tokens saw of the first head stays in them: the bits are not those of a prefill of the
    whole, and each agent decodes the document's first tokens anew (recompute), which brings them closer.
    """
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


def answer(run: Run, ctx: Context, branches: Mapping[int, Branch]) -> None:
    """Decode each agent's prompt after its sequence's prefix, at position n_prefix, and generate the answers.

    branches: by the sequence that each goes on from. Several are answered in step: then every llama_decode carries one
    token of each that has not finished.
    """
    live = {seq_id: branch for seq_id, branch in branches.items() if branch.error is None}
    agents = list(live.values())

    def fail(seq_id: int, error: SwarmKVError) -> None:
        run.schedule.fail(branches[seq_id], error)

    failed = fail if run.schedule.tolerant else None
    with run.phase(agents, "branch"):
        decoded = decode_together(ctx, {seq_id: branch.prompt for seq_id, branch in live.items()}, failed)
    for seq_id in decoded:
        live[seq_id].logits = ctx.logits(seq_id)
        live[seq_id].computed += len(live[seq_id].prompt)
    asked = {seq_id: (live[seq_id].max_tokens, live[seq_id].sampling) for seq_id in decoded}
    stream = generate_together(ctx, asked, lambda seq_id: branches[seq_id].error is not None, failed)
    for phase, steps in (("sample", islice(stream, 1)), ("generate", stream)):
        with run.phase(agents, phase) as end:
            for step in steps:
                for seq_id, branch in live.items():
                    if seq_id in step:
                        run.add_token(branch, step[seq_id])
                    if seq_id not in step or len(branch.tokens) == branch.max_tokens:
                        end(branch.name)  # the others may go on for longer


@dataclass(frozen=True)
class Strategy:
    """A way to answer a run's agents."""

    name: str
    answer: Callable[[Run], None]  # all of a run's agents, recording who did what when
    packs: bool = False  # whether agents are answered all at the same time, their tokens in one batch, or in turns


STRATEGIES: Mapping[str, Strategy] = {
    "naive": Strategy("naive", naive),
    "swarmkv": Strategy("swarmkv", swarmkv),
    "pooled": Strategy("pooled", pooled),
    "shared": Strategy("shared", shared),
    "batched": Strategy("batched", batched, packs=True),
}
"""The strategies by name, in the order in which tables show them: what ``strategy=`` takes, here and in ``bench``."""
COMPOSED = Strategy("composed", composed)  # for agents of another kind: (system prompt, question)


def strategy_named(strategy: str | Strategy) -> Strategy:
    """One of STRATEGIES by its name, or a Strategy (a peer's) as it is."""
    if isinstance(strategy, Strategy):
        return strategy
    if strategy not in STRATEGIES:
        if strategy == COMPOSED.name:
            raise SwarmKVError(f"{COMPOSED.name} is for lab.fan_out and lab.serve alone; here: {', '.join(STRATEGIES)}")
        raise SwarmKVError(f"strategy {not_one_of(strategy, [*STRATEGIES, COMPOSED.name])}")
    return STRATEGIES[strategy]
