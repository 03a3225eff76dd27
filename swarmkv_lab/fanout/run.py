"""Run: one strategy answering all agents once: what it is asked for, and what it records."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.outcome import Outcome
from swarmkv_lab.fanout.recorder import Recorder
from swarmkv_lab.fanout.schedule import Branch, Schedule
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.snapshot import KVSnapshot


@dataclass(eq=False)
class Run(Outcome):
    """An Outcome in this process: what the strategies are given, and how they do their work on it."""

    model: Model
    tokens: np.ndarray
    schedule: Schedule
    strategy: str
    settings: ContextSettings
    packed: bool = False
    """whether all agents are answered at the same time, rather than in turns"""
    snapshot: KVSnapshot | None = None
    """of the tokens, when it was there before"""
    callback: "Callable[[Run], None] | None" = None
    on_token: Callable[[str, int], None] | None = None
    threads: int = 1
    repeats: pd.DataFrame = field(default_factory=pd.DataFrame)
    """the metrics of all runs of which this is the median one, when fan_out was asked for several"""
    recorder: Recorder = field(default_factory=Recorder)
    _stopped: bool = False
    _texts: dict[str, str] = field(default_factory=dict)

    @property
    def answers(self) -> dict[str, str]:
        """The answers' text by agent."""
        return self._texts or {branch.name: self.model.detokenize(branch.tokens) for branch in self.branches}

    @property
    def depth(self) -> int:
        """Tokens of the document."""
        return len(self.tokens)

    def phase(
        self, agents: Branch | Sequence[Branch] | None, name: str, n_bytes: int = 0
    ) -> AbstractContextManager[Callable[[str], None]]:
        """Time a piece of work on an agent's lane, on several that do it together, or (None) on the prefix's."""
        group = [agents] if isinstance(agents, Branch) else agents
        lanes = [self.prefix_lane] if group is None else [branch.name for branch in group]
        return self.recorder.phase(lanes, name, n_bytes)

    @contextmanager
    def context(self, agent: Branch | None, n_seq_max: int = 1) -> Iterator[Context]:
        """A context for a while, its making timed and its memory counted."""
        with self.phase(agent, "context"):
            ctx = self.model.open_context(replace(self.settings, n_seq_max=max(n_seq_max, self.settings.n_seq_max)))
        ctx.callback = self._call_back
        with ctx, self.recorder.holding(ctx.nbytes):
            yield ctx

    def prefill(self, ctx: Context, agent: Branch | None, n_tokens: int) -> None:
        """Decode on to the document's first n_tokens in a context's first sequence, for an agent or (None) for all."""
        with self.phase(agent, "prefill"):
            ctx.decode(self.tokens[ctx.n_past() : n_tokens])

    def capture(self, ctx: Context) -> KVSnapshot:
        """A snapshot of what a context's first sequence holds of the document, captured on the prefix's lane."""
        with self.phase(None, "capture", ctx.state_bytes()):
            return KVSnapshot.capture(ctx, self.tokens[: ctx.n_past()])

    def each(self, turn: Callable[[Branch], None], advance: Callable[[int], None] = lambda n_tokens: None) -> None:
        """Every agent takes its turn once it is ready: one after another, or in as many threads as the run was given.

        advance: prefills the document on, to so many tokens.
        """

        def one(branch: Branch) -> None:
            with self.attempt(branch):
                turn(branch)

        for branches in self.schedule.ready(advance):
            if self.threads == 1:
                for branch in branches:
                    one(branch)
                continue
            with ThreadPoolExecutor(self.threads) as pool:
                jobs = [pool.submit(one, branch) for branch in branches]
                try:
                    for job in as_completed(jobs):
                        job.result()
                except BaseException:  # such as Ctrl-C: the other threads end before their next llama_decode
                    self._stopped = True
                    pool.shutdown(cancel_futures=True)
                    raise

    @contextmanager
    def attempt(self, branch: Branch) -> Iterator[None]:
        """An agent's work: an error in it is this agent's alone, where the schedule tolerates that."""
        try:
            yield
        except SwarmKVError as error:
            self.schedule.fail(branch, error)

    def take(self, branch: Branch, token: int) -> None:
        """The next token of an agent's answer."""
        branch.tokens.append(token)
        if self.on_token:
            try:
                self.on_token(branch.name, token)
            except Exception as error:
                self.schedule.fail(branch, SwarmKVError(f"on_token raised {error!r}"))

    def take_all(self, branch: Branch, tokens: Iterable[int]) -> None:
        """A peer's answer from the tokens that it would give, until the model ends its turn or max_tokens are out."""
        until_end = takewhile(lambda token: not self.model.is_eog(token), tokens)
        branch.tokens += islice(until_end, branch.max_tokens)

    def ended(self) -> "Run":
        """The run, whose answers are text from now on: they outlive the model."""
        self._texts = self.answers
        return self

    def whole_prompt(self, branch: Branch) -> list[int]:
        """The document's tokens and the agent's: what somebody who knows of no prefix is given."""
        return [*self.tokens[: branch.n_prefix].tolist(), *branch.prompt.tolist()]

    def _call_back(self) -> None:
        """Let the callback look, one thread at a time; its time is not measured, unless other threads go on."""
        if self._stopped:
            raise SwarmKVError("the run was ended in another thread")
        if self.callback:
            with self.recorder.lock, self.recorder.stopped() if self.threads == 1 else nullcontext():
                try:
                    self.callback(self)
                except SwarmKVError:  # in a pipeline, one agent's failure
                    raise
                except BaseException:  # now: to close its context, this thread waits for the others
                    self._stopped = True
                    raise
