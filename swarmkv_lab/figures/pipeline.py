"""Figures of pipelines: the graph of agents, and who did what when."""

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_lab.analysis.timeline import PREFIX
from swarmkv_lab.figures.bench import draw_lanes
from swarmkv_lab.figures.style import BASELINE, OURS, STRATEGY, headline, phase_key, sheet


def graph(after: Mapping[str, Sequence[str]], watermarks: Mapping[str, int]) -> Figure:
    """The graph of agents: an arrow to an agent from each answer that it reads, or from the document.

    after: Pipeline.after; watermarks: Pipeline.watermarks, tokens of the document that each agent reads.
    """
    column: dict[str, int] = {}
    for name in TopologicalSorter(after).static_order():
        column[name] = 1 + max((column[other] for other in after.get(name, ())), default=0)
    columns = [[name for name in after if column[name] == x] for x in range(1, max(column.values()) + 1)]
    tallest = max(map(len, columns))
    whole = max(watermarks.values())
    early = [name for name in after if watermarks[name] < whole]
    with sheet(1.1 + 0.62 * tallest) as figure:
        ax = figure.subplots()
        at, boxes = {}, {}

        def box(name: str | None, x: float, y: float, text: str, fill: str, colour: str = "#222222") -> None:
            look = {"boxstyle": "round,pad=0.5", "edgecolor": "none", "facecolor": fill}
            drawn = ax.text(x, y, text, ha="center", va="center", fontsize=9, color=colour, bbox=look, parse_math=False)
            at[name], boxes[name] = (x, y), drawn.get_bbox_patch()

        for x, names in enumerate(columns, 1):
            for i, name in enumerate(names):
                reads = f"first {watermarks[name]:,} tokens" if name in early else "the whole document"
                fill = "#FBD998" if name in early else "#E8E8E8"
                box(name, x, (i + 0.5) / len(names) * tallest, f"{name}\n{reads}", fill)
        box(None, 0, tallest / 2, f"document\n{whole:,} tokens", BASELINE, "white")
        for name in after:
            for other in after[name] or [None]:
                look = {"arrowstyle": "-|>", "linewidth": 1, "color": "#888888" if other else BASELINE}
                ends = {"patchA": boxes[other], "patchB": boxes[name], "shrinkB": 1}
                ax.annotate("", at[name], at[other], arrowprops=look | ends)
        ax.set(xlim=(-0.45, len(columns) + 0.45), ylim=(tallest, 0))
        ax.axis("off")
        message = f"{len(after)} agents over one document, {len(early)} of which begin before all of it is read"
        headline(figure, message, {"begins at its watermark": OURS, "reads the whole document": "#CCCCCC"})
    return figure


def pipeline_timeline(
    timelines: Mapping[str, pd.DataFrame], watermarks: Mapping[str, int], caption: str = ""
) -> Figure:
    """Who did what when, a lane per agent, by strategy; dotted lines: watermarks, where the prefill paused for agents.

    timelines: Run.timeline by strategy; watermarks: Pipeline.watermarks.
    """
    heights = [frame.agent.nunique() + 0.8 for frame in timelines.values()]
    ends = sorted(set(watermarks.values()))
    with sheet(1.7 + 0.34 * sum(heights), caption) as figure:
        axes = figure.subplots(len(timelines), 1, height_ratios=heights, squeeze=False, sharex=True)[:, 0]
        for ax, (name, frame) in zip(axes, timelines.items(), strict=True):
            draw_lanes(ax, frame, scale=1e-3)
            prefills = frame[(frame.agent == PREFIX) & (frame.phase == "prefill")].sort_values("end_ms")
            ax.set_title(f"{name}: {frame.end_ms.max() / 1e3:.1f} s", pad=6 if prefills.empty else 18)
            for end_ms, n_tokens in zip(prefills.end_ms, ends, strict=False):
                ax.axvline(end_ms * 1e-3, color="#444444", linestyle=":", linewidth=1)
                ax.text(end_ms * 1e-3, -0.62, f"{n_tokens:,} ", fontsize=7.5, ha="right", va="bottom", color="#444444")
        axes[-1].set_xlabel("seconds since the first call (measured); dotted lines: tokens prefilled so far")
        first = frame[frame.phase == "generate"].start_ms.min() / 1e3  # of the last strategy
        n, last = len(watermarks), frame.end_ms.max() / 1e3
        message = f"The first answer begins {first:.1f} s after the call, and all {n} end after {last:.1f} s"
        headline(figure, message, phase_key(timelines))
    return figure


def first_answers(rows: pd.DataFrame, caption: str = "") -> Figure:
    """When each agent's answer begins, a mark per variant: medians over the rounds.

    rows: from measure.pipeline_bench.compare_pipeline.
    """
    seconds = rows.groupby(["agent", "variant"], sort=False).first_token_at_ms.median().unstack() / 1e3
    read = rows[rows.prefill_before_first > 0].groupby("variant").prefill_before_first.median().min()
    with sheet(1.6 + 0.42 * len(seconds), caption) as figure:
        ax = figure.subplots()
        marks = {}
        for variant in seconds:
            strategy, _, waiting = variant.partition(",")
            colour, marker = STRATEGY[strategy]
            look = {"color": colour, "marker": marker, "linestyle": ""}
            look["markerfacecolor"] = "white" if waiting else colour
            ax.plot(seconds[variant], seconds.index, **look, markersize=7, zorder=3)
            marks[variant] = Line2D([], [], **look)
        ax.hlines(seconds.index, 0, seconds.max(axis=1), color="#DDDDDD", linewidth=1)
        ax.set(ylim=(len(seconds) - 0.5, -0.5), xlim=(0, None))
        ax.set_xlabel("seconds from the call to the first token of the answer (measured)")
        headline(figure, f"With watermarks the first answer begins when {read:.0%} of the prefill is done", marks)
    return figure
