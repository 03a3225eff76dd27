"""Figures of pipelines: the graph of agents, and who did what when."""

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_lab.analysis.timeline import PREFIX
from swarmkv_lab.figures.bench import draw_lanes, phase_key
from swarmkv_lab.figures.style import BASELINE, OURS, STRATEGY, headline, small_print, styled


def graph(after: Mapping[str, Sequence[str]], watermarks: Mapping[str, int]) -> Figure:
    """The graph of agents: an arrow to an agent from each answer that it reads, or from the document.

    after: Pipeline.after; watermarks: Pipeline.watermarks, tokens of the document that each agent reads.
    """
    depth: dict[str, int] = {}
    for name in TopologicalSorter(after).static_order():
        depth[name] = 1 + max((depth[other] for other in after.get(name, ())), default=0)
    whole = max(watermarks.values())
    columns = [[name for name in after if depth[name] == d] for d in range(1, max(depth.values()) + 1)]
    tallest = max(map(len, columns))
    at = {
        name: (x, (i + 0.5) / len(column) * tallest)
        for x, column in enumerate(columns, 1)
        for i, name in enumerate(column)
    }
    early = [name for name in after if watermarks[name] < whole]
    with styled():
        figure = Figure(figsize=(8, 1.1 + 0.62 * tallest))
        ax = figure.subplots()
        box = {"boxstyle": "round,pad=0.5", "edgecolor": "none"}
        document = (0, tallest / 2)
        shown = {}
        for name, (x, y) in at.items():
            reads = f"first {watermarks[name]:,} tokens" if name in early else "the whole document"
            shown[name] = ax.text(
                x, y, f"{name}\n{reads}", ha="center", va="center", fontsize=9, color="#222222",
                bbox=box | {"facecolor": "#FBD998" if name in early else "#E8E8E8"},
            )  # fmt: skip
        whole_text = ax.text(
            *document, f"document\n{whole:,} tokens", ha="center", va="center", fontsize=9, color="white",
            bbox=box | {"facecolor": BASELINE},
        )  # fmt: skip
        for name in after:
            arrow = {"arrowstyle": "-|>", "linewidth": 1, "patchB": shown[name].get_bbox_patch(), "shrinkB": 1}
            for other in after.get(name, ()):
                look = {"color": "#888888", "patchA": shown[other].get_bbox_patch()}
                ax.annotate("", at[name], at[other], arrowprops=arrow | look)
            if not after.get(name):
                look = {"color": BASELINE, "patchA": whole_text.get_bbox_patch()}
                ax.annotate("", at[name], document, arrowprops=arrow | look)
        ax.set(xlim=(-0.45, len(columns) + 0.45), ylim=(tallest, 0))
        ax.axis("off")
        headline(
            figure,
            f"{len(after)} agents over one document, {len(early)} of which begin before all of it is read",
            {"begins at its watermark": OURS, "reads the whole document": "#CCCCCC"},
        )
    return figure


def pipeline_timeline(
    timelines: Mapping[str, pd.DataFrame], watermarks: Mapping[str, int], caption: str = ""
) -> Figure:
    """Who did what when, a lane per agent, by strategy; dotted lines: watermarks, where the prefill paused for agents.

    timelines: Run.timeline by strategy; watermarks: Pipeline.watermarks.
    """
    heights = [frame.agent.nunique() + 0.8 for frame in timelines.values()]
    ends = sorted(set(watermarks.values()))
    with styled():
        figure = Figure(figsize=(8, 1.7 + 0.34 * sum(heights)))
        axes = figure.subplots(len(timelines), 1, height_ratios=heights, squeeze=False, sharex=True)[:, 0]
        for ax, (name, frame) in zip(axes, timelines.items(), strict=True):
            draw_lanes(ax, frame, scale=1e-3)
            prefills = frame[(frame.agent == PREFIX) & (frame.phase == "prefill")].sort_values("end_ms")
            ax.set_title(f"{name}: {frame.end_ms.max() / 1e3:.1f} s", fontsize=10, pad=6 if prefills.empty else 18)
            for end_ms, n_tokens in zip(prefills.end_ms, ends, strict=False):
                ax.axvline(end_ms * 1e-3, color="#444444", linestyle=":", linewidth=1)
                ax.text(end_ms * 1e-3, -0.62, f"{n_tokens:,} ", fontsize=7.5, ha="right", va="bottom", color="#444444")
        axes[-1].set_xlabel("seconds since the first call (measured); dotted lines: tokens prefilled so far")
        first = frame[frame.phase == "generate"].start_ms.min()  # of the last strategy
        headline(
            figure,
            f"The first answer begins {first / 1e3:.1f} s after the call, and all {len(watermarks)} end after "
            f"{frame.end_ms.max() / 1e3:.1f} s",
            phase_key(set(pd.concat(timelines.values()).phase)),
        )
        small_print(figure, caption)
    return figure


def first_answers(rows: pd.DataFrame, caption: str = "") -> Figure:
    """When each agent's answer begins, a mark per variant: medians over the rounds.

    rows: from measure.pipeline_bench.compare_pipeline.
    """
    seconds = rows.groupby(["agent", "variant"], sort=False).first_token_at_ms.median().unstack() / 1e3
    read = rows[rows.prefill_before_first > 0].groupby("variant").prefill_before_first.median().min()
    with styled():
        figure = Figure(figsize=(8, 1.6 + 0.42 * len(seconds)))
        ax = figure.subplots()
        marks = {}
        for variant in seconds:
            strategy, _, waiting = variant.partition(",")
            colour, marker = STRATEGY[strategy]
            look = {
                "color": colour,
                "marker": marker,
                "linestyle": "",
                "markerfacecolor": "white" if waiting else colour,
            }
            ax.plot(seconds[variant], seconds.index, **look, markersize=7, zorder=3)
            marks[variant] = Line2D([], [], **look, markersize=6)
        ax.hlines(seconds.index, 0, seconds.max(axis=1), color="#DDDDDD", linewidth=1)
        ax.set_ylim(len(seconds) - 0.5, -0.5)
        ax.set_xlim(left=0)
        ax.set_xlabel("seconds from the call to the first token of the answer (measured)")
        headline(figure, f"With watermarks the first answer begins when {read:.0%} of the prefill is done", marks)
        small_print(figure, caption)
    return figure
