"""Report: what a run's spans and answers amount to, as tables and metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.analysis.divergence import compare_answers
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.llama import Model

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


class Report:
    """What readers see of a run, derived from what it recorded."""

    model: Model
    tokens: np.ndarray
    branches: list[Branch]
    strategy: str
    spans: list[Span]
    kv_bytes: int

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

    def compare(self, reference: "Report | Sequence[Branch]") -> pd.DataFrame:
        """How exact this run's answers are against another's (naive): a row an agent.

        max_abs_logit_diff and kl (nats, from the reference to this) are of the first logits after the prompt, NaN where
        there are none (a peer's); same_tokens of the whole answer.
        """
        return compare_answers(self.branches, reference.branches if isinstance(reference, Report) else reference)
