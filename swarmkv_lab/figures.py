"""Figures: a DataFrame in, a matplotlib Figure out, one message each, said in the title."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, FancyBboxPatch, Patch

from swarmkv_lab.run import PREFIX

# Okabe and Ito's colours, told apart with any colour vision; the hatches also without any.
PHASES = {
    "prefill": ("#0072B2", ""),
    "capture": ("#56B4E9", "//"),
    "context": ("#BBBBBB", ""),
    "copy": ("#CC79A7", "\\\\"),
    "restore": ("#E69F00", "xx"),
    "share": ("#E69F00", ""),
    "branch": ("#D55E00", ""),
    "choose": ("#000000", ""),
    "generate": ("#009E73", ""),
}
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "svg.hashsalt": "swarmkv-lab",  # the same figure gives the same file
    "hatch.linewidth": 0.6,
}


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and as SVG, without the time of writing in it."""
    paths = [folder / f"{name}.{ending}" for ending in ("png", "svg")]
    with mpl.rc_context(STYLE):
        figure.savefig(paths[0])
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


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
        shown = [phase for phase in PHASES if phase != "choose" and phase in set(pd.concat(timelines.values()).phase)]
        handles = [Patch(facecolor=PHASES[p][0], hatch=PHASES[p][1], label=p, edgecolor="white") for p in shown]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
        n = len(_lanes(baseline))
        figure.suptitle(
            f"{n} agents, one document: prefilled {n} times or once, {totals[names[0]] / totals[names[-1]]:.2f}x",
            fontweight="bold",
            fontsize=12,
            x=0.01,
            ha="left",
        )
        _small_print(figure, caption)
    return figure


def _lanes(frame: pd.DataFrame) -> list[str]:
    """The lanes from the top: the prefix's, where there is one, then the agents in their order."""
    return sorted(frame.agent.unique(), key=lambda name: name != PREFIX)


def _draw_lanes(ax: Axes, frame: pd.DataFrame, scale: float = 1.0) -> None:
    lanes = _lanes(frame)
    for phase, spans in frame.groupby("phase"):
        colour, hatch = PHASES[phase]
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


def strategies(summary: Mapping[str, Mapping[str, float]], caption: str = "") -> Figure:
    """What each strategy costs an agent: TTFT in its parts, and end to end, as bars from a bench summary."""
    frame = pd.DataFrame(summary).T.iloc[::-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.4))
        left, right = figure.subplots(1, 2, sharey=True)
        y = np.arange(len(frame))
        for ax, metric, title in (
            (left, "ttft", "time to an agent's first token"),
            (right, "end_to_end", "end to end"),
        ):
            values = frame[f"{metric}_ms"].astype(float)
            colours = ["#0072B2" if name == "naive" else "#E69F00" for name in frame.index]
            ax.barh(y, values, color=colours, height=0.65)
            for at, value, speedup in zip(y, values, frame[f"{metric}_speedup"], strict=True):
                note = "" if speedup is None or pd.isna(speedup) or speedup == 1 else f" ({speedup:,.3g}x)"
                ax.text(value, at, f" {value:,.0f} ms{note}", va="center", fontsize=9)
            ax.set_title(title, fontsize=10)
            ax.set_xlabel("ms (measured, median)")
        left.set_xscale("log")
        left.set_xlabel("ms, log scale (measured, median)")
        left.set_xlim(right=left.get_xlim()[1] * 12)
        right.set_xlim(0, right.get_xlim()[1] * 1.35)
        left.set_yticks(y, frame.index)
        best = frame.ttft_speedup.astype(float).max()
        figure.suptitle(
            f"An agent's first token comes up to {best:,.0f}x sooner", fontweight="bold", fontsize=12, x=0.01, ha="left"
        )
        _small_print(figure, caption)
    return figure


def broadcast(agents: Sequence[str] = ("security", "licence", "cost")) -> Figure:
    """The article's analogy, drawn: a tower that sends the same thing to each phone, and one that broadcasts it."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.5))
        left, right = figure.subplots(1, 2)
        _tower(left, agents, once=False)
        _tower(right, agents, once=True)
        left.set_title("naive: the same document, sent to each", fontsize=10)
        right.set_title("fan-out: sent once, everyone tunes in", fontsize=10)
        figure.suptitle(
            "A cell tower does not send the news once per phone", fontweight="bold", fontsize=12, x=0.01, ha="left"
        )
    return figure


def _tower(ax: Axes, agents: Sequence[str], once: bool) -> None:
    """A tower at the left, phones at the right; thick lines are the document, thin ones a question and its answer."""
    document, question = PHASES["prefill"][0], PHASES["branch"][0]
    ax.plot([0.06, 0.13, 0.20], [0.06, 0.74, 0.06], color="#444444", linewidth=2)
    for low, high in ((0.18, 0.34), (0.34, 0.50)):  # the lattice
        at = [np.interp(h, (0.06, 0.74), (0.07, 0.0)) for h in (low, high)]
        ax.plot([0.13 - at[0], 0.13 + at[1]], [low, high], color="#444444", linewidth=1.2)
        ax.plot([0.13 + at[0], 0.13 - at[1]], [low, high], color="#444444", linewidth=1.2)
    ax.plot(0.13, 0.76, "o", color="#444444", markersize=7)
    heights = np.linspace(0.84, 0.12, len(agents))
    if once:
        for radius in (0.2, 0.34, 0.48, 0.62):
            ax.add_patch(
                Arc((0.13, 0.76), 2 * radius, 2 * radius, theta1=-62, theta2=22, color=document, linewidth=3.5)
            )
        ax.text(0.30, 0.97, "prefill, 1x", color=document, fontsize=9.5, ha="center")
    else:
        for height in heights:
            ax.annotate(
                "", (0.71, height), (0.17, 0.74), arrowprops={"arrowstyle": "-|>", "color": document, "lw": 3.5}
            )
        ax.text(0.30, 0.97, f"prefill, {len(agents)}x", color=document, fontsize=9.5, ha="center")
    for agent, height in zip(agents, heights, strict=True):
        ax.add_patch(
            FancyBboxPatch(
                (0.75, height - 0.075),
                0.055,
                0.15,
                boxstyle="round,pad=0.01",
                facecolor="white",
                edgecolor="#444444",
                linewidth=1.5,
            )
        )
        ax.plot([0.77, 0.785], [height - 0.07] * 2, color="#444444", linewidth=1.5)
        ax.text(0.845, height + 0.035, agent, fontsize=10, va="center")
        ax.text(0.845, height - 0.045, "own question", fontsize=8.5, va="center", color=question)
    ax.set_xlim(0, 1.12)
    ax.set_ylim(0, 1.03)
    ax.axis("off")


def _small_print(figure: Figure, caption: str) -> None:
    if caption:
        figure.supxlabel(caption, fontsize=6.5, color="#666666", x=0.01, ha="left")
