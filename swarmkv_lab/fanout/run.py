"""Run: one strategy answering all agents once: what it is asked for, and what it records."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.outcome import Outcome
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.snapshot import KVSnapshot


@dataclass(eq=False, kw_only=True)
class Run(Outcome):
    """An Outcome in this process: what the strategies are given, and how they do their work on it."""

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
        """The answers' text by agent."""
        return self._texts or {branch.name: self.model.detokenize(branch.tokens) for branch in self.branches}

    def phase(
        self, agents: Branch | Sequence[Branch] | None, name: str, n_bytes: int = 0
    ) -> AbstractContextManager[Callable[[str], None]]:
        """Time a piece of work on an agent's lane, on several that do it together, or (None) on the prefix's."""
        group = [agents] if isinstance(agents, Branch) else agents
        lanes = [self.prefix_lane] if group is None else [branch.name for branch in group]
        return self.recorder.phase(lanes, name, n_bytes)

    @contextmanager
    def context(self, agent: Branch | None = None, n_seq_max: int = 1, n_more: int = 0) -> Iterator[Context]:
        """A context for a while, its making timed and its memory counted; n_more: cells beyond the settings' n_ctx."""
        n_seq_max = max(n_seq_max, self.settings.n_seq_max)
        with self.phase(agent, "context"):
            ctx = self.model.open_context(
                replace(self.settings, n_ctx=self.settings.cells + n_more, n_seq_max=n_seq_max)
            )
        ctx.callback = self._call_back
        with ctx, self.recorder.holding(ctx.nbytes):
            yield ctx

    def comes_late(self, branch: Branch) -> bool:
        """Whether an agent waits for others, and so may begin when the prefill has passed its watermark."""
        return bool(self.schedule.after.get(branch.name)) and not branch.tokens

    def prefill(self, ctx: Context, n_tokens: int, agent: Branch | None = None) -> None:
        """Prefill a context's first sequence on to the document's first n_tokens, for an agent or (None) for all."""
        with self.phase(agent, "prefill"):
            document = self.tokens[:n_tokens]
            whole = document if agent is None else np.concatenate([agent.head, document])
            ctx.decode(whole[ctx.n_past() :])

    def capture(self, ctx: Context) -> KVSnapshot:
        """A snapshot of what a context's first sequence holds of the document, captured on the prefix's lane."""
        with self.phase(None, "capture", ctx.state_bytes()):
            return KVSnapshot.capture(ctx, self.tokens[: ctx.n_past()])

    @contextmanager
    def copy(self, snapshot: KVSnapshot, agent: Branch) -> Iterator[KVSnapshot]:
        """A copy of a snapshot in memory of its own, for an agent, for a while."""
        with self.phase(agent, "copy", snapshot.nbytes):
            buffer = snapshot.copy()
        with self.recorder.holding(buffer.nbytes):
            yield buffer

    def restore(self, ctx: Context, snapshot: KVSnapshot, agent: Branch | None = None) -> None:
        """Replace a context's first sequence by a snapshot, for an agent or (None) for all."""
        with self.phase(agent, "restore", snapshot.nbytes):
            snapshot.restore(ctx)

    @contextmanager
    def attempt(self, branch: Branch) -> Iterator[None]:
        """An agent's work: an error in it is this agent's alone, where the schedule tolerates that."""
        try:
            yield
        except SwarmKVError as error:
            self.schedule.fail(branch, error)

    def add_token(self, branch: Branch, token: int) -> None:
        """The next token of an agent's answer."""
        branch.tokens.append(token)
        if self.on_token:
            try:
                self.on_token(branch.name, token)
            except Exception as error:
                self.schedule.fail(branch, SwarmKVError(f"on_token raised {error!r}"))

    def ended(self) -> "Run":
        """The run, whose answers are text from now on: they outlive the model."""
        self._texts = self.answers
        return self

    def _call_back(self) -> None:
        """Let the callback look; its time is not measured."""
        if self.callback:
            with self.recorder.stopped():
                self.callback(self)
