"""Outcome: what readers see of a run, wherever it ran. Tables and metrics are derived from what it recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Self

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.recorder import ACTIVATION, PREFIX, Recorder, Span
from swarmkv_lab.fanout.schedule import Branch, Schedule
from swarmkv_lab.llama.sampling import log_softmax

_NAN = float("nan")
_TURN = ("branch", "sample", "generate")  # an agent's phases once its context holds the prefix


@dataclass(eq=False, repr=False, kw_only=True)
class Outcome(Recorder):
    """What a run was asked and has recorded. All can be read while it goes on. Times are ms since the run's start."""

    tokens: np.ndarray
    """of the document"""
    schedule: Schedule
    strategy: str
    packed: bool
    """whether all agents are answered at the same time, rather than in turns"""
    computed: int = 0
    """prompt tokens that were decoded once for all agents"""

    @property
    def branches(self) -> list[Branch]:
        """Each agent's name, prompt, tokens, logits and error, in their order."""
        return list(self.schedule.branches.values())

    @property
    def answers(self) -> dict[str, str]:
        """The answers' text by agent; empty until an agent has ended."""
        return {branch.name: branch.text or "" for branch in self.branches}

    @property
    def errors(self) -> dict[str, SwarmKVError]:
        """Why agents have no answer, by their names."""
        return {branch.name: branch.error for branch in self.branches if branch.error is not None}

    def whole(self) -> Self:
        """This run. Raises the error of the first agent that has no answer."""
        for error in self.errors.values():
            raise error
        return self

    def whole_prompt(self, branch: Branch) -> np.ndarray:
        """What a full prefill of an agent would decode, int32 (n,): head, document and prompt."""
        return np.concatenate([branch.head, self.tokens[: branch.n_prefix], branch.prompt])

    @property
    def timeline(self) -> pd.DataFrame:
        """A row per span, by start: agent (or "prefix"), phase, start_ms, end_ms, bytes copied, on a cluster worker."""
        now = self.now()
        begun = [span._replace(end_ms=now) for span in list(self._open.values())]  # as long as they are now
        frame = pd.DataFrame([*self.spans, *begun], columns=Span._fields).fillna({"agent": PREFIX})
        frame = frame.sort_values("start_ms", kind="stable", ignore_index=True)
        return frame if (frame.worker != "").any() else frame.drop(columns="worker")

    @property
    def agents(self) -> pd.DataFrame:
        """A row per agent, times in ms, NaN for agents that failed.

        activation_ms: from the start of its own turn until its context holds the prefix; then branch_ms (its question),
        sample_ms (its first token) and generate_ms (the rest). ttft_ms: from the call to its first token.
        """
        frame = self.timeline
        ms = self._phases_ms(frame)
        begun = frame[frame.phase == "generate"].groupby("agent").start_ms.min()
        columns = {
            "prompt_tokens": [len(branch.prompt) for branch in self.branches],
            "activation_ms": ms[list(ACTIVATION)].sum(axis=1, skipna=False),
            **{f"{phase}_ms": ms[phase] for phase in _TURN},
            "ttft_ms": begun.reindex(ms.index).where(ms.branch.notna()),
            "answer_tokens": [len(branch.tokens) for branch in self.branches],
            "answer": list(self.answers.values()),
        }
        return pd.DataFrame(columns, index=ms.index.rename("agent")).reset_index()

    @property
    def metrics(self) -> dict[str, Any]:
        """The run in one record: times (ms), tokens and bytes. Agents that failed count in no time.

        prefill_ms: the document's prefill, all of it; the mean over the agents where each has its own. Parts of an
        agent's turn are means over the agents; last_turn_ttft_ms is the last agent's from the start of its turn. From
        the call: first_ttft_ms, ttft_ms (the median agent's), last_ttft_ms and end_to_end_ms. prompt_tokens: of all
        agents' prompts, the document included; computed_tokens: how many of them were decoded (NaN for a peer, which
        does not tell). kv_bytes: memory held at the peak.
        """
        frame, agents = self.timeline, self.agents
        ms = frame.assign(ms=frame.end_ms - frame.start_ms)[~frame.agent.isin(self.errors)]
        prefills = ms[ms.phase == "prefill"].groupby("agent").ms.sum()
        by_phase = self._phases_ms(frame).mean()
        turns = (agents.activation_ms + agents.branch_ms + agents.sample_ms).dropna()
        answered = [branch for branch in self.branches if branch.error is None]
        return {
            "strategy": self.strategy,
            "packed": self.packed,
            "depth": len(self.tokens),
            "n_agents": len(self.branches),
            "prefill_ms": float(prefills.mean()) if "prefill" in set(frame.phase) else 0.0,
            "capture_ms": float(ms[ms.phase == "capture"].ms.sum()),
            **{f"{phase}_ms": float(by_phase[phase]) for phase in ACTIVATION if phase != "prefill"},
            **agents[["activation_ms", *(f"{phase}_ms" for phase in _TURN)]].mean().to_dict(),
            "last_turn_ttft_ms": float(turns.iloc[-1]) if len(turns) else _NAN,
            "first_ttft_ms": float(agents.ttft_ms.min()),
            "ttft_ms": float(agents.ttft_ms.median()),
            "last_ttft_ms": float(agents.ttft_ms.max()),
            "end_to_end_ms": float(frame.end_ms.max()),
            "prompt_tokens": sum(len(self.whole_prompt(branch)) for branch in answered),
            "computed_tokens": self.computed + sum(branch.computed for branch in answered) or _NAN,
            "copied_bytes": int(frame.bytes.sum()),
            "kv_bytes": self.kv_bytes,
        }

    def compare(self, reference: "Outcome | Sequence[Branch]") -> pd.DataFrame:
        """How exact this run's answers are against another's (naive): a row per agent.

        max_abs_logit_diff and kl (nats, from the reference to this) are of the first logits after the prompt, NaN where
        there are none (a peer's); same_tokens of the whole answer; first_difference: how many tokens both begin with,
        NaN where they are the same.
        """
        mine, theirs = self.branches, reference.branches if isinstance(reference, Outcome) else reference
        if len(mine) != len(theirs):
            raise SwarmKVError(f"a run of {len(mine)} agents cannot be compared with one of {len(theirs)}")
        rows = []
        for my, other in zip(mine, theirs, strict=True):
            difference = kl = _NAN
            if my.logits is not None and other.logits is not None:
                difference = float(np.abs(my.logits - other.logits).max())
                kl = kl_divergence(other.logits, my.logits)
            alike = [a == b for a, b in zip_longest(my.tokens, other.tokens)]
            first = _NAN if all(alike) else alike.index(False)
            row = {"max_abs_logit_diff": difference, "kl": kl, "same_tokens": all(alike), "first_difference": first}
            rows.append({"agent": my.name, **row})
        return pd.DataFrame(rows)

    def _phases_ms(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Milliseconds by agent (row) and phase (column); NaN for agents that failed or have not begun."""
        by_phase = frame.assign(ms=frame.end_ms - frame.start_ms).pivot_table("ms", "agent", "phase", aggfunc="sum")
        names = list(self.schedule.branches)
        counted = [name for name in names if name not in self.errors and name in by_phase.index]
        return by_phase.reindex(counted, columns=[*ACTIVATION, *_TURN]).fillna(0.0).reindex(names)


def kl_divergence(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """KL(p || q) in nats between the softmax distributions of two rows of logits."""
    if p_logits.shape != q_logits.shape:
        raise SwarmKVError(f"logits of shape {p_logits.shape} and {q_logits.shape} cannot be compared")
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    return float(max(0.0, (np.exp(log_p) * (log_p - log_q)).sum()))
