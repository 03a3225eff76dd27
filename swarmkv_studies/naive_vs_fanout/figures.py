"""Figures of runs and benches: who did what when, how long it took, and whether the answers are the same."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from swarmkv_lab.fanout.recorder import PREFIX
from swarmkv_studies.common.style import BASELINE, DOTTED, OURS, PHASES, headline, phase_key, sheet


def timeline(timelines: Mapping[str, pd.DataFrame], caption: str = "") -> Figure:
    """Who did what when: a lane per agent, all strategies on one time axis, then a close-up of the last strategy.

    timelines: Run.timeline by strategy (columns agent, phase, start_ms, end_ms), the baseline first.
    """
    names = list(timelines)
    first, last = names[0], names[-1]
    ours = timelines[last]
    totals = {name: frame.end_ms.max() for name, frame in timelines.items()}
    after = ours[ours.phase == "prefill"].end_ms.max()  # the close-up starts where the one prefill ends
    lanes = [frame.agent.nunique() for frame in (*timelines.values(), ours)]
    with sheet(1.9 + 0.36 * sum(lanes), caption) as figure:
        *rows, close_up = figure.subplots(len(lanes), 1, height_ratios=[n + 1 for n in lanes])
        for ax, name in zip(rows, names, strict=True):
            draw_lanes(ax, timelines[name], scale=1e-3)
            ax.set(xlim=(0, max(totals.values()) * 1.02e-3))
            ax.set_title(f"{name}: {totals[name] / 1e3:.1f} s, {_prefills(timelines[name])}")
            ax.sharex(rows[0])
            ax.tick_params(labelbottom=ax is rows[-1])
        rows[-1].set_xlabel("seconds since the first call (measured)")
        enlarged = ours.assign(start_ms=ours.start_ms - after, end_ms=ours.end_ms - after)
        draw_lanes(close_up, enlarged[enlarged.end_ms > 0])
        close_up.set(xlim=(0, (totals[last] - after) * 1.02), xlabel="milliseconds since the prefill ended (measured)")
        close_up.set_title(f"{last}, close-up: what the agents do after the single prefill")
        n, faster = lanes[0], totals[first] / totals[last]
        message = f"{n} agents, one document: {n} prefills or one; it ended {faster:.2f}x as early in this round"
        headline(figure, message, phase_key(timelines))
    return figure


def _prefills(timeline: pd.DataFrame) -> str:
    """How long each prefill of a run took: the same work, so its range says how far to trust the other times."""
    spans = timeline[timeline.phase == "prefill"]
    seconds = (spans.end_ms - spans.start_ms).groupby(spans.agent).sum() / 1e3  # a lane's may be several spans
    shortest, longest = f"{seconds.min():.1f}", f"{seconds.max():.1f}"
    whose = "its" if len(seconds) == 1 else "each"
    return f"of which {whose} prefill {shortest if shortest == longest else f'{shortest} to {longest}'} s"


def draw_lanes(ax: Axes, frame: pd.DataFrame, scale: float = 1.0) -> None:
    """Draw a timeline's spans as bars, a lane per agent, the prefix's lane first; scale: axis units per ms."""
    lanes = sorted(frame.agent.unique(), key=lambda name: name != PREFIX)
    for phase, spans in frame.groupby("phase"):
        _, colour, hatch = PHASES[phase]
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.2 if hatch else 0}
        width = (spans.end_ms - spans.start_ms) * scale
        ax.barh(spans.agent.map(lanes.index), width, left=spans.start_ms * scale, height=0.72, **look)
    ax.set_yticks(range(len(lanes)), lanes, parse_math=False)  # a name may hold a $
    ax.set_ylim(len(lanes) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#DDDDDD")
    ax.set_axisbelow(True)


def lanes(timelines: Mapping[str, pd.DataFrame]) -> Figure:
    """All strategies' lanes on one time axis, also of runs that are not finished: for the live race."""
    heights = [frame.agent.nunique() + 0.8 for frame in timelines.values()]
    seconds = {name: frame.end_ms.max() / 1e3 for name, frame in timelines.items()}
    height = 1.3 + 0.27 * sum(heights)
    with sheet(height, layout=False) as figure:
        axes = figure.subplots(len(timelines), 1, height_ratios=heights, squeeze=False, sharex=True)[:, 0]
        figure.subplots_adjust(left=0.13, right=0.98, top=1 - 0.75 / height, bottom=0.5 / height, hspace=0.35)
        for ax, (name, frame) in zip(axes, timelines.items(), strict=True):
            draw_lanes(ax, frame, scale=1e-3)
            ax.set_title(f"{name}: {seconds[name]:.2f} s", fontsize=9, y=1.0, pad=2)
            ax.tick_params(axis="y", labelsize=8)
            ax.set_xlim(0, max(seconds.values()) * 1.02)
        axes[-1].set_xlabel("seconds since the first call (measured)")
        message = "; ".join(f"{name} {end:.2f} s" for name, end in seconds.items())
        headline(figure, message, phase_key(timelines))
    return figure


def strategies(summary: Mapping[str, Mapping[str, Any]], caption: str = "") -> Figure:
    """First tokens, from the call, and end-to-end time of all agents, by strategy; summary: of a bench with naive."""
    frame = pd.DataFrame(summary).T.iloc[::-1]
    y = np.arange(len(frame))
    colours = [BASELINE if name == "naive" else OURS for name in frame.index]
    first, last, total = (frame[f"{time}_ms"].astype(float) / 1e3 for time in ("first_ttft", "last_ttft", "end_to_end"))
    share = 100 / frame.end_to_end_speedup.astype(float)
    quartiles = 100 / np.array(frame.end_to_end_quartiles.tolist())[:, ::-1]
    gains = frame.end_to_end_speedup.drop("naive").astype(float)
    limit = float(frame.end_to_end_ideal["naive"])
    with sheet(3.4, caption) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        left.hlines(y, first, last, color=colours, linewidth=2)
        left.scatter(first, y, color=colours, s=45)
        left.scatter(last, y, color=colours, s=45, marker="D")
        left.set(xlim=(0, last.max() * 1.25), xlabel="s since the call (measured, median)")
        left.set_title("first agent's first token (dot) to the last's")
        left.set_yticks(y, frame.index)
        right.barh(y, share, color=colours, height=0.6)
        right.errorbar(share, y, xerr=np.abs(quartiles.T - share.to_numpy()), fmt="none", ecolor="#444444", capsize=3)
        right.set(xlim=(0, 190), xlabel="% of naive's time in the same round\n(measured, median; whiskers: quartiles)")
        right.set_title("end to end, all agents")
        right.xaxis.set_major_locator(MaxNLocator(4))
        right.axvline(100 / limit, **DOTTED)
        said = f" ideal, one after another: {limit:.2f}x"
        right.text(100 / limit, -0.75, said, fontsize=8.5, color="#444444", va="center")
        right.set_ylim(-1.0, len(frame) - 0.4)
        for at, row in enumerate(frame.itertuples()):
            low, high = row.end_to_end_quartiles
            gain = "" if row.Index == "naive" else f": {row.end_to_end_speedup:.2f}x ({low:.2f} to {high:.2f})"
            _note(left, last.iloc[at] * 1.03, at, f" {last.iloc[at]:,.1f}")
            _note(right, quartiles[at].max(), at, f"  {total.iloc[at]:,.1f} s{gain}")
        n_rounds = frame.rounds.min()
        over = f"medians of {n_rounds} rounds" if n_rounds > 1 else "one round"
        headline(figure, f"All agents end {gains.min():.2f}x to {gains.max():.2f}x as early ({over})")
    return figure


def _note(ax: Axes, x: float, y: float, text: str, **look: Any) -> None:
    ax.text(x, y, text, va="center", fontsize=9, **look)
