"""Figures of runs on many processes and machines: who did what when, by worker."""

import pandas as pd
from matplotlib.figure import Figure

from swarmkv_studies.common.style import headline, phase_key, sheet
from swarmkv_studies.naive_vs_fanout.figures import draw_lanes


def workers_timeline(timeline: pd.DataFrame, caption: str = "", died: str = "") -> Figure:
    """Who did what when, a lane per worker; agents' names stand in their answers. A cross: the worker died.

    timeline: of a cluster's run (columns agent, phase, start_ms, end_ms, worker). died: a worker's address.
    """
    numbered = {worker: f"worker {i}" for i, worker in enumerate(dict.fromkeys(timeline.worker), 1)}
    frame = timeline.assign(lane=timeline.worker.map(numbered))
    n, end = len(numbered), frame.end_ms.max()
    with sheet(1.5 + 0.62 * n, caption) as figure:
        ax = figure.subplots()
        draw_lanes(ax, frame.assign(agent=frame.lane), scale=1e-3)
        lanes = [label.get_text() for label in ax.get_yticklabels()]
        for span in frame[frame.phase == "generate"].itertuples():
            room = int(120 * (span.end_ms - span.start_ms) / end)  # letters
            if room >= min(4, len(span.agent)):
                name = span.agent if len(span.agent) <= room else f"{span.agent[: room - 1]}…"
                middle = (span.start_ms + span.end_ms) / 2e3
                look = {"ha": "center", "va": "center", "fontsize": 7, "color": "white", "clip_on": True}
                ax.text(middle, lanes.index(span.lane), name, parse_math=False, **look)
        if died in numbered:
            at = frame[frame.worker == died].end_ms.max() * 1e-3
            ax.plot(at, lanes.index(numbered[died]), "x", color="black", markersize=11, markeredgewidth=2.5)
        ax.set_xlabel("seconds since the first call (measured)")
        answered = set(frame[frame.phase == "generate"].agent)
        also = "; one died, every agent has its answer" if died else ""
        ax.set_xlim(0, end * 1.01e-3)
        prefills = int((frame.phase == "prefill").sum())
        read = f"{prefills or 'no'} prefill{'s' if prefills > 1 else ''}"  # none: the snapshot was kept
        headline(figure, f"{len(answered)} agents on {n} workers, {read}{also}", phase_key({"run": frame}))
    return figure
