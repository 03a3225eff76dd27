"""Timelines read: who worked how long, and what the whole could have taken at best."""

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter

import pandas as pd

PREFIX = "prefix"  # the lane of the work that is done once for all agents
BASELINE = "naive"  # the strategy that all others are compared with
ACTIVATION = ("context", "prefill", "copy", "restore", "share")  # an agent's phases until its context holds the prefix


def own_ms(timeline: pd.DataFrame) -> pd.Series:
    """Each span's own part of its time, ms: where agents were packed into one decode, they share it equally.

    timeline: a row per span, columns agent, phase, start_ms and end_ms. Spans of one phase that begin at the same
    moment are one packed piece of work, which an agent leaves when its own span ends.
    """
    own = timeline.end_ms - timeline.start_ms
    for _, packed in timeline.groupby(["phase", "start_ms"]):
        if len(packed) > 1:
            so_far, begin = 0.0, packed.start_ms.iloc[0]
            for n_done, (index, end) in enumerate(packed.end_ms.sort_values().items()):
                so_far += (end - begin) / (len(packed) - n_done)
                own[index], begin = so_far, end
    return own


def critical_path_ms(
    timeline: pd.DataFrame, after: Mapping[str, Sequence[str]], watermarks: Mapping[str, int], prefix: str = PREFIX
) -> float:
    """What a run would have taken, had every agent and the prefill a machine of their own: the longest way, ms.

    That is the prefill to an agent's watermark, its own work (``own_ms``), and that of the agents after it.
    after: whose answers each agent reads. watermarks: tokens of the document that it reads. prefix: the lane of the
    work that is done for all.
    """
    spans = timeline.assign(ms=own_ms(timeline))
    own = spans[spans.agent != prefix].groupby("agent").ms.sum()
    once = spans[spans.agent == prefix].sort_values("start_ms")
    # a prefill ends at each watermark; naive's are the agents' own
    read = once.ms.cumsum()[once.phase == "prefill"]
    ready = dict(zip(sorted(set(watermarks.values())), read, strict=False))
    done: dict[str, float] = {}
    for name in TopologicalSorter(after).static_order():
        begin = max([ready.get(watermarks[name], 0.0), *(done[other] for other in after[name])])
        done[name] = begin + own.get(name, 0.0)
    return max(done.values())
