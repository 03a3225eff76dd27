"""The strategies, side by side: N agents answer over one document, and only the way they get its KV cache differs."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import islice

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.run import Branch, Run
from swarmkv_lab.llama import Context, decode_together, generate_together
from swarmkv_lab.snapshot.snapshot import KVSnapshot

Strategy = Callable[[Run], None]
"""Answers a run's agents, and records who did what when."""

DOCUMENT, BRANCH = 0, 1  # sequence ids: the document's, and the one that agents take in turns


def naive(run: Run) -> None:
    """Every agent prefills the whole document in a context of its own: what default stacks do."""

    def work(agent: Branch) -> None:
        with run.context(agent) as ctx:
            with run.phase(agent, "prefill"):
                ctx.decode(run.tokens[: agent.n_prefix])
            answer(run, ctx, {DOCUMENT: agent})

    for agents in run.schedule.ready(lambda n_tokens: None):
        run.each(agents, work)


def swarmkv(run: Run) -> None:
    """The article: prefill once and serialize; each agent copies the buffer, makes a context, restores, goes on."""

    def work(agent: Branch) -> None:
        with run.phase(agent, "copy", snapshots[agent].nbytes):
            branch = snapshots[agent].copy()
        with run.holding(branch.nbytes), run.context(agent) as ctx:
            with run.phase(agent, "restore", branch.nbytes):
                branch.restore(ctx)
            answer(run, ctx, {DOCUMENT: agent})

    with ExitStack() as document, Snapshots(run, document.enter_context(run.context(None))) as snapshots:
        for agents in run.schedule.ready(snapshots.advance):
            if snapshots.is_whole:
                document.close()  # the article's prefill context is not held any longer
            run.each(agents, work)


def pooled(run: Run) -> None:
    """Contexts are made once and reused, and agents restore straight from the one read-only buffer."""
    with run.context(None) as ctx, Snapshots(run, ctx) as snapshots:
        for agents in run.schedule.ready(snapshots.advance):
            for agent in agents:
                with run.attempt(agent):
                    with run.phase(agent, "restore", snapshots[agent].nbytes):
                        snapshots[agent].restore(ctx)
                    answer(run, ctx, {DOCUMENT: agent})


def shared(run: Run) -> None:
    """One context: each agent in turn tags the document's cells as its own. No bytes move."""
    with run.context(None, n_seq_max=2) as ctx:
        for agents in run.schedule.ready(lambda n_tokens: prefill(run, ctx, n_tokens)):
            for agent in agents:
                with run.attempt(agent):
                    share(run, ctx, agent, BRANCH)
                    answer(run, ctx, {BRANCH: agent})
                ctx.clear(BRANCH)  # the document's next cells then follow its last ones, as naive's do


def batched(run: Run) -> None:
    """As shared, with a sequence for each agent, and all agents' tokens in one llama_decode a step."""
    # llama.cpp lays its buffers out for a multiple of n_seq_max tokens: with 3 sequences 512 tokens are planned as 513,
    # and the prefill was measured 2 to 4 % slower. A power of two divides the batch.
    n_seq_max = 1 << len(run.branches).bit_length()
    with run.context(None, n_seq_max=n_seq_max) as ctx:
        for agents in run.schedule.ready(lambda n_tokens: prefill(run, ctx, n_tokens)):
            branches = dict(enumerate(agents, BRANCH))
            for seq_id, agent in branches.items():
                with run.attempt(agent):
                    share(run, ctx, agent, seq_id)
            answer(run, ctx, branches)
            for seq_id in branches:
                ctx.clear(seq_id)


STRATEGIES: Mapping[str, Strategy] = {f.__name__: f for f in (naive, swarmkv, pooled, shared, batched)}
THREADED = ("naive", "swarmkv")  # their agents have contexts of their own, and may work in threads


def prefill(run: Run, ctx: Context, n_tokens: int) -> None:
    """The document up to a watermark, once for all agents: decoded, or restored where the run was given a snapshot."""
    if run.snapshot is None:
        with run.phase(None, "prefill"):
            ctx.decode(run.tokens[ctx.n_past(DOCUMENT) : n_tokens], DOCUMENT)
    elif not ctx.n_past(DOCUMENT):
        with run.phase(None, "restore", run.snapshot.nbytes):
            run.snapshot.restore(ctx, DOCUMENT)


def share(run: Run, ctx: Context, agent: Branch, seq_id: int) -> None:
    """Give an agent's sequence the cells of the document up to its watermark."""
    with run.phase(agent, "share"):
        ctx.share(DOCUMENT, seq_id)
        if agent.n_prefix < ctx.n_past(DOCUMENT):
            ctx.truncate(agent.n_prefix, seq_id)


class Snapshots:
    """The document's snapshots at its watermarks, made in one context as the prefill comes to each."""

    def __init__(self, run: Run, ctx: Context) -> None:
        self._run, self._ctx = run, ctx
        self._by_length: dict[int, KVSnapshot] = {}
        self._held = ExitStack()

    def __getitem__(self, agent: Branch) -> KVSnapshot:
        """The one that an agent reads."""
        return self._by_length[agent.n_prefix]

    @property
    def is_whole(self) -> bool:
        """Whether the whole document has one."""
        return len(self._run.tokens) in self._by_length

    def advance(self, n_tokens: int) -> None:
        """Prefill on to a watermark, and capture it; agents may have used the context in between."""
        run, ctx = self._run, self._ctx
        if run.snapshot is not None and n_tokens == len(run.tokens):
            snapshot = run.snapshot
        else:
            if run.snapshot is not None:
                ctx.clear(DOCUMENT)
            elif self._by_length:
                last = self._by_length[max(self._by_length)]
                with run.phase(None, "restore", last.nbytes):
                    last.restore(ctx)
            prefill(run, ctx, n_tokens)
            ctx.truncate(n_tokens)
            snapshot = run.capture(ctx)
        self._by_length[n_tokens] = snapshot
        self._held.enter_context(run.holding(snapshot.nbytes))

    def __enter__(self) -> "Snapshots":
        return self

    def __exit__(self, *exc: object) -> None:
        self._held.close()


def answer(run: Run, ctx: Context, branches: Mapping[int, Branch]) -> None:
    """Decode each agent's prompt after its sequence's prefix, at position len(prefix), and generate the answers.

    One agent, or several in step: then every llama_decode carries one token of each that has not finished.
    """

    def live() -> dict[int, Branch]:
        return {seq_id: agent for seq_id, agent in branches.items() if agent.error is None}

    def failed(seq_id: int, error: SwarmKVError) -> None:
        run.schedule.fail(branches[seq_id], error)

    agents = list(live().values())
    tell = failed if run.schedule.tolerant else None
    with run.phase(agents, "branch"):
        decode_together(ctx, {seq_id: agent.prompt for seq_id, agent in live().items()}, tell)
    for seq_id, agent in live().items():
        agent.logits = ctx.logits(seq_id)
    asked = {seq_id: (agent.max_tokens, agent.sampling) for seq_id, agent in live().items()}
    stream = generate_together(ctx, asked, lambda seq_id: branches[seq_id].error is not None, tell)
    for phase, steps in (("choose", islice(stream, 1)), ("generate", stream)):
        with run.phase(agents, phase):
            for step in steps:
                for seq_id, token in step.items():
                    run.take(branches[seq_id], token)
