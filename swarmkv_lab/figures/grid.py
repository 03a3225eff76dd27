"""Figures of grids: speed-up, packing and memory by depth and number of agents, and the cost model's errors."""

from itertools import cycle

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_lab.analysis.costmodel import CostModel
from swarmkv_lab.figures.latency import AXES, METRICS, at_point
from swarmkv_lab.figures.style import BASELINE, OURS, STRATEGY, headline, plain_numbers, sheet, strategy_key, ticks_at


def speedup_against_agents(runs: pd.DataFrame, depth: int, caption: str = "") -> Figure:
    """End-to-end speed-up over naive against agents, at one depth, with its bound for branches one after another."""
    at = at_point(runs, "depth", depth)
    total = at.pivot_table(index="n_agents", columns="strategy", values="end_to_end_ms", aggfunc="median")
    speedup = total.rdiv(total["naive"], axis=0)
    most = total.index.max()
    best = speedup.loc[most].drop("naive")
    agents = np.arange(1, most + 1)
    with sheet(3.9, caption) as figure:
        ax = figure.subplots()
        ax.plot(agents, CostModel.fit(runs).bound([depth], agents)[0], color="#444444", linestyle="--", linewidth=1.2)
        for name, (colour, marker) in STRATEGY.items():
            if name in speedup:
                ax.plot(speedup.index, speedup[name], color=colour, marker=marker, linewidth=1.2)
        ax.set(xlabel="agents", ylabel="times faster than naive (measured)", ylim=(0, None))
        ax.set_xticks(total.index)
        ax.grid()
        message = f"{depth:,} tokens, {most} agents: {best.idxmax()} is {best.max():.1f}x faster than naive"
        bound = {"bound N(P+B)/(P+NB), predicted": Line2D([], [], color="#444444", linestyle="--")}
        headline(figure, message, strategy_key(speedup) | bound)
    return figure


def speedup_map(runs: pd.DataFrame, strategy: str = "shared", caption: str = "") -> Figure:
    """End-to-end speed-up over naive by depth and agents: predicted as colour and contours, measured as numbers."""
    total = runs.groupby(["depth", "n_agents", "strategy"]).end_to_end_ms.median().unstack()
    measured = (total["naive"] / total[strategy]).dropna()
    depths = np.unique(np.geomspace(runs.depth.min(), runs.depth.max(), 60).astype(int))
    agents = np.arange(1, runs.n_agents.max() + 1)
    speedup = CostModel.fit(runs).speedup(depths, agents, strategy).T
    with sheet(4.2, caption) as figure:
        ax = figure.subplots()
        mesh = ax.pcolormesh(depths, agents, speedup, cmap="cividis", shading="gouraud", vmin=1, rasterized=True)
        levels = [n for n in (1.5, 2, 3, 4, 6, 8, 10, 12, 14) if n < speedup.max()]
        lines = ax.contour(depths, agents, speedup, levels=levels, colors="white", linewidths=0.8)
        ax.clabel(lines, fmt=lambda level: f"{level:g}x", fontsize=8)
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        for (depth, n), factor in measured.items():
            ax.text(depth, n, f"{factor:.1f}", ha="center", va="center", fontsize=8, bbox=box)
        ax.set(xscale="log", yscale="log", xlabel=AXES["depth"], ylabel=AXES["n_agents"])
        ax.set(xlim=(depths[0] * 0.88, depths[-1] * 1.14), ylim=(0.88, agents[-1] * 1.14))
        ticks_at(ax.xaxis, sorted(runs.depth.unique()))
        ticks_at(ax.yaxis, sorted(runs.n_agents.unique()))
        figure.colorbar(mesh, ax=ax, label="times faster (predicted; boxes: measured)")
        headline(figure, f"{strategy}: up to {measured.max():.1f}x faster than naive (many agents, long document)")
    return figure


def predicted_against_measured(table: pd.DataFrame, caption: str = "") -> Figure:
    """Predictions of held-out points against measurements, with a band of 10 %; table: from costmodel.held_out."""
    errors = {metric: table[f"error_{metric}"].abs().median() for metric in ("ttft_ms", "end_to_end_ms")}
    with sheet(4, caption) as figure:
        for ax, (metric, error) in zip(figure.subplots(1, 2), errors.items(), strict=True):
            both = table[[metric, f"predicted_{metric}"]]
            ends = np.array([both.min(axis=None) * 0.7, both.max(axis=None) * 1.4])
            ax.fill_between(ends, ends * 0.9, ends * 1.1, color="#DDDDDD", linewidth=0)
            ax.plot(ends, ends, color="#888888", linewidth=0.8)
            for name, rows in table.groupby("strategy"):
                colour, marker = STRATEGY[name]
                ax.plot(rows[metric], rows[f"predicted_{metric}"], marker, color=colour, markersize=5.5,
                        markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
            ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, ms", ylabel="predicted, ms")
            ax.set_title(f"{METRICS[metric]}: error {error:.1%}")
            plain_numbers(ax.xaxis, ax.yaxis)
        message = f"Points that the model has not seen: predicted within {max(errors.values()):.1%} (median)"
        headline(figure, message, strategy_key(table.strategy) | {"within 10 %": "#DDDDDD"})
    return figure


def packing(runs: pd.DataFrame, caption: str = "") -> Figure:
    """An agent's own work one after another (shared), divided by packed (batched), against agents, by depth."""
    work = runs[runs.strategy.isin(["shared", "batched"])]
    after = work.ttft_ms - work.activation_ms + work.generate_ms
    own = after.where(work.strategy == "shared", after / work.n_agents)  # the packed ones share every step
    median = own.groupby([work.depth, work.n_agents, work.strategy]).median().unstack()
    saved = (median["shared"] / median["batched"]).unstack("n_agents")
    most = saved.columns.max()
    with_most = saved[most].dropna()
    message = f"Packing: {with_most.min():.1f}x to {with_most.max():.1f}x less work per agent for {most} agents"
    if 2 in saved:
        message += f", {saved[2].min():.1f}x to {saved[2].max():.1f}x for 2"
    with sheet(3.9, caption) as figure:
        ax = figure.subplots()
        shades = mpl.colormaps["cividis"](np.linspace(0.0, 0.85, len(with_most)))
        for colour, depth, marker in zip(shades, with_most.index, cycle("osD^vP"), strict=False):
            row = saved.loc[depth].dropna()
            ax.plot(row.index, row, color=colour, marker=marker, linewidth=1.3, label=f"{depth:,} tokens")
        ax.axhline(1, color="#444444", linewidth=0.8)
        ax.set(xscale="log", xlabel="agents", ylim=(0, None), ylabel="work, shared / batched (measured)")
        ticks_at(ax.xaxis, saved.columns)
        ax.grid()
        ax.legend()
        headline(figure, message)
    return figure


def memory_held(runs: pd.DataFrame, depth: int, caption: str = "") -> Figure:
    """KV memory of agents that are all alive at once, with one cache per agent and with one shared cache."""
    at = runs[runs.depth == depth].groupby(["strategy", "n_agents"]).kv_bytes.max() / 1e6
    agents = np.array(sorted(at["batched"].index))
    copied, shared = at["naive"].iloc[0] * agents, at["batched"][agents]
    y = np.arange(len(agents))
    with sheet(3.4, caption) as figure:
        ax = figure.subplots()
        for shift, values, colour in ((-0.2, copied, BASELINE), (0.2, shared, OURS)):
            ax.bar_label(ax.barh(y + shift, values, 0.38, color=colour), fmt=" {:,.0f} MB", fontsize=9)
        ax.set(xlabel="MB of KV cache", ylabel="agents alive at once", xlim=(0, copied.max() * 1.13))
        ax.set_yticks(y, agents)
        ax.invert_yaxis()
        less = copied.max() / shared.max()
        message = f"{agents[-1]} agents over {depth:,} tokens: sharing takes {less:.1f}x less memory"
        key = {"one cache per agent": BASELINE, "one shared cache (both predicted, to the byte)": OURS}
        headline(figure, message, key)
    return figure
