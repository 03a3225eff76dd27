"""Figures of peers: the lab's strategies beside what people use, and llama.cpp's own benchmarks."""

from collections.abc import Collection

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_lab.costmodel import bound
from swarmkv_lab.figures.style import BASELINE, OURS, STRATEGY, headline, plain_numbers, small_print, styled

_PEER = "#555555"
_MARKERS = ("o", "s", "D", "^", "v")


def peers(runs: pd.DataFrame, at_once: Collection[str], caption: str = "") -> Figure:
    """Strategies and peers at one depth, a marker a number of agents: an agent's wait at its turn, and the whole.

    runs: a comparison's, with naive and shared in it. at_once: those whose agents have no turns of their own.
    """
    times = ["activation_ms", "branch_ms", "ttft_ms", "last_ttft_ms", "generate_ms", "end_to_end_ms"]
    median = runs.groupby(["strategy", "n_agents"], sort=False)[times].median()
    names = list(runs.strategy.unique())[::-1]
    agents = sorted(runs.n_agents.unique())
    panels = (  # the first agent of a peer may have to prefill
        ("last_ttft_ms", agents[1:] or agents, "one after another: the last one's TTFT, ms"),
        ("end_to_end_ms", agents, "from the first call to the last answer, ms"),
    )
    naive, whole = median.loc["naive"], median.end_to_end_ms[:, agents[-1]]
    with styled():
        figure = Figure(figsize=(8, 1.6 + 0.27 * len(names)))
        for ax, (metric, counts, label) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
            shown = median[metric].unstack()[counts].reindex(names)
            if metric == "last_ttft_ms":
                shown.loc[[name for name in names if name in at_once]] = np.nan
            for y, name in enumerate(names):
                colour = BASELINE if name == "naive" else OURS if name in STRATEGY else _PEER
                ax.plot(shown.loc[name], [y] * len(counts), color=colour, linewidth=1, zorder=1)
                for n, marker in zip(agents, _MARKERS, strict=False):
                    if n in counts:
                        ax.scatter(shown[n][name], y, color=colour, marker=marker, s=28, zorder=2)
                if shown.loc[name].isna().all():
                    middle = np.sqrt(shown.min().min() * shown.max().max())
                    ax.text(middle, y, "no turns: all at once", fontsize=8, color="#666666", va="center", ha="center")
            ax.set(xscale="log", xlabel=f"{label} (measured)", ylim=(-0.9, len(names) - 0.4))
            ax.xaxis.label.set_fontsize(8.5)
            plain_numbers(ax.xaxis)
            ax.grid(axis="y", color="#EEEEEE", linewidth=0.6)
            ax.set_axisbelow(True)
        left, right = figure.axes
        left.set_yticks(range(len(names)), names)
        alone = median.branch_ms[["shared", "pooled"]] if "pooled" in names else median.branch_ms[["shared"]]
        left.axvspan(alone.min(), alone.max(), color="#DDDDDD", zorder=0)  # as wide as the clock's changes
        for n in agents[1:]:
            limit = naive.end_to_end_ms[n] / bound(naive.loc[n], n)
            right.axvline(limit, color="#444444", linestyle=":", linewidth=1.2)
        other = "server_cold" if "server_cold" in names else "naive"
        ours = whole[[name for name in names if name in STRATEGY]]
        headline(
            figure,
            f"{int(runs.depth.iloc[0]):,} tokens, {agents[-1]} agents: {ours.idxmin()} ends "
            f"{whole[other] / ours.min():.1f}x sooner than {other}",
            {
                **{
                    f"{n} agent{'' if n == 1 else 's'}": _key(marker)
                    for n, marker in zip(agents, _MARKERS, strict=False)
                },
                "a question alone (measured)": ("#DDDDDD", ""),
                "bound (predicted)": Line2D([], [], color="#444444", linestyle=":"),
            },
        )
        small_print(figure, caption)
    return figure


def _key(marker: str) -> Line2D:
    return Line2D([], [], color="#222222", marker=marker, linestyle="", markersize=5)


def yardsticks(frame: pd.DataFrame, caption: str = "") -> Figure:
    """Batched generation against agents: the lab's and llama-batched-bench's tokens a second, a dot a repeat.

    frame: from peers.yardsticks.
    """
    runs = frame[frame.work == "generation"]
    median = runs.pivot_table("tokens_per_s", "n_agents", "program", aggfunc="median")
    with styled():
        figure = Figure(figsize=(8, 3.2))
        ax = figure.subplots()
        key = {}
        for (program, rows), colour, marker in zip(runs.groupby("program"), (BASELINE, OURS), "os", strict=True):
            ax.plot(median.index, median[program], color=colour, linewidth=1.2)
            ax.scatter(rows.n_agents, rows.tokens_per_s, color=colour, marker=marker, s=16, alpha=0.8)
            key[program] = Line2D([], [], color=colour, marker=marker, markersize=5)
        ax.set(xlabel="agents in one batch", ylabel="tokens a second (measured)", ylim=(0, None))
        ax.set_xticks(median.index)
        ax.grid(color="#E5E5E5", linewidth=0.6)
        share = median["swarmkv_lab"] / median["llama-batched-bench"]
        low, high = share.min(), share.max()
        headline(figure, f"Batched generation from Python: {low:.0%} to {high:.0%} of llama.cpp's own benchmark", key)
        small_print(figure, caption)
    return figure
