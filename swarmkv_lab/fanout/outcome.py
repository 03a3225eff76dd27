"""Outcome: what readers see of a run, wherever it ran: tables, metrics and answers, derived from what it recorded."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout import report
from swarmkv_lab.fanout.recorder import Recorder
from swarmkv_lab.fanout.schedule import Branch, Schedule
from swarmkv_lab.fanout.timeline import PREFIX


class Outcome:
    """``agents``: DataFrame, a row per agent. ``timeline``: DataFrame, a row per span. ``metrics``: the run's numbers.

    ``answers``, ``errors``: by agent's name. ``branches``: name, prompt, tokens, logits and error of each agent. All of
    them can be read while the run goes on, and say what is known then. Times are ms since the run's start.
    """

    schedule: Schedule
    strategy: str
    packed: bool
    recorder: Recorder

    @property
    @abstractmethod
    def depth(self) -> int:
        """Tokens of the document."""

    @property
    @abstractmethod
    def answers(self) -> dict[str, str]:
        """The answers' text by agent."""

    @property
    def branches(self) -> list[Branch]:
        """The agents' branches, in their order."""
        return list(self.schedule.branches.values())

    @property
    def prefix_lane(self) -> str:
        """The name in the timeline of the work that is done once for all agents: "prefix", unless an agent has it."""
        lane = PREFIX
        while lane in self.schedule.branches:
            lane += " of all"
        return lane

    @property
    def timeline(self) -> pd.DataFrame:
        """A row per span, by start: agent (or "prefix"), phase, start_ms, end_ms, bytes copied."""
        return report.timeline(self.recorder.so_far())

    @property
    def agents(self) -> pd.DataFrame:
        """A row per agent: activation, branch, generation and TTFT in ms, and its answer (columns: report.agents)."""
        return report.agents(self.recorder.so_far(), self.branches, list(self.answers.values()))

    @property
    def errors(self) -> dict[str, SwarmKVError]:
        """Why agents have no answer, by their names."""
        return {branch.name: branch.error for branch in self.branches if branch.error is not None}

    def whole(self) -> Self:
        """This run. Raises the error of the first agent that has no answer."""
        for error in self.errors.values():
            raise error
        return self

    @property
    def metrics(self) -> dict[str, Any]:
        """The run in one record: strategy, depth, agents, times and tokens (report.metrics), KV bytes held."""
        spans = self.recorder.so_far()
        return {
            "strategy": self.strategy,
            "packed": self.packed,
            "depth": self.depth,
            "n_agents": len(self.branches),
            **report.metrics(spans, self.branches),
            "kv_bytes": self.recorder.kv_bytes,
        }

    def compare(self, reference: "Outcome | Sequence[Branch]") -> pd.DataFrame:
        """How exact this run's answers are against another's (naive): a row per agent.

        max_abs_logit_diff and kl (nats, from the reference to this) are of the first logits after the prompt, NaN where
        there are none (a peer's); same_tokens of the whole answer; first_difference: how many tokens both begin with,
        NaN where they are the same.
        """
        return report.compare_answers(
            self.branches, reference.branches if isinstance(reference, Outcome) else reference
        )
