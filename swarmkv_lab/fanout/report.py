"""Report: what a run's spans and answers amount to, as tables and metrics. All of it is derived, none is kept."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.divergence import kl_divergence
from swarmkv_lab.fanout.recorder import Span
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.fanout.timeline import ACTIVATION
from swarmkv_studies.common.clock import Beats, in_beats

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
    """A row per agent: activation, branch, TTFT and generation in ms, when its first token came, and its answer.

    Times of agents that failed are NaN.
    """
    ms = phases_ms(spans, branches)
    begun = timeline([span for span in spans if span.phase == "generate"]).groupby("agent").start_ms.min()
    activation = ms[list(ACTIVATION)].sum(axis=1, skipna=False)
    return pd.DataFrame(
        {
            "agent": ms.index,
            "prompt_tokens": [len(branch.prompt) for branch in branches],
            "activation_ms": activation.to_numpy(),
            "branch_ms": ms["branch"].to_numpy(),
            "ttft_ms": (activation + ms["branch"] + ms["sample"]).to_numpy(),
            "generate_ms": ms["generate"].to_numpy(),
            "first_token_at_ms": begun.reindex(ms.index).where(activation.notna()).to_numpy(),
            "answer_tokens": [len(branch.tokens) for branch in branches],
            "answer": list(answers),
        }
    )


def metrics(spans: Sequence[Span], branches: Sequence[Branch]) -> dict[str, float]:
    """Times of a run in one record. Agents that failed count in none of them.

    prefill_ms: the document's prefill, all of it; the mean over the agents where each has its own. Per-agent times are
    means over the agents, last_ttft_ms is the last one's. Since the run's start: end_to_end_ms until the last answer,
    last_first_token_ms until every agent has a token.
    """
    frame = timeline(spans)
    ms = (frame.end_ms - frame.start_ms).groupby([frame.phase, frame.agent]).sum()
    failed = {branch.name for branch in branches if branch.error is not None}
    prefills = ms["prefill"].drop(labels=failed, errors="ignore") if "prefill" in ms else pd.Series([0.0])
    by_agent = phases_ms(spans, branches)
    table = agents(spans, branches, [""] * len(branches))
    means = table[["activation_ms", "branch_ms", "ttft_ms", "generate_ms"]].mean()
    ttft = table.ttft_ms.dropna()
    return {
        "prefill_ms": float(prefills.mean()) if len(prefills) else float("nan"),
        "capture_ms": float(ms["capture"].sum()) if "capture" in ms else 0.0,
        **{f"{phase}_ms": float(by_agent[phase].mean()) for phase in ACTIVATION if phase != "prefill"},
        **means.to_dict(),
        "last_ttft_ms": float(ttft.iloc[-1]) if len(ttft) else float("nan"),
        "last_first_token_ms": float(table.first_token_at_ms.max()),
        "end_to_end_ms": float(frame.end_ms.max()),
    }


def metrics_in_beats(spans: Sequence[Span], branches: Sequence[Branch], beats: Beats) -> dict[str, float]:
    """The same times in beats, a number each (prefill_beats for prefill_ms), and beat_ms, the run's mean beat.

    Nothing where none were taken.
    """
    if not (beats and spans):
        return {}
    moments = in_beats([(span.start_ms, span.end_ms) for span in spans], beats)
    counted = [
        span._replace(start_ms=start, end_ms=end) for span, (start, end) in zip(spans, moments.tolist(), strict=True)
    ]
    times = metrics(counted, branches)
    mean = max(span.end_ms for span in spans) / times["end_to_end_ms"]
    return {**{f"{name.removesuffix('_ms')}_beats": n for name, n in times.items()}, "beat_ms": mean}


def compare_answers(mine: Sequence[Branch], theirs: Sequence[Branch]) -> pd.DataFrame:
    """Agents' answers beside those of the same agents in another run; columns as in Run.compare."""
    if len(mine) != len(theirs):
        raise SwarmKVError(f"a run of {len(mine)} agents cannot be compared with one of {len(theirs)}")
    rows = [
        {
            "agent": my.name,
            "max_abs_logit_diff": _compare(my, other, lambda p, q: float(np.abs(q - p).max())),
            "kl": _compare(my, other, kl_divergence),
            "same_tokens": my.tokens == other.tokens,
            "first_difference": _first_difference(my.tokens, other.tokens),
        }
        for my, other in zip(mine, theirs, strict=True)
    ]
    return pd.DataFrame(rows)


def _first_difference(mine: Sequence[int], theirs: Sequence[int]) -> float:
    """The number of tokens that two answers begin with alike; NaN where they are the same."""
    if mine == theirs:
        return float("nan")
    return next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))


def _compare(mine: Branch, theirs: Branch, how: Callable[[np.ndarray, np.ndarray], float]) -> float:
    return float("nan") if mine.logits is None or theirs.logits is None else how(theirs.logits, mine.logits)
