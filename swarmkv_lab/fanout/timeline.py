"""Reading timelines: how long each agent worked, and the shortest time that the run could have taken."""

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter

import pandas as pd

PREFIX = "prefix"  # the lane of the work done once for all agents
BASELINE = "naive"  # the strategy that all others are compared with
ACTIVATION = ("context", "prefill", "copy", "restore", "share")  # an agent's phases until its context holds the prefix


def own_ms(timeline: pd.DataFrame) -> pd.Series:
    """Each span's own share of its time in ms: agents packed into one decode share its time equally.

    timeline: a row per span, columns agent, phase, start_ms and end_ms. Spans of one phase that start at the same
    moment are packed work; an agent takes part in it until its own span ends.
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
    """The run's time in ms if the prefill and every agent had its own machine: the longest path through the graph.

    A path is the prefill up to an agent's watermark, the agent's own work (``own_ms``), and that of the agents after
    it. after: the agents whose answers each agent reads. watermarks: tokens of the document that each agent reads.
    prefix: the lane of the work done for all agents.
    """
    spans = timeline.assign(ms=own_ms(timeline))
    own = spans[spans.agent != prefix].groupby("agent").ms.sum()
    once = spans[spans.agent == prefix].sort_values("start_ms")
    # this lane has one prefill span per watermark; with naive it has none, because every agent prefills
    read = once.ms.cumsum()[once.phase == "prefill"]
    ready = dict(zip(sorted(set(watermarks.values())), read, strict=False))
    done: dict[str, float] = {}
    for name in TopologicalSorter(after).static_order():
        begin = max([ready.get(watermarks[name], 0.0), *(done[other] for other in after[name])])
        done[name] = begin + own.get(name, 0.0)
    return max(done.values())
