"""Watermarks: the document prefilled once, in steps that end where agents begin to answer."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.llama.context import Context
from swarmkv_lab.snapshot.snapshot import KVSnapshot

DOCUMENT, BRANCH = 0, 1  # sequence ids: the document's, and the first of the agents'


def read_on(run: Run, ctx: Context, n_tokens: int) -> None:
    """Have the document's first n_tokens in a context: prefilled, or restored where the run was given a snapshot."""
    if run.snapshot is None:
        run.prefill(ctx, n_tokens)
    elif not ctx.n_past(DOCUMENT):
        run.restore(ctx, run.snapshot)


@contextmanager
def sharing(run: Run, ctx: Context, branches: Mapping[int, Branch]) -> Iterator[None]:
    """Agents' sequences hold the document's cells up to their watermarks for a while.

    They are cleared then: the document's next cells follow its last ones, as naive's do.
    """
    try:
        for seq_id, agent in branches.items():
            with run.attempt(agent), run.phase(agent, "share"):
                ctx.share(DOCUMENT, seq_id)
                if agent.n_prefix < ctx.n_past(DOCUMENT):
                    ctx.truncate(agent.n_prefix, seq_id)
        yield
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
        self.enter_context(self._run.recorder.holding(snapshot.nbytes))
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
