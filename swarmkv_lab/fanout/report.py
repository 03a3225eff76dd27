"""Report: what a run's spans and answers amount to, as tables and metrics. All of it is derived, none is kept."""

from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.divergence import kl_divergence
from swarmkv_lab.fanout.recorder import Span
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.fanout.timeline import ACTIVATION

_PHASES = [*ACTIVATION, "branch", "sample", "generate"]


def timeline(spans: Sequence[Span]) -> pd.DataFrame:
    """A row per span, by start: agent (or "prefix"), phase, start_ms, end_ms, bytes copied, on a cluster worker."""
    frame = pd.DataFrame(spans, columns=Span._fields).sort_values("start_ms", kind="stable", ignore_index=True)
    return frame if (frame.worker != "").any() else frame.drop(columns="worker")


def phases_ms(spans: Sequence[Span], branches: Sequence[Branch]) -> pd.DataFrame:
    """Milliseconds by agent (row) and phase (column); NaN for agents that failed or have not begun."""
    frame = timeline(spans)
    by_phase = frame.assign(ms=frame.end_ms - frame.start_ms).pivot_table("ms", "agent", "phase", aggfunc="sum")
    counted = [branch.name for branch in branches if branch.error is None and branch.name in by_phase.index]
    return by_phase.reindex(counted, columns=_PHASES).fillna(0.0).reindex([branch.name for branch in branches])


def agents(spans: Sequence[Span], branches: Sequence[Branch], answers: Sequence[str]) -> pd.DataFrame:
    """A row per agent, times in ms, NaN for agents that failed.

    activation_ms: from the start of its own turn until its context holds the prefix; then branch_ms (its question),
    sample_ms (its first token) and generate_ms (the rest). ttft_ms: from the call to its first token.
    """
    ms = phases_ms(spans, branches)
    begun = timeline([span for span in spans if span.phase == "generate"]).groupby("agent").start_ms.min()
    table = pd.DataFrame({"agent": ms.index, "prompt_tokens": [len(branch.prompt) for branch in branches]})
    table["activation_ms"] = ms[list(ACTIVATION)].sum(axis=1, skipna=False).to_numpy()
    for phase in ("branch", "sample", "generate"):
        table[f"{phase}_ms"] = ms[phase].to_numpy()
    table["ttft_ms"] = begun.reindex(ms.index).where(ms.branch.notna()).to_numpy()
    return table.assign(answer_tokens=[len(branch.tokens) for branch in branches], answer=list(answers))


def metrics(spans: Sequence[Span], branches: Sequence[Branch]) -> dict[str, float]:
    """A run's times (ms), prompt tokens and copied bytes in one record. Agents that failed count in no time.

    prefill_ms: the document's prefill, all of it; the mean over the agents where each has its own. Parts of an agent's
    turn are means over the agents; last_turn_ttft_ms is the last agent's from the start of its turn. From the call:
    first_ttft_ms, ttft_ms (the median agent's), last_ttft_ms and end_to_end_ms. prompt_tokens: of all agents' prompts,
    the document included; computed_tokens: how many of them were decoded (NaN for a peer without logits, whose spans
    do not tell).
    """
    frame = timeline(spans)
    ms = (frame.end_ms - frame.start_ms).groupby([frame.phase, frame.agent]).sum()
    failed = [branch.name for branch in branches if branch.error is not None]
    prefills = ms["prefill"].drop(labels=failed, errors="ignore") if "prefill" in ms else pd.Series([0.0])
    by_phase, table = phases_ms(spans, branches), agents(spans, branches, [""] * len(branches))
    turns = (table.activation_ms + table.branch_ms + table.sample_ms).dropna()
    ok = [branch for branch in branches if branch.error is None]
    return {
        "prefill_ms": float(prefills.mean()),
        "capture_ms": float(ms["capture"].sum()) if "capture" in ms else 0.0,
        **{f"{phase}_ms": float(by_phase[phase].mean()) for phase in ACTIVATION if phase != "prefill"},
        **table[["activation_ms", "branch_ms", "sample_ms", "generate_ms"]].mean().to_dict(),
        "last_turn_ttft_ms": float(turns.iloc[-1]) if len(turns) else float("nan"),
        "first_ttft_ms": float(table.ttft_ms.min()),
        "ttft_ms": float(table.ttft_ms.median()),
        "last_ttft_ms": float(table.ttft_ms.max()),
        "end_to_end_ms": float(frame.end_ms.max()),
        "prompt_tokens": sum(branch.n_prefix + len(branch.prompt) for branch in ok),
        "computed_tokens": _computed(spans, ok),
        "copied_bytes": sum(span.bytes for span in spans),
    }


def _computed(spans: Sequence[Span], branches: Sequence[Branch]) -> float:
    """The prompt tokens that were decoded: a document per lane with a prefill of its own, and each agent's question."""
    if not branches or any(branch.logits is None for branch in branches):
        return float("nan")
    own = {branch.name: branch.n_prefix for branch in branches}
    lanes = {(span.agent, span.worker) for span in spans if span.phase == "prefill"}
    documents = sum(own.get(agent, max(own.values())) for agent, _ in lanes)
    return documents + sum(len(branch.prompt) for branch in branches)


def compare_answers(mine: Sequence[Branch], theirs: Sequence[Branch]) -> pd.DataFrame:
    """Agents' answers beside those of the same agents in another run; columns as in Run.compare."""
    if len(mine) != len(theirs):
        raise SwarmKVError(f"a run of {len(mine)} agents cannot be compared with one of {len(theirs)}")
    return pd.DataFrame(
        {
            "agent": my.name,
            "max_abs_logit_diff": _compare(my, other, lambda p, q: float(np.abs(q - p).max())),
            "kl": _compare(my, other, kl_divergence),
            "same_tokens": my.tokens == other.tokens,
            "first_difference": _first_difference(my.tokens, other.tokens),
        }
        for my, other in zip(mine, theirs, strict=True)
    )


def _first_difference(mine: Sequence[int], theirs: Sequence[int]) -> float:
    """The number of tokens that two answers begin with alike; NaN where they are the same."""
    return next((i for i, (a, b) in enumerate(zip_longest(mine, theirs)) if a != b), float("nan"))


def _compare(mine: Branch, theirs: Branch, how: Callable[[np.ndarray, np.ndarray], float]) -> float:
    return float("nan") if mine.logits is None or theirs.logits is None else how(theirs.logits, mine.logits)
