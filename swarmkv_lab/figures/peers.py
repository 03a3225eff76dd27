"""Figures of peers: the lab's strategies beside other programs, and beside llama.cpp's own benchmarks."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_lab.analysis.costmodel import bound, packed_strategies
from swarmkv_lab.figures.style import BASELINE, DOTTED, OURS, STRATEGY, headline, plain_numbers, sheet

_PEER = "#555555"
_MARKERS = ("o", "s", "D", "^", "v")


def peers(runs: pd.DataFrame, caption: str = "") -> Figure:
    """Strategies and peers at one depth, a marker per number of agents: the last agent's TTFT, and end to end.

    runs: of a comparison with naive and shared.
    """
    median = runs.groupby(["strategy", "n_agents"], sort=False).median(numeric_only=True)
    names = list(runs.strategy.unique())[::-1]
    agents = sorted(runs.n_agents.unique())
    markers = dict(zip(agents, _MARKERS, strict=False))
    in_turns = median.last_ttft_ms.unstack()[agents[1:] or agents].reindex(names)  # a peer's first agent may prefill
    in_turns.loc[packed_strategies(runs)] = np.nan  # their agents have no turns
    panels = {
        "agents in turns: TTFT of the last one, ms": in_turns,
        "from the first call to the last answer, ms": median.end_to_end_ms.unstack()[agents].reindex(names),
    }
    with sheet(1.6 + 0.27 * len(names), caption) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for ax, (label, shown) in zip((left, right), panels.items(), strict=True):
            for y, (name, row) in enumerate(shown.iterrows()):
                colour = BASELINE if name == "naive" else OURS if name in STRATEGY else _PEER
                ax.plot(row, [y] * len(row), color=colour, linewidth=1, zorder=1)
                for n, marker in markers.items():
                    if n in row:
                        ax.scatter(row[n], y, color=colour, marker=marker, s=28, zorder=2)
                if row.isna().all():
                    middle = np.sqrt(shown.min().min() * shown.max().max())
                    ax.text(middle, y, "all agents at once", fontsize=8, color="#666666", va="center", ha="center")
            ax.set(xscale="log", ylim=(-0.9, len(names) - 0.4))
            ax.set_xlabel(f"{label} (measured)", fontsize=8.5)
            plain_numbers(ax.xaxis)
            ax.grid(axis="y", color="#EEEEEE")
            ax.set_axisbelow(True)
        left.set_yticks(range(len(names)), names)
        alone = median.branch_ms[[name for name in ("shared", "pooled") if name in names]]
        left.axvspan(alone.min(), alone.max(), color="#DDDDDD", zorder=0)  # its width: changes of the processor's clock
        naive, whole = median.loc["naive"], median.end_to_end_ms[:, agents[-1]]
        for n in agents[1:]:
            right.axvline(naive.end_to_end_ms[n] / bound(naive.loc[n], n), **DOTTED)
        other = "server_cold" if "server_cold" in names else "naive"
        ours = whole[[name for name in names if name in STRATEGY]]
        key = {
            f"{n} agent{'' if n == 1 else 's'}": Line2D([], [], color="#222222", marker=m, linestyle="", markersize=5)
            for n, m in markers.items()
        }
        key["decoding a question (measured)"] = "#DDDDDD"
        key["bound (predicted)"] = Line2D([], [], color="#444444", linestyle=":")
        depth, factor = int(runs.depth.iloc[0]), whole[other] / ours.min()
        message = f"{depth:,} tokens, {agents[-1]} agents: {ours.idxmin()} is {factor:.1f}x faster than {other}"
        headline(figure, message, key)
    return figure


def yardsticks(frame: pd.DataFrame, ratios: pd.DataFrame, caption: str = "") -> Figure:
    """Batched generation by number of agents: our tokens per second in % of llama-batched-bench's, a dot per repeat.

    frame: from measure.yardsticks; ratios: from analysis.summary.yardstick_ratios.
    """
    runs = frame[frame.work == "generation"].pivot_table("tokens_per_s", ["n_agents", "repeat"], "program")
    ours = (100 * runs["swarmkv_lab"] / runs["llama-batched-bench"]).reset_index(name="share")
    median = 100 * ratios.ratio["generation"]
    agents = list(median.index)
    with sheet(3.2, caption) as figure:
        ax = figure.subplots()
        ax.axhline(100, color=BASELINE, linewidth=1.2)
        ax.scatter(ours.n_agents.map(agents.index), ours.share, color=OURS, s=16, alpha=0.8)
        ax.plot(range(len(agents)), median, color=OURS, marker="_", markersize=22, markeredgewidth=2.5, linestyle="")
        ax.set(xlabel="agents in one batch", ylim=(0, 1.1 * ours.share.max()))
        ax.set_ylabel("% of the benchmark's tokens\nper second (measured)")
        ax.set_xticks(range(len(agents)), agents)
        ax.grid(axis="y")
        ax.set_axisbelow(True)
        share = f"{median.min():.0f}% to {median.max():.0f}%"
        key = {
            "llama-batched-bench": Line2D([], [], color=BASELINE),
            "swarmkv_lab, each repeat": Line2D([], [], color=OURS, marker="o", markersize=4, linestyle=""),
            "median": Line2D([], [], color=OURS, linewidth=2.5),
        }
        headline(figure, f"Batched generation from Python: {share} of llama.cpp's own benchmark", key)
    return figure
