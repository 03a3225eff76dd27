"""Watermarks: the document prefilled once, in steps that end where agents begin to answer."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count

from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.llama.context import Context
from swarmkv_lab.snapshot.snapshot import KVSnapshot

DOCUMENT, BRANCH = 0, 1  # sequence ids: the document's, and the first of the agents'


class Cells(ExitStack):
    """The document's cells in one context, prefilled on to each watermark, and lent to agents' sequences for a while.

    Where a sequence cannot go back, what late agents come back to is kept as the prefill passes it: a running state in
    a sequence of its own, and what windows drop in a snapshot, as its cells would stand in their way.
    """

    def __init__(self, run: Run, n_branches: int = 1) -> None:
        super().__init__()
        self._run = run
        kind, whole = run.model.kind, max(branch.n_prefix for branch in run.branches)
        # those that wait for others, and so may begin when the prefill has passed their watermark
        self._late = [one for one in run.branches if one.n_prefix < whole and one.after]
        passed = sorted({branch.n_prefix for branch in self._late})
        self._kept = dict(zip(passed, count(BRANCH + n_branches))) if kind.recurrent else {}
        self._snapshots: dict[int, KVSnapshot] = {}
        self._drops = bool(kind.window) and not kind.recurrent and not run.settings.swa_full
        lengths = [branch.n_prefix for branch in self._late] if self._drops else []
        # A power of two: where it does not divide the batch (3 and 512), llama.cpp plans for more tokens: 2 to 4 %
        # slower (measured).
        n_seq_max = 1 << (n_branches + len(self._kept)).bit_length()
        n_more = sum(lengths) if run.packed else max(lengths, default=0)
        self.ctx = self.enter_context(run.context(n_seq_max=n_seq_max, n_more=n_more))

    def advance(self, n_tokens: int) -> None:
        """Have the document's first n_tokens: prefilled, or restored where the run was given a snapshot."""
        n_past = self.ctx.n_past(DOCUMENT)
        if any(branch.n_prefix == n_past and not branch.tokens for branch in self._late):
            if n_past in self._kept:
                self.ctx.share(DOCUMENT, self._kept[n_past])
            elif self._drops:
                self._snapshots[n_past] = snapshot = self._run.capture(self.ctx)
                self.enter_context(self._run.holding(snapshot.nbytes))
        if self._run.snapshot is None:
            self._run.prefill(self.ctx, n_tokens)
        elif not n_past:
            self._run.restore(self.ctx, self._run.snapshot)

    @contextmanager
    def lent(self, branches: Mapping[int, Branch]) -> Iterator[Context]:
        """The context while agents' sequences hold the document's cells up to their watermarks.

        They are cleared then: the document's next cells follow its last ones, as naive's do.
        """
        ctx = self.ctx
        try:
            for seq_id, agent in branches.items():
                n, is_whole = agent.n_prefix, ctx.n_past(DOCUMENT) == agent.n_prefix
                with self._run.schedule.attempt(agent):
                    if n in self._snapshots and not is_whole:
                        self._run.restore(ctx, self._snapshots[n], agent, seq_id)
                        continue
                    with self._run.phase(agent, "share"):
                        ctx.share(DOCUMENT if is_whole else self._kept.get(n, DOCUMENT), seq_id)
                        if n < ctx.n_past(seq_id):
                            ctx.truncate(n, seq_id)
            yield ctx
        finally:
            for seq_id in branches:
                ctx.clear(seq_id)


class Snapshots(ExitStack):
    """The document's snapshots by length, captured as the prefill comes to each watermark, and held until the end.

    The prefill has a context of its own, which ends with it, unless agents lend theirs (``ctx``).
    """

    def __init__(self, run: Run, ctx: Context | None = None) -> None:
        super().__init__()
        self._run, self._ctx = run, ctx
        self._by_length: dict[int, KVSnapshot] = {}
        self._own_context = self.enter_context(ExitStack())
        self._changes = 0  # of the context's document, as the prefill left it

    def __getitem__(self, n_tokens: int) -> KVSnapshot:
        return self._by_length[n_tokens]

    def advance(self, n_tokens: int) -> None:
        """Prefill on to a watermark, and capture it."""
        self._by_length[n_tokens] = snapshot = self._run.snapshot or self._captured(n_tokens)
        self.enter_context(self._run.holding(snapshot.nbytes))
        if n_tokens == max(branch.n_prefix for branch in self._run.branches):
            self._own_context.close()

    def _captured(self, n_tokens: int) -> KVSnapshot:
        if self._ctx is None:
            self._ctx = self._own_context.enter_context(self._run.context())
        if self._by_length and self._ctx.changes(DOCUMENT) != self._changes:  # agents answered in it
            self._run.restore(self._ctx, self._by_length[max(self._by_length)])
        self._run.prefill(self._ctx, n_tokens)
        self._changes = self._ctx.changes(DOCUMENT)
        return self._run.capture(self._ctx)
