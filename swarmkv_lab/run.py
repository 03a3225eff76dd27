"""Run: what one fan-out is asked for, and what it records as it goes: spans, answers, memory."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.divergence import kl_divergence
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama import Context, Model
from swarmkv_lab.schedule import Agent, Schedule
from swarmkv_lab.snapshot import KVSnapshot

PREFIX = "prefix"  # the lane of the work that is done once for all agents
ACTIVATION = ("context", "prefill", "copy", "restore", "share")  # an agent's phases until its context holds the prefix


@dataclass(frozen=True)
class Span:
    """One piece of work on one lane; ``bytes`` of KV state were copied by it."""

    agent: str
    phase: str
    start_ms: float
    end_ms: float
    bytes: int


class Run:
    """One strategy answering all agents once. Everything reported is derived from its spans and answers.

    ``agents``: DataFrame, a row an agent. ``timeline``: DataFrame, a row a span. ``metrics``: the run's own numbers.
    ``answers``: text by agent name. Times are ms since the run's start.
    """

    def __init__(
        self,
        model: Model,
        tokens: np.ndarray,
        schedule: Schedule,
        strategy: str,
        settings: dict[str, Any],
        watch: "Callable[[Run], None] | None" = None,
        snapshot: KVSnapshot | None = None,
        on_token: Callable[[str, int], None] | None = None,
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.schedule = schedule
        self.branches = list(schedule.agents.values())
        self.strategy = strategy
        self.settings = settings
        self.snapshot = snapshot
        """of the tokens, when it was there before"""
        self.spans: list[Span] = []
        self.kv_bytes = 0
        """KV memory held at the peak: contexts and snapshots together"""
        self.repeats = pd.DataFrame()
        """the metrics of all runs of which this is the median one, when fan_out was asked for several"""
        self._watch = watch
        self._on_token = on_token
        self._open: list[tuple[str, str, float]] = []
        self._held = 0
        self._start = time.perf_counter()

    # -- what strategies call

    def now(self) -> float:
        """Milliseconds since the run's start."""
        return (time.perf_counter() - self._start) * 1e3

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """The run's clock stands still for what is not part of it."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - since

    def add(self, agent: Agent, phase: str, start_ms: float, end_ms: float) -> None:
        """A piece of an agent's work that was timed by ``now`` elsewhere, such as in a thread."""
        self.spans.append(Span(agent.name, phase, start_ms, end_ms, 0))

    @contextmanager
    def attempt(self, agents: Sequence[Agent]) -> Iterator[None]:
        """These agents' work: an error in it is theirs alone, where the schedule tolerates that."""
        try:
            yield
        except SwarmKVError as error:
            self._open = []
            for agent in agents:
                self.schedule.fail(agent, error)

    def take(self, agent: Agent, token: int) -> None:
        """The next token of an agent's answer."""
        agent.tokens.append(token)
        if self._on_token:
            try:
                self._on_token(agent.name, token)
            except Exception as error:
                self.schedule.fail(agent, SwarmKVError(f"on_token raised {error!r}"))

    @contextmanager
    def phase(self, agents: Agent | Sequence[Agent] | None, name: str, n_bytes: int = 0) -> Iterator[None]:
        """Time a piece of work on an agent's lane, on several that do it together, or (None) on the prefix's."""
        group = [agents] if isinstance(agents, Agent) else agents
        lanes = [PREFIX] if group is None else [agent.name for agent in group]
        start = self.now()
        self._open = [(lane, name, start) for lane in lanes]
        yield
        end = self.now()
        self._open = []
        self.spans += [Span(lane, name, start, end, n_bytes) for lane in lanes]

    @contextmanager
    def context(self, agent: Agent | None, **settings: Any) -> Iterator[Context]:
        """A context for a while, its making timed and its memory counted."""
        with self.phase(agent, "context"):
            ctx = self.model.context(**self.settings | settings)
        ctx.watch = self._look if self._watch else None
        with ctx, self.holding(ctx.nbytes):
            yield ctx

    @contextmanager
    def holding(self, n_bytes: int) -> Iterator[None]:
        """Count KV memory that is held for a while."""
        self._held += n_bytes
        self.kv_bytes = max(self.kv_bytes, self._held)
        try:
            yield
        finally:
            self._held -= n_bytes

    def whole_prompt(self, agent: Agent) -> list[int]:
        """The document's tokens and the agent's: what somebody who knows of no prefix is given."""
        return [*self.tokens[: agent.n_prefix].tolist(), *agent.prompt.tolist()]

    def capture(self, ctx: Context) -> KVSnapshot:
        """A snapshot of what a context's first sequence holds of the document, captured on the prefix's lane."""
        with self.phase(None, "capture", ctx.state_bytes()):
            return KVSnapshot.capture(ctx, self.tokens[: ctx.n_past()])

    # -- what readers see

    def so_far(self) -> pd.DataFrame:
        """The timeline while the run goes on, its open spans as long as they are now."""
        now = self.now()
        return pd.DataFrame([*self.spans, *(Span(*span, now, 0) for span in self._open)])

    @cached_property
    def timeline(self) -> pd.DataFrame:
        """A row a span, by start: agent (or "prefix"), phase, start_ms, end_ms, bytes copied."""
        return pd.DataFrame(self.spans).sort_values("start_ms", kind="stable", ignore_index=True)

    @cached_property
    def agents(self) -> pd.DataFrame:
        """A row an agent: activation, branch, TTFT and generation in ms, when its first token came, and its answer."""
        ms = self._phases
        answered = self.timeline[self.timeline.phase == "generate"].groupby("agent").start_ms.min()
        activation = ms[list(ACTIVATION)].sum(axis=1)
        return pd.DataFrame(
            {
                "agent": ms.index,
                "prompt_tokens": [len(agent.prompt) for agent in self.branches],
                "activation_ms": activation.to_numpy(),
                "branch_ms": ms["branch"].to_numpy(),
                "ttft_ms": (activation + ms["branch"] + ms["choose"]).to_numpy(),
                "generate_ms": ms["generate"].to_numpy(),
                "first_token_at_ms": answered.reindex(ms.index).to_numpy(),
                "answer_tokens": [len(agent.tokens) for agent in self.branches],
                "answer": list(self.answers.values()),
            }
        )

    @cached_property
    def _phases(self) -> pd.DataFrame:
        """Milliseconds by agent (row) and phase (column), 0 where an agent has no such phase."""
        spans = self.timeline.assign(ms=self.timeline.end_ms - self.timeline.start_ms)
        phases = spans.pivot_table("ms", "agent", "phase", aggfunc="sum")
        names = [agent.name for agent in self.branches]
        return phases.reindex(index=names, columns=[*ACTIVATION, "branch", "choose", "generate"]).fillna(0.0)

    @cached_property
    def answers(self) -> dict[str, str]:
        """The answers' text by agent."""
        return {agent.name: self.model.detokenize(agent.tokens) for agent in self.branches}

    @cached_property
    def errors(self) -> dict[str, SwarmKVError]:
        """Why agents have no answer, by their names."""
        return {agent.name: agent.error for agent in self.branches if agent.error is not None}

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The run in one record. Per-agent times are means over the agents, last_ttft_ms is the last one's.

        Since the run's start: end_to_end_ms until the last answer, last_first_token_ms until every agent has a token.
        """
        ms = (self.timeline.end_ms - self.timeline.start_ms).groupby(self.timeline.phase).sum()
        prefills = (self.timeline.phase == "prefill").sum()
        means = self.agents[["activation_ms", "branch_ms", "ttft_ms", "generate_ms"]].mean()
        return {
            "strategy": self.strategy,
            "depth": len(self.tokens),
            "n_agents": len(self.branches),
            "prefill_ms": ms.get("prefill", 0.0) / max(prefills, 1),
            "capture_ms": ms.get("capture", 0.0),
            **{f"{phase}_ms": self._phases[phase].mean() for phase in ACTIVATION if phase != "prefill"},
            **means.to_dict(),
            "last_ttft_ms": float(self.agents.ttft_ms.iloc[-1]),
            "last_first_token_ms": float(self.agents.first_token_at_ms.max()),
            "end_to_end_ms": float(self.timeline.end_ms.max()),
            "kv_bytes": self.kv_bytes,
            "copied_bytes": int(self.timeline.bytes.sum()),
        }

    def compare(self, reference: "Run | Sequence[Agent]") -> pd.DataFrame:
        """How exact this run's answers are against another's (naive): a row an agent.

        max_abs_logit_diff and kl (nats, from the reference to this) are of the first logits after the prompt, NaN where
        there are none (a peer's); same_tokens of the whole answer.
        """
        rows = []
        others = reference.branches if isinstance(reference, Run) else reference
        for mine, theirs in zip(self.branches, others, strict=True):
            rows.append(
                {
                    "agent": mine.name,
                    "max_abs_logit_diff": _compare(mine, theirs, lambda p, q: float(np.abs(q - p).max())),
                    "kl": _compare(mine, theirs, kl_divergence),
                    "same_tokens": mine.tokens == theirs.tokens,
                }
            )
        return pd.DataFrame(rows)

    def _look(self) -> None:
        """Let the watcher look; its drawing is not measured."""
        with self.off_the_clock():
            self._watch(self)


def _compare(mine: Agent, theirs: Agent, how: Callable[[np.ndarray, np.ndarray], float]) -> float:
    return float("nan") if mine.logits is None or theirs.logits is None else how(theirs.logits, mine.logits)
