"""Figures of peers: the lab's strategies beside other programs, and beside llama.cpp's own benchmarks."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_lab.analysis.costmodel import bound, packed_strategies
from swarmkv_lab.figures.style import BASELINE, OURS, STRATEGY, headline, plain_numbers, small_print, styled

_PEER = "#555555"
_MARKERS = ("o", "s", "D", "^", "v")


def peers(runs: pd.DataFrame, caption: str = "") -> Figure:
    """Strategies and peers at one depth, a marker per number of agents: the last agent's TTFT, and end to end.

    runs: of a comparison with naive and shared.
    """
    times = ["activation_ms", "branch_ms", "ttft_ms", "last_ttft_ms", "generate_ms", "end_to_end_ms"]
    median = runs.groupby(["strategy", "n_agents"], sort=False)[times].median()
    names = list(runs.strategy.unique())[::-1]
    agents = sorted(runs.n_agents.unique())
    at_once = packed_strategies(runs)  # their agents have no turns
    panels = (  # the first agent of a peer may have to prefill
        ("last_ttft_ms", agents[1:] or agents, "agents in turns: TTFT of the last one, ms"),
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
                    ax.text(middle, y, "all agents at once", fontsize=8, color="#666666", va="center", ha="center")
            ax.set(xscale="log", xlabel=f"{label} (measured)", ylim=(-0.9, len(names) - 0.4))
            ax.xaxis.label.set_fontsize(8.5)
            plain_numbers(ax.xaxis)
            ax.grid(axis="y", color="#EEEEEE", linewidth=0.6)
            ax.set_axisbelow(True)
        left, right = figure.axes
        left.set_yticks(range(len(names)), names)
        alone = median.branch_ms[["shared", "pooled"]] if "pooled" in names else median.branch_ms[["shared"]]
        left.axvspan(alone.min(), alone.max(), color="#DDDDDD", zorder=0)  # its width: changes of the processor's clock
        for n in agents[1:]:
            limit = naive.end_to_end_ms[n] / bound(naive.loc[n], n)
            right.axvline(limit, color="#444444", linestyle=":", linewidth=1.2)
        other = "server_cold" if "server_cold" in names else "naive"
        ours = whole[[name for name in names if name in STRATEGY]]
        headline(
            figure,
            f"{int(runs.depth.iloc[0]):,} tokens, {agents[-1]} agents: {ours.idxmin()} is "
            f"{whole[other] / ours.min():.1f}x faster than {other}",
            {
                **{
                    f"{n} agent{'' if n == 1 else 's'}": _key(marker)
                    for n, marker in zip(agents, _MARKERS, strict=False)
                },
                "decoding a question (measured)": ("#DDDDDD", ""),
                "bound (predicted)": Line2D([], [], color="#444444", linestyle=":"),
            },
        )
        small_print(figure, caption)
    return figure


def _key(marker: str) -> Line2D:
    return Line2D([], [], color="#222222", marker=marker, linestyle="", markersize=5)


def yardsticks(frame: pd.DataFrame, ratios: pd.DataFrame, caption: str = "") -> Figure:
    """Batched generation by number of agents: our tokens per second in % of llama-batched-bench's, a dot per repeat.

    frame: from measure.yardsticks; ratios: from analysis.summary.yardstick_ratios.
    """
    runs = frame[frame.work == "generation"].pivot_table("tokens_per_s", ["n_agents", "repeat"], "program")
    ours = (100 * runs["swarmkv_lab"] / runs["llama-batched-bench"]).reset_index(name="share")
    median = 100 * ratios.ratio["generation"]
    agents = list(median.index)
    with styled():
        figure = Figure(figsize=(8, 3.2))
        ax = figure.subplots()
        ax.axhline(100, color=BASELINE, linewidth=1.2)
        ax.scatter([agents.index(n) for n in ours.n_agents], ours.share, color=OURS, s=16, alpha=0.8)
        ax.plot(range(len(agents)), median, color=OURS, marker="_", markersize=22, markeredgewidth=2.5, linestyle="")
        ax.set(xlabel="agents in one batch", ylim=(0, 1.1 * ours.share.max()))
        ax.set_ylabel("% of the benchmark's tokens\nper second (measured)")
        ax.set_xticks(range(len(agents)), agents)
        ax.grid(axis="y", color="#E5E5E5", linewidth=0.6)
        ax.set_axisbelow(True)
        headline(
            figure,
            f"Batched generation from Python: {median.min():.0f}% to {median.max():.0f}% of llama.cpp's own benchmark",
            {
                "llama-batched-bench": Line2D([], [], color=BASELINE),
                "swarmkv_lab, each repeat": Line2D([], [], color=OURS, marker="o", markersize=4, linestyle=""),
                "median": Line2D([], [], color=OURS, linewidth=2.5),
            },
        )
        small_print(figure, caption)
    return figure
