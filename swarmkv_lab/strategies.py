"""The strategies, side by side: N agents answer over one document, and only the way they get its KV cache differs."""

from collections.abc import Callable, Mapping
from itertools import islice

from swarmkv_lab.llama import Context, generate_together
from swarmkv_lab.run import Agent, Run
from swarmkv_lab.snapshot import KVSnapshot

Strategy = Callable[[Run], None]
"""Answers a run's agents, and records who did what when."""

DOCUMENT, BRANCH = 0, 1  # sequence ids: the document's, and the one that agents take in turns


def naive(run: Run) -> None:
    """Every agent prefills the whole document in a context of its own: what default stacks do."""
    for agent in run.branches:
        with run.context(agent) as ctx:
            with run.phase(agent, "prefill"):
                ctx.decode(run.tokens)
            answer(run, ctx, {DOCUMENT: agent})


def swarmkv(run: Run) -> None:
    """The article: prefill once and serialize; each agent copies the buffer, makes a context, restores, goes on."""
    with run.context(None) as ctx:
        snapshot = captured(run, ctx)
    with run.holding(snapshot.nbytes):
        for agent in run.branches:
            with run.phase(agent, "copy", snapshot.nbytes):
                branch = snapshot.copy()
            with run.holding(branch.nbytes), run.context(agent) as ctx:
                with run.phase(agent, "restore", branch.nbytes):
                    branch.restore(ctx)
                answer(run, ctx, {DOCUMENT: agent})
            del branch


def pooled(run: Run) -> None:
    """Contexts are made once and reused, and agents restore straight from the one read-only buffer."""
    with run.context(None) as ctx:
        snapshot = captured(run, ctx)
        with run.holding(snapshot.nbytes):
            for agent in run.branches:
                with run.phase(agent, "restore", snapshot.nbytes):
                    snapshot.restore(ctx)
                answer(run, ctx, {DOCUMENT: agent})


def shared(run: Run) -> None:
    """One context: each agent in turn tags the document's cells as its own. No bytes move."""
    with run.context(None, n_seq_max=2) as ctx:
        prefill(run, ctx)
        for agent in run.branches:
            with run.phase(agent, "share"):
                ctx.share(DOCUMENT, BRANCH)
            answer(run, ctx, {BRANCH: agent})


def batched(run: Run) -> None:
    """As shared, with a sequence for each agent, and all agents' tokens in one llama_decode a step."""
    # llama.cpp lays its buffers out for a multiple of n_seq_max tokens: with 3 sequences 512 tokens are planned as 513,
    # and the prefill was measured 2 to 4 % slower. A power of two divides the batch.
    n_seq_max = 1 << len(run.branches).bit_length()
    with run.context(None, n_seq_max=n_seq_max) as ctx:
        prefill(run, ctx)
        branches = dict(enumerate(run.branches, BRANCH))
        for seq_id, agent in branches.items():
            with run.phase(agent, "share"):
                ctx.share(DOCUMENT, seq_id)
        answer(run, ctx, branches)


STRATEGIES: Mapping[str, Strategy] = {f.__name__: f for f in (naive, swarmkv, pooled, shared, batched)}


def prefill(run: Run, ctx: Context) -> None:
    """The document, once for all agents: decoded, or restored where the run was given a snapshot of it."""
    if run.snapshot is None:
        with run.phase(None, "prefill"):
            ctx.decode(run.tokens, DOCUMENT)
    else:
        with run.phase(None, "restore", run.snapshot.nbytes):
            run.snapshot.restore(ctx, DOCUMENT)


def captured(run: Run, ctx: Context) -> KVSnapshot:
    """The document's snapshot: the one that the run was given, or one of a prefill."""
    if run.snapshot is not None:
        return run.snapshot
    prefill(run, ctx)
    return run.capture(ctx)


def answer(run: Run, ctx: Context, branches: Mapping[int, Agent]) -> None:
    """Decode each agent's prompt after its sequence's prefix, at position len(prefix), and generate the answers.

    One agent, or several in step: then every llama_decode carries one token of each that has not finished.
    """
    agents = list(branches.values())
    with run.phase(agents, "branch"):
        ctx.decode_many({seq_id: agent.prompt for seq_id, agent in branches.items()})
    for seq_id, agent in branches.items():
        agent.logits = ctx.logits(seq_id)
    stream = generate_together(ctx, list(branches), run.max_tokens, run.sampling)
    for phase, steps in (("choose", islice(stream, 1)), ("generate", stream)):
        with run.phase(agents, phase):
            for step in steps:
                for seq_id, token in step.items():
                    branches[seq_id].tokens.append(token)
