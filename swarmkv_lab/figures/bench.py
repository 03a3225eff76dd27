"""Figures of runs and benches: who did what when, and how long it took."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from swarmkv_lab.analysis.article import PUBLISHED, times
from swarmkv_lab.analysis.timeline import ACTIVATION, PREFIX
from swarmkv_lab.figures.style import (
    BASELINE,
    OURS,
    PHASES,
    headline,
    plain_numbers,
    quick_headline,
    small_print,
    styled,
)


def timeline(timelines: Mapping[str, pd.DataFrame], caption: str = "") -> Figure:
    """Who did what when: a lane per agent, all strategies on one time axis, then a close-up of the last strategy.

    timelines: Run.timeline by strategy (columns agent, phase, start_ms, end_ms), the baseline first.
    """
    names = list(timelines)
    baseline, ours = timelines[names[0]], timelines[names[-1]]
    totals = {name: frame.end_ms.max() for name, frame in timelines.items()}
    lanes = [_lanes(frame) for frame in timelines.values()]
    after = ours[ours.phase == "prefill"].end_ms.max()  # the close-up starts where the one prefill ends
    with styled():
        figure = Figure(figsize=(8, 1.9 + 0.36 * sum(map(len, lanes)) + 0.36 * len(_lanes(ours))))
        heights = [len(lane) + 1 for lane in [*lanes, _lanes(ours)]]
        axes = figure.subplots(len(names) + 1, 1, height_ratios=heights)
        for ax, name in zip(axes, names, strict=False):
            draw_lanes(ax, timelines[name], scale=1e-3)
            ax.set_xlim(0, max(totals.values()) * 1.02e-3)
            ax.set_title(f"{name}: {totals[name] / 1e3:.1f} s", fontsize=10)
            ax.sharex(axes[0])
            ax.tick_params(labelbottom=ax is axes[len(names) - 1])
        axes[len(names) - 1].set_xlabel("seconds since the first call (measured)")
        close_up = ours.assign(start_ms=ours.start_ms - after, end_ms=ours.end_ms - after)
        draw_lanes(axes[-1], close_up[close_up.end_ms > 0])
        axes[-1].set_xlim(0, (totals[names[-1]] - after) * 1.02)
        axes[-1].set_title(f"{names[-1]}, close-up: what the agents do after the single prefill", fontsize=10)
        axes[-1].set_xlabel("milliseconds since the prefill ended (measured)")
        n = len(_lanes(baseline))
        headline(
            figure,
            f"{n} agents, one document: {n} prefills or one, {totals[names[0]] / totals[names[-1]]:.2f}x faster",
            phase_key(set(pd.concat(timelines.values()).phase)),
        )
        small_print(figure, caption)
    return figure


def phase_key(phases: set[str]) -> dict[str, tuple[str, str]]:
    """Legend entries for these phases: {label: (colour, hatch)}."""
    return {label: (colour, hatch) for phase, (label, colour, hatch) in PHASES.items() if phase in phases}


def _lanes(frame: pd.DataFrame) -> list[str]:
    """The lanes from the top: the prefix's, if there is one, then the agents in their order."""
    return sorted(frame.agent.unique(), key=lambda name: name != PREFIX)


def draw_lanes(ax: Axes, frame: pd.DataFrame, scale: float = 1.0) -> None:
    """Draw a timeline's spans as bars, a lane per agent, the prefix's lane first; scale: axis units per ms."""
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


def lanes(timelines: Mapping[str, pd.DataFrame]) -> Figure:
    """All strategies' lanes on one time axis, also of runs that are not finished: for the live race."""
    heights = [len(_lanes(frame)) + 0.8 for frame in timelines.values()]
    last = max(frame.end_ms.max() for frame in timelines.values()) * 1e-3
    with styled(layout=False):
        figure = Figure(figsize=(8, 1.3 + 0.27 * sum(heights)))
        axes = figure.subplots(len(timelines), 1, height_ratios=heights, squeeze=False, sharex=True)[:, 0]
        inch = 1 / figure.get_figheight()
        figure.subplots_adjust(left=0.13, right=0.98, top=1 - 0.75 * inch, bottom=0.5 * inch, hspace=0.35)
        for ax, (name, frame) in zip(axes, timelines.items(), strict=True):
            draw_lanes(ax, frame, scale=1e-3)
            ax.set_title(f"{name}: {frame.end_ms.max() / 1e3:.2f} s", fontsize=9, y=1.0, pad=2)
            ax.tick_params(axis="y", labelsize=8)
            ax.set_xlim(0, last * 1.02)
        axes[-1].set_xlabel("seconds since the first call (measured)")
        message = "; ".join(f"{name} {frame.end_ms.max() / 1e3:.2f} s" for name, frame in timelines.items())
        quick_headline(figure, message, phase_key(set(pd.concat(timelines.values()).phase)), shown=False)
    return figure


def strategies(summary: Mapping[str, Mapping[str, Any]], caption: str = "") -> Figure:
    """TTFT per agent, and end-to-end time of all agents, by strategy; summary: of a bench with naive."""
    frame = pd.DataFrame(summary).T.iloc[::-1]
    y = np.arange(len(frame))
    colours = [BASELINE if name == "naive" else OURS for name in frame.index]
    with styled():
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
        right.xaxis.set_major_locator(MaxNLocator(4))
        plain_numbers(right.xaxis)
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


def activation(runs: pd.DataFrame, caption: str = "") -> Figure:
    """Time until an agent's context holds the document, by phase.

    runs: of a bench or a sweep, with naive, at one depth and one number of agents.
    """
    phases = [phase for phase in ACTIVATION if phase != "prefill"]
    frame = runs.groupby("strategy", sort=False)[[f"{phase}_ms" for phase in phases] + ["activation_ms"]].median()
    ours = frame.drop(index="naive").iloc[::-1]
    with styled():
        figure = Figure(figsize=(8, 3.1))
        ax = figure.subplots()
        left = np.zeros(len(ours))
        for phase in phases:
            width = ours[f"{phase}_ms"].to_numpy()
            _, colour, hatch = PHASES[phase]
            ax.barh(
                ours.index, width, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3, height=0.62
            )
            left += width
        for name, total in ours.activation_ms.items():
            factor = frame.activation_ms["naive"] / total
            _note(
                ax,
                total,
                name,
                f"  {total:,.1f} ms; naive: {factor:,.0f}x as long" if total >= 0.05 else f"  {total:.2f} ms",
            )
        ax.set(xlabel="ms until an agent's context holds the document (measured, median)", xlim=(0, left.max() * 1.6))
        ax.tick_params(axis="y", length=0)
        depth = int(runs.depth.iloc[0])
        headline(
            figure,
            f"Naive waits {frame.activation_ms['naive'] / 1e3:,.1f} s for {depth:,} tokens; "
            f"the others at most {ours.activation_ms.max():,.0f} ms",
            {PHASES[phase][0]: PHASES[phase][1:] for phase in phases if frame[f"{phase}_ms"].drop("naive").max() > 0},
        )
        small_print(figure, caption)
    return figure


def article(report: Mapping[str, Any], caption: str = "") -> Figure:
    """The article's two speed-ups and ours, in % of each baseline; report: of a bench with naive and swarmkv."""
    naive, ours = report["summary"]["naive"], report["summary"]["swarmkv"]
    measured = {
        "end to end": (naive["end_to_end_ms"], ours["end_to_end_ms"]),
        "activation, as the article counts": (naive["prefill_ms"], ours["activation_ms"] + ours["branch_ms"]),
    }
    published = dict(zip(measured, (PUBLISHED["end_to_end"], PUBLISHED["activation"]), strict=True))
    with styled():
        figure = Figure(figsize=(8, 3.2))
        for ax, name in zip(figure.subplots(1, 2, sharey=True), measured, strict=True):
            pairs = {"published": published[name], "measured": measured[name]}
            for y, (source, (before, after)) in enumerate(pairs.items()):
                hatch = "//" if source == "published" else ""
                ax.barh(y - 0.2, 100, 0.38, color=BASELINE, hatch=hatch, edgecolor="white", linewidth=0.3)
                ax.barh(y + 0.2, 100 * after / before, 0.38, color=OURS, hatch=hatch, edgecolor="white", linewidth=0.3)
                ax.text(
                    97, y - 0.2, f"{before:,.0f} ms", va="center", ha="right", fontsize=9, color="white", weight="bold"
                )
                ax.text(
                    100 * after / before, y + 0.2, f" {after:,.0f} ms: {times(before / after)}", va="center", fontsize=9
                )
            ax.set_yticks(range(2), list(pairs))
            ax.set(xlim=(0, 104), xlabel="% of its own baseline")
            ax.set_title(name, fontsize=10)
            ax.tick_params(axis="y", length=0)
        figure.axes[0].invert_yaxis()
        factors = [before / after for before, after in (published["end to end"], measured["end to end"])]
        headline(
            figure,
            f"Two agents, end to end: {factors[0]:.2f}x published, {factors[1]:.2f}x measured here",
            {"baseline (naive)": BASELINE, "SwarmKV (swarmkv)": OURS},
        )
        small_print(figure, caption)
    return figure
