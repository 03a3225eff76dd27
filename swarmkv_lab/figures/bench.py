"""Figures of runs and benches: who did what when, and what it cost."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from swarmkv_lab.figures.style import BASELINE, OURS, PHASES, STYLE, headline, small_print
from swarmkv_lab.run import PREFIX


def timeline(timelines: Mapping[str, pd.DataFrame], caption: str = "") -> Figure:
    """Who did what when: a lane an agent, the strategies above each other on one time axis, then the last one close up.

    timelines: Run.timeline by strategy (columns agent, phase, start_ms, end_ms), the baseline first.
    """
    names = list(timelines)
    baseline, ours = timelines[names[0]], timelines[names[-1]]
    totals = {name: frame.end_ms.max() for name, frame in timelines.items()}
    lanes = [_lanes(frame) for frame in timelines.values()]
    after = ours[ours.phase == "prefill"].end_ms.max()  # the close-up starts where the one prefill ends
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.9 + 0.36 * sum(map(len, lanes)) + 0.36 * len(_lanes(ours))))
        heights = [len(lane) + 1 for lane in [*lanes, _lanes(ours)]]
        axes = figure.subplots(len(names) + 1, 1, height_ratios=heights)
        for ax, name in zip(axes, names, strict=False):
            _draw_lanes(ax, timelines[name], scale=1e-3)
            ax.set_xlim(0, max(totals.values()) * 1.02e-3)
            ax.set_title(f"{name}: {totals[name] / 1e3:.1f} s", fontsize=10)
            ax.sharex(axes[0])
            ax.tick_params(labelbottom=ax is axes[len(names) - 1])
        axes[len(names) - 1].set_xlabel("seconds since the first call (measured)")
        close_up = ours.assign(start_ms=ours.start_ms - after, end_ms=ours.end_ms - after)
        _draw_lanes(axes[-1], close_up[close_up.end_ms > 0])
        axes[-1].set_xlim(0, (totals[names[-1]] - after) * 1.02)
        axes[-1].set_title(f"{names[-1]}, close up: what the agents do after the one prefill", fontsize=10)
        axes[-1].set_xlabel("milliseconds since the prefill ended (measured)")
        n = len(_lanes(baseline))
        headline(
            figure,
            f"{n} agents, one document: prefilled {n} times or once, {totals[names[0]] / totals[names[-1]]:.2f}x",
            _key(set(pd.concat(timelines.values()).phase)),
        )
        small_print(figure, caption)
    return figure


def _key(phases: set[str]) -> dict[str, tuple[str, str]]:
    return {label: (colour, hatch) for phase, (label, colour, hatch) in PHASES.items() if phase in phases}


def _lanes(frame: pd.DataFrame) -> list[str]:
    """The lanes from the top: the prefix's, where there is one, then the agents in their order."""
    return sorted(frame.agent.unique(), key=lambda name: name != PREFIX)


def _draw_lanes(ax: Axes, frame: pd.DataFrame, scale: float = 1.0) -> None:
    lanes = _lanes(frame)
    for phase, spans in frame.groupby("phase"):
        _, colour, hatch = PHASES[phase]
        y = [lanes.index(agent) for agent in spans.agent]
        width = (spans.end_ms - spans.start_ms) * scale
        ax.barh(
            y,
            width,
            left=spans.start_ms * scale,
            height=0.72,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0 if not hatch else 0.2,
        )
    ax.set_yticks(range(len(lanes)), lanes)
    ax.set_ylim(len(lanes) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)


def strategies(summary: Mapping[str, Mapping[str, Any]], caption: str = "") -> Figure:
    """What each strategy costs: an agent's TTFT, and end to end of all; from a bench summary with naive in it."""
    frame = pd.DataFrame(summary).T.iloc[::-1]
    y = np.arange(len(frame))
    colours = [BASELINE if name == "naive" else OURS for name in frame.index]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.4))
        left, right = figure.subplots(1, 2, sharey=True)
        ttft, total = frame.ttft_ms.astype(float), frame.end_to_end_ms.astype(float)
        left.hlines(y, ttft.min() / 2, ttft, color="#CCCCCC", linewidth=1, zorder=0)
        left.scatter(ttft, y, color=colours, s=60)
        left.set(xscale="log", xlim=(ttft.min() / 2, ttft.max() * 30), xlabel="ms, log scale (measured, median)")
        left.set_title("time to an agent's first token", fontsize=10)
        left.set_yticks(y, frame.index)
        spread = np.array(frame.end_to_end_spread_ms.tolist())
        right.barh(y, total, color=colours, height=0.6)
        right.errorbar(total, y, xerr=np.abs(spread.T - total.to_numpy()), fmt="none", ecolor="#444444", capsize=3)
        right.set(xlim=(0, spread.max() * 1.4), xlabel="ms (measured, median; whiskers: min, max)")
        right.set_title("end to end, all agents", fontsize=10)
        bound = total["naive"] / frame.end_to_end_bound["naive"]
        right.axvline(bound, color="#444444", linestyle=":", linewidth=1.2)
        right.text(bound, -0.75, " bound (predicted)", fontsize=8.5, color="#444444", va="center")
        right.set_ylim(-1.0, len(frame) - 0.4)
        for at, name in zip(y, frame.index, strict=True):
            row, is_ours = frame.loc[name], name != "naive"
            _note(left, row.ttft_ms * 1.25, at, f"{row.ttft_ms:,.0f} ms", f" ({row.ttft_speedup:,.0f}x)" * is_ours)
            _note(
                right, spread[at].max(), at, f"  {total[name]:,.0f} ms", f" ({row.end_to_end_speedup:.2f}x)" * is_ours
            )
        headline(figure, f"An agent's first token comes up to {frame.ttft_speedup.astype(float).max():,.0f}x sooner")
        small_print(figure, caption)
    return figure


def _note(ax: Axes, x: float, y: float, *text: str) -> None:
    ax.text(x, y, "".join(text), va="center", fontsize=9)
