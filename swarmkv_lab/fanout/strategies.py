"""The strategies, side by side: N agents answer over one document, and only the way they get its KV cache differs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from swarmkv_lab.errors import SwarmKVError, not_one_of
from swarmkv_lab.fanout.answer import answer
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.fanout.timeline import BASELINE
from swarmkv_lab.fanout.watermarks import BRANCH, DOCUMENT, Snapshots, read_on
from swarmkv_lab.llama.context import Context


@dataclass(frozen=True)
class Strategy:
    """A way to answer a run's agents."""

    name: str
    answer: Callable[[Run], None]
    """answers all of a run's agents, and records who did what when"""
    packs: bool = False
    """whether agents are answered all at the same time, their tokens in one batch; otherwise in turns"""
    shares: bool = False
    """whether agents share cells of one cache, which split caches (kv_unified=False) cannot"""
    threaded: bool = False
    """whether agents have contexts of their own, so that they can take their turns in threads"""

    @property
    def is_baseline(self) -> bool:
        """Whether the others are compared with it."""
        return self.name == BASELINE


def naive(run: Run) -> None:
    """Every agent prefills the whole document in a context of its own: what default stacks do."""

    def turn(agent: Branch) -> None:
        with run.context(agent) as ctx:
            run.prefill(ctx, agent, agent.n_prefix)
            answer(run, ctx, {DOCUMENT: agent})

    run.each(turn)


def swarmkv(run: Run) -> None:
    """The article: prefill once and serialize; each agent copies the buffer, makes a context, restores, goes on."""

    def turn(agent: Branch) -> None:
        with run.phase(agent, "copy", document[agent].nbytes):
            buffer = document[agent].copy()
        with run.recorder.holding(buffer.nbytes), run.context(agent) as ctx:
            with run.phase(agent, "restore", buffer.nbytes):
                buffer.restore(ctx)
            answer(run, ctx, {DOCUMENT: agent})

    with Snapshots(run) as document:
        run.each(turn, document.advance)


def pooled(run: Run) -> None:
    """Contexts are made once and reused, and agents restore straight from the one read-only buffer."""

    def turn(agent: Branch) -> None:
        with run.phase(agent, "restore", document[agent].nbytes):
            document.restore(agent, ctx)
        answer(run, ctx, {DOCUMENT: agent})

    with run.context(None) as ctx, Snapshots(run, ctx) as document:
        run.each(turn, document.advance)


def shared(run: Run) -> None:
    """One context: each agent in turn tags the document's cells as its own. No bytes move."""

    def turn(agent: Branch) -> None:
        with _sharing(run, ctx, {BRANCH: agent}) as branches:
            answer(run, ctx, branches)

    with run.context(None, n_seq_max=2) as ctx:
        run.each(turn, lambda n_tokens: read_on(run, ctx, n_tokens))


def batched(run: Run) -> None:
    """As shared, with a sequence for each agent, and all agents' tokens in one llama_decode per step."""
    with run.context(None, n_seq_max=sequences(len(run.branches))) as ctx:
        for agents in run.schedule.ready(lambda n_tokens: read_on(run, ctx, n_tokens)):
            with _sharing(run, ctx, dict(enumerate(agents, BRANCH))) as branches:
                answer(run, ctx, branches)


STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("naive", naive, threaded=True),
        Strategy("swarmkv", swarmkv, threaded=True),
        Strategy("pooled", pooled),
        Strategy("shared", shared, shares=True),
        Strategy("batched", batched, shares=True, packs=True),
    )
}
"""The strategies by name, in the order in which tables show them: what ``strategy=`` takes, here and in ``bench``."""


def strategy_named(strategy: str | Strategy) -> Strategy:
    """One of STRATEGIES by its name, or a Strategy (a peer's) as it is."""
    if isinstance(strategy, Strategy):
        return strategy
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise SwarmKVError(f"strategy {not_one_of(strategy, STRATEGIES)}")
    return STRATEGIES[strategy]


def elsewhere(client: Any, strategy: Strategy) -> Strategy:
    """The same strategy with its agents answered by a client's workers, which the room above knows (``cluster``)."""
    (door,) = entry_points(group="swarmkv_lab.clients", name="cluster")
    on: Callable[[Any, Strategy], Strategy] = door.load()
    return on(client, strategy)


def sequences(n_agents: int) -> int:
    """Sequences of a context for the document and n agents: a power of two.

    llama.cpp lays its buffers out for a multiple of n_seq_max tokens: with 3 sequences 512 tokens are planned as 513,
    and the prefill was measured 2 to 4 % slower. A power of two divides the batch.
    """
    return 1 << n_agents.bit_length()


@contextmanager
def _sharing(run: Run, ctx: Context, branches: Mapping[int, Branch]) -> Iterator[Mapping[int, Branch]]:
    """Agents' sequences hold the document's cells up to their watermarks for a while.

    They are cleared then: the document's next cells follow its last ones, as naive's do.
    """
    try:
        for seq_id, agent in branches.items():
            with run.attempt(agent), run.phase(agent, "share"):
                ctx.share(DOCUMENT, seq_id)
                if agent.n_prefix < ctx.n_past(DOCUMENT):
                    ctx.truncate(agent.n_prefix, seq_id)
        yield branches
    finally:
        for seq_id in branches:
            ctx.clear(seq_id)
