"""Figures of pipelines: the graph of agents, and who did what when."""

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from swarmkv_lab.fanout.recorder import PREFIX
from swarmkv_studies.common.style import BASELINE, OURS, headline, phase_key, plain_numbers, sheet
from swarmkv_studies.naive_vs_fanout.figures import draw_lanes


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
    """Who did what when, a lane per agent, by variant, and close-ups of what the last one's agents do at watermarks.

    timelines: Run.timeline by variant, on one time axis: the one to compare with first, such as "batched, waiting".
    watermarks: Pipeline.watermarks. Dotted lines: where the last variant's prefill paused for agents.
    """
    *others, last = timelines
    ours = timelines[last]
    pauses = _pauses(ours, watermarks)
    heights = [frame.agent.nunique() + 0.8 for frame in timelines.values()]
    tallest = max((len(frame.agent.unique()) for _, _, frame in pauses), default=0)
    below = [tallest + 2.2] if pauses else []
    with sheet(1.9 + 0.34 * sum(heights + below), caption) as figure:
        rows = figure.add_gridspec(len(heights + below), 1, height_ratios=heights + below)
        axes = [figure.add_subplot(rows[0])]
        axes += [figure.add_subplot(row, sharex=axes[0]) for row in list(rows)[1 : len(heights)]]
        for ax, (name, frame) in zip(axes, timelines.items(), strict=True):
            draw_lanes(ax, frame, scale=1e-3)
            ax.set_title(f"{name}: {frame.end_ms.max() / 1e3:.1f} s", pad=18 if name == last and pauses else 6)
            ax.tick_params(labelbottom=ax is axes[-1])
        for n_tokens, start_ms, _ in pauses:
            axes[-1].axvline(start_ms * 1e-3, color="#444444", linestyle=":", linewidth=1)
            at = (start_ms * 1e-3, -0.62)
            axes[-1].text(*at, f"{n_tokens:,} ", fontsize=7.5, ha="right", va="bottom", color="#444444")
        axes[-1].set_xlabel("seconds since the first call (measured); dotted lines: tokens prefilled so far")
        if pauses:
            close_ups = rows[-1].subgridspec(1, len(pauses))
            for (n_tokens, start_ms, frame), place in zip(pauses, close_ups, strict=True):
                ax = figure.add_subplot(place)
                draw_lanes(ax, frame.assign(start_ms=frame.start_ms - start_ms, end_ms=frame.end_ms - start_ms))
                ax.set_title(f"{last}, close-up at {n_tokens:,}", fontsize=8.5)
                ax.set(xlim=(0, (frame.end_ms.max() - start_ms) * 1.02), ylim=(tallest - 0.4, -0.6))
                ax.set_xlabel("milliseconds (measured)", fontsize=8.5)
                ax.tick_params(labelsize=8)
                ax.xaxis.set_major_locator(MaxNLocator(4))
                plain_numbers(ax.xaxis)
        headline(figure, _timeline_message(timelines, others, last), phase_key(timelines))
    return figure


def _pauses(timeline: pd.DataFrame, watermarks: Mapping[str, int]) -> list[tuple[int, float, pd.DataFrame]]:
    """Where a shared prefill stopped for agents: tokens so far, when in ms, and the spans until it goes on."""
    once = timeline[(timeline.agent == PREFIX) & (timeline.phase == "prefill")].sort_values("end_ms")
    agents = timeline[timeline.agent != PREFIX]
    until = [*once.start_ms[1:], float("inf")]
    found = []
    for n_tokens, start_ms, end_ms in zip(sorted(set(watermarks.values())), once.end_ms, until, strict=False):
        spans = agents[(agents.start_ms >= start_ms) & (agents.start_ms < end_ms)]
        if len(spans):
            found.append((n_tokens, float(start_ms), spans))
    return found


def _timeline_message(timelines: Mapping[str, pd.DataFrame], others: Sequence[str], last: str) -> str:
    """When the first answer begins and the last one ends in the last variant, and in the one to compare with."""
    first = {name: frame[frame.phase == "generate"].start_ms.min() / 1e3 for name, frame in timelines.items()}
    end = {name: frame.end_ms.max() / 1e3 for name, frame in timelines.items()}
    begins = f"First answer at {first[last]:.1f} s, end {end[last]:.1f}"
    if not others:
        return f"{begins} s (one round)"
    rival = "without watermarks" if "waiting" in others[0] else f"with {others[0]}"
    return f"{begins}; {rival} {first[others[0]]:.1f} and {end[others[0]]:.1f} s (one round)"
