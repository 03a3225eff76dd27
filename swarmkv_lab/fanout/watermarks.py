"""Watermarks: the document prefilled once, in steps that end where agents begin to answer."""

from contextlib import ExitStack

from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.llama.context import Context
from swarmkv_lab.snapshot.snapshot import KVSnapshot

DOCUMENT, BRANCH = 0, 1  # sequence ids: the document's, and the first of the agents'


def read_on(run: Run, ctx: Context, n_tokens: int) -> None:
    """Have the document's first n_tokens in a context: prefilled, or restored where the run was given a snapshot."""
    if run.snapshot is None:
        run.prefill(ctx, None, n_tokens)
    elif not ctx.n_past(DOCUMENT):
        with run.phase(None, "restore", run.snapshot.nbytes):
            run.snapshot.restore(ctx, DOCUMENT)


class Snapshots(ExitStack):
    """The document's snapshots, one per watermark, captured as the prefill comes to each, and held until the end.

    The prefill has a context of its own, which ends with it, unless agents lend theirs (``ctx``).
    """

    def __init__(self, run: Run, ctx: Context | None = None) -> None:
        super().__init__()
        self._run, self._ctx = run, ctx
        self._disturbed = False
        self._by_length: dict[int, KVSnapshot] = {}
        self._own_context = self.enter_context(ExitStack())

    def __getitem__(self, agent: Branch) -> KVSnapshot:
        """The one that an agent reads."""
        return self._by_length[agent.n_prefix]

    def restore(self, agent: Branch, ctx: Context) -> None:
        """Give an agent its prefix in a context, perhaps the prefill's own."""
        self._disturbed |= ctx is self._ctx
        self[agent].restore(ctx)

    def advance(self, n_tokens: int) -> None:
        """Prefill on to a watermark, and capture it."""
        snapshot = self._run.snapshot or self._captured(n_tokens)
        self._by_length[n_tokens] = snapshot
        self.enter_context(self._run.recorder.holding(snapshot.nbytes))
        if n_tokens == self._run.schedule.last_watermark:
            self._own_context.close()

    def _captured(self, n_tokens: int) -> KVSnapshot:
        run = self._run
        if self._ctx is None:
            self._ctx = self._own_context.enter_context(run.context(None))
        if self._disturbed:
            last = self._by_length[max(self._by_length)]
            with run.phase(None, "restore", last.nbytes):
                last.restore(self._ctx)
            self._disturbed = False
        read_on(run, self._ctx, n_tokens)
        return run.capture(self._ctx)
