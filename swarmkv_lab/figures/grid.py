"""Figures of grids: speed-up, packing and memory by depth and number of agents, and the cost model's errors."""

from itertools import cycle

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from swarmkv_lab.analysis.costmodel import CostModel
from swarmkv_lab.figures.latency import AXES, METRICS, at_point
from swarmkv_lab.figures.style import (
    BASELINE,
    OURS,
    STRATEGY,
    headline,
    plain_numbers,
    small_print,
    strategy_key,
    styled,
)


def speedup_against_agents(runs: pd.DataFrame, depth: int, caption: str = "") -> Figure:
    """End-to-end speed-up over naive against agents, at one depth, with its bound for branches one after another."""
    at = at_point(runs, "depth", depth)
    total = at.pivot_table(index="n_agents", columns="strategy", values="end_to_end_ms", aggfunc="median")
    speedup = total.rdiv(total["naive"], axis=0)
    agents = np.arange(1, total.index.max() + 1)
    limit = CostModel.fit(runs).bound([depth], agents)[0]
    with styled():
        figure = Figure(figsize=(8, 3.9))
        ax = figure.subplots()
        ax.plot(agents, limit, color="#444444", linestyle="--", linewidth=1.2)
        for name, (colour, marker) in STRATEGY.items():
            if name in speedup:
                ax.plot(speedup.index, speedup[name], color=colour, marker=marker, markersize=6, linewidth=1.2)
        ax.set(xlabel="agents", ylabel="times faster than naive (measured)", ylim=(0, None))
        ax.set_xticks(total.index)
        ax.grid(color="#E5E5E5", linewidth=0.6)
        best = speedup.loc[total.index.max()].drop("naive")
        headline(
            figure,
            f"{depth:,} tokens, {total.index.max()} agents: {best.idxmax()} is {best.max():.1f}x faster than naive",
            strategy_key(speedup) | {"bound N(P+B)/(P+NB), predicted": Line2D([], [], color="#444444", linestyle="--")},
        )
        small_print(figure, caption)
    return figure


def speedup_map(runs: pd.DataFrame, strategy: str = "shared", caption: str = "") -> Figure:
    """End-to-end speed-up over naive by depth and agents: predicted as colour and contours, measured as numbers."""
    model = CostModel.fit(runs)
    total = runs.groupby(["depth", "n_agents", "strategy"]).end_to_end_ms.median().unstack()
    measured = (total["naive"] / total[strategy]).dropna()
    depths = np.unique(np.geomspace(runs.depth.min(), runs.depth.max(), 60).astype(int))
    agents = np.arange(1, runs.n_agents.max() + 1)
    speedup = model.speedup(depths, agents, strategy).T
    with styled():
        figure = Figure(figsize=(8, 4.2))
        ax = figure.subplots()
        mesh = ax.pcolormesh(depths, agents, speedup, cmap="cividis", shading="gouraud", vmin=1, rasterized=True)
        levels = [n for n in (1.5, 2, 3, 4, 6, 8, 10, 12, 14) if n < speedup.max()]
        lines = ax.contour(depths, agents, speedup, levels=levels, colors="white", linewidths=0.8)
        ax.clabel(lines, fmt=lambda level: f"{level:g}x", fontsize=8)
        for (depth, n), factor in measured.items():
            box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
            ax.text(depth, n, f"{factor:.1f}", ha="center", va="center", fontsize=8, bbox=box)
        ax.set(xscale="log", yscale="log", xlabel=AXES["depth"], ylabel=AXES["n_agents"])
        ax.set_xlim(depths[0] * 0.88, depths[-1] * 1.14)
        ax.set_ylim(0.88, agents[-1] * 1.14)
        for axis, values in ((ax.xaxis, sorted(runs.depth.unique())), (ax.yaxis, sorted(runs.n_agents.unique()))):
            axis.set_ticks(values)
            axis.set_minor_locator(NullLocator())
            plain_numbers(axis)
        figure.colorbar(mesh, ax=ax, label="times faster (predicted; boxes: measured)")
        headline(figure, f"{strategy}: up to {measured.max():.1f}x faster than naive (many agents, long document)")
        small_print(figure, caption)
    return figure


def predicted_against_measured(table: pd.DataFrame, caption: str = "") -> Figure:
    """Predictions of held-out points against measurements, with a band of 10 %; table: from costmodel.held_out."""
    metrics = ("ttft_ms", "end_to_end_ms")
    with styled():
        figure = Figure(figsize=(8, 4))
        for ax, metric in zip(figure.subplots(1, 2), metrics, strict=True):
            measured, predicted = table[metric], table[f"predicted_{metric}"]
            ends = np.array([min(measured.min(), predicted.min()) * 0.7, max(measured.max(), predicted.max()) * 1.4])
            ax.fill_between(ends, ends * 0.9, ends * 1.1, color="#DDDDDD", linewidth=0)
            ax.plot(ends, ends, color="#888888", linewidth=0.8)
            for name, rows in table.groupby("strategy"):
                colour, marker = STRATEGY[name]
                ax.plot(rows[metric], rows[f"predicted_{metric}"], marker, color=colour, markersize=5.5,
                        markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
            ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, ms", ylabel="predicted, ms")
            plain_numbers(ax.xaxis), plain_numbers(ax.yaxis)
            error = table[f"error_{metric}"].abs()
            ax.set_title(f"{METRICS[metric]}: error {error.median():.1%}", fontsize=10)
        worst = max(table[f"error_{metric}"].abs().median() for metric in metrics)
        headline(
            figure,
            f"Points that the model has not seen: predicted within {worst:.1%} (median)",
            strategy_key(table.strategy) | {"within 10 %": "#DDDDDD"},
        )
        small_print(figure, caption)
    return figure


def packing(runs: pd.DataFrame, caption: str = "") -> Figure:
    """An agent's own work one after another (shared), divided by packed (batched), against agents, by depth."""
    work = runs[runs.strategy.isin(["shared", "batched"])].copy()
    packed = work.strategy == "batched"
    after = work.ttft_ms - work.activation_ms + work.generate_ms
    work["ms"] = np.where(packed, after / work.n_agents, after)  # the packed ones share every step
    median = work.groupby(["depth", "n_agents", "strategy"]).ms.median().unstack()
    saved = (median["shared"] / median["batched"]).unstack("n_agents")
    most = saved.columns.max()
    with_most = saved[most].dropna()
    with styled():
        figure = Figure(figsize=(8, 3.9))
        ax = figure.subplots()
        shades = mpl.colormaps["cividis"](np.linspace(0.0, 0.85, len(with_most)))
        for colour, depth, marker in zip(shades, with_most.index, cycle("osD^vP"), strict=False):
            row = saved.loc[depth].dropna()
            ax.plot(row.index, row, color=colour, marker=marker, markersize=6, linewidth=1.3, label=f"{depth:,} tokens")
        ax.axhline(1, color="#444444", linewidth=0.8)
        ax.set(xscale="log", xlabel="agents", ylim=(0, None), ylabel="work, shared / batched (measured)")
        ax.set_xticks(saved.columns)
        ax.xaxis.set_minor_locator(NullLocator())
        plain_numbers(ax.xaxis)
        ax.grid(color="#E5E5E5", linewidth=0.6)
        ax.legend(frameon=False, fontsize=9)
        headline(
            figure,
            f"Packing: {with_most.min():.1f}x to {with_most.max():.1f}x less work per agent for {most} agents, "
            f"{saved[2].min():.1f}x to {saved[2].max():.1f}x for 2"
            if 2 in saved
            else f"Packing: {with_most.min():.1f}x to {with_most.max():.1f}x less work per agent for {most} agents",
        )
        small_print(figure, caption)
    return figure


def memory_held(runs: pd.DataFrame, depth: int, caption: str = "") -> Figure:
    """KV memory of agents that are all alive at once, with one cache per agent and with one shared cache."""
    at = runs[runs.depth == depth].groupby(["strategy", "n_agents"]).kv_bytes.max() / 1e6
    agents = np.array(sorted(at["batched"].index))
    copied, shared = at["naive"].iloc[0] * agents, at["batched"][agents]
    with styled():
        figure = Figure(figsize=(8, 3.4))
        ax = figure.subplots()
        y = np.arange(len(agents))
        ax.barh(y - 0.2, copied, 0.38, color=BASELINE)
        ax.barh(y + 0.2, shared, 0.38, color=OURS)
        for shift, values in ((-0.2, copied), (0.2, shared)):
            for at_y, value in zip(y + shift, values, strict=True):
                ax.text(value, at_y, f" {value:,.0f} MB", va="center", fontsize=9)
        ax.set(xlabel="MB of KV cache", ylabel="agents alive at once", xlim=(0, copied.max() * 1.13))
        ax.set_yticks(y, agents)
        ax.invert_yaxis()
        headline(
            figure,
            f"{agents[-1]} agents over {depth:,} tokens: sharing takes {copied.max() / shared.max():.1f}x less memory",
            {"one cache per agent": BASELINE, "one shared cache (both predicted, to the byte)": OURS},
        )
        small_print(figure, caption)
    return figure
