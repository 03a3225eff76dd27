"""Run: one strategy answering all agents once: what it is asked for, and how the strategies do their work on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.outcome import Outcome
from swarmkv_lab.fanout.schedule import NO_TOKENS, Branch
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.snapshot import KVSnapshot


@dataclass(eq=False, repr=False, kw_only=True)
class Run(Outcome):
    """An Outcome in this process: what the strategies are given."""

    model: Model
    settings: ContextSettings
    snapshot: KVSnapshot | None = None
    """of the tokens, when it was there before"""
    callback: "Callable[[Run], None] | None" = None
    on_token: Callable[[str, int], None] | None = None
    recompute: int = 0
    """of composed: tokens of the document that each agent decodes anew"""

    @property
    def answers(self) -> dict[str, str]:
        """The answers' text by agent, as far as they go; once the run has ended they outlive the model."""
        detokenize = self.model.detokenize
        return {one.name: detokenize(one.tokens) if one.text is None else one.text for one in self.branches}

    @contextmanager
    def context(self, agent: Branch | None = None, n_seq_max: int = 1, n_more: int = 0) -> Iterator[Context]:
        """A context for a while, its making timed and its memory counted; n_more: cells beyond the settings' n_ctx."""
        n_seq_max, n_ctx = max(n_seq_max, self.settings.n_seq_max), self.settings.cells + n_more
        with self.phase(agent, "context"):
            ctx = self.model.open_context(replace(self.settings, n_ctx=n_ctx, n_seq_max=n_seq_max))
        ctx.callback = self._call_back
        with ctx, self.holding(ctx.nbytes):
            yield ctx

    def prefill(self, ctx: Context, n_tokens: int, agent: Branch | None = None) -> None:
        """Prefill a context's first sequence on to the document's first n_tokens, for an agent or (None) for all."""
        with self.phase(agent, "prefill"):
            head = NO_TOKENS if agent is None else agent.head
            rest = np.concatenate([head, self.tokens[:n_tokens]])[ctx.n_past() :]
            ctx.decode(rest)
        (agent or self).computed += len(rest)

    def capture(self, ctx: Context) -> KVSnapshot:
        """A snapshot of what a context's first sequence holds of the document, captured on the prefix's lane."""
        with self.phase(None, "capture", ctx.state_bytes()):
            return KVSnapshot.capture(ctx, self.tokens[: ctx.n_past()])

    @contextmanager
    def copy(self, snapshot: KVSnapshot, agent: Branch) -> Iterator[KVSnapshot]:
        """A copy of a snapshot in memory of its own, for an agent, for a while."""
        with self.phase(agent, "copy", snapshot.nbytes):
            buffer = snapshot.copy()
        with self.holding(buffer.nbytes):
            yield buffer

    def restore(self, ctx: Context, snapshot: KVSnapshot, agent: Branch | None = None, seq_id: int = 0) -> None:
        """Replace a context's sequence by a snapshot, for an agent or (None) for all."""
        with self.phase(agent, "restore", snapshot.nbytes):
            snapshot.restore(ctx, seq_id)

    def add_token(self, branch: Branch, token: int) -> None:
        """The next token of an agent's answer."""
        branch.tokens.append(token)
        if self.on_token:
            try:
                self.on_token(branch.name, token)
            except Exception as error:
                self.schedule.fail(branch, SwarmKVError(f"on_token raised {error!r}"))

    def _call_back(self) -> None:
        """Let the callback look; its time is not measured."""
        if self.callback:
            with self.stopped():
                self.callback(self)
