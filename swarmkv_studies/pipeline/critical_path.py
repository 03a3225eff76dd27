"""The critical path: the shortest time that a run of a pipeline could have taken."""

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter

import pandas as pd

from swarmkv_lab.fanout.recorder import PREFIX
from swarmkv_lab.fanout.run import Run


def critical_path_ms(run: Run) -> float:
    """What a pipeline's run would have taken, had every agent and the prefill a machine of their own, ms.

    The longest way through the graph; where agents were packed into one decode, each is charged its share of it.
    """
    marks = {branch.name: branch.n_prefix for branch in run.branches}
    return longest_path_ms(run.timeline, run.schedule.after, marks, run.prefix_lane)


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


def longest_path_ms(
    timeline: pd.DataFrame, after: Mapping[str, Sequence[str]], watermarks: Mapping[str, int], prefix: str = PREFIX
) -> float:
    """The longest path through the graph, ms: the prefill up to an agent's watermark, the agent's own work
    (``own_ms``), and that of the agents after it.

    after: the agents whose answers each agent reads. watermarks: tokens of the document that each agent reads.
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
