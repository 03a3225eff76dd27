"""Figures of grids: latency, speed-up and packing by depth and number of agents, and where copies stop paying."""

from collections.abc import Mapping
from itertools import cycle

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from swarmkv_lab.errors import SwarmKVError
from swarmkv_studies.common.costmodel import CostModel
from swarmkv_studies.common.speedup import ROUND, speedups
from swarmkv_studies.common.style import DOTTED, STRATEGY, headline, plain_numbers, sheet, strategy_key, ticks_at

_PAYS = 1.1  # packing pays from 10 percent less work on: repeats of the same work differ by less


def latency_against_depth(runs: pd.DataFrame, n_agents: int = 4, caption: str = "") -> Figure:
    """The last agent's TTFT and end to end, s from the call, against the document's depth, for one number of agents.

    Points are measured (bars: smallest and largest of the repeats), curves predicted. runs: of a sweep with naive and
    shared. Raises SwarmKVError for a number of agents that was not measured.
    """
    at = runs[runs.n_agents == n_agents]
    if at.empty:
        raise SwarmKVError(f"{n_agents} agents were not measured; choose one of {sorted(runs.n_agents.unique())}")
    deepest = at.depth.max()
    times = {"last_ttft_ms": "last agent's first token", "end_to_end_ms": "end to end, all agents"}
    gain = {time: speedups(at, time)["median"][deepest, n_agents, "shared"] for time in times}
    curves = CostModel.fit(runs).predict(np.geomspace(at.depth.min(), deepest, 40), [n_agents])
    with sheet(3.9, caption) as figure:
        for ax, (time, title) in zip(figure.subplots(1, 2), times.items(), strict=True):
            for name, rows in at.groupby("strategy"):
                colour, marker = STRATEGY[name]
                line = curves[curves.strategy == name]
                ax.plot(line.depth, line[time] / 1e3, color=colour, linewidth=1.3)
                seconds = rows.groupby("depth")[time].agg(["min", "median", "max"]) / 1e3
                ax.vlines(seconds.index, seconds["min"], seconds["max"], color=colour, linewidth=1)
                ax.plot(seconds.index, seconds["median"], marker, color=colour, markeredgecolor="white")
            ax.set(xscale="log", yscale="log", xlabel="document, tokens", ylabel="s", title=title)
            ticks_at(ax.xaxis, sorted(at.depth.unique()))
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            plain_numbers(ax.yaxis)
            ax.grid()
            ax.set_axisbelow(True)
        key = strategy_key(at.strategy) | {
            "measured": Line2D([], [], color="#666666", marker="o", linestyle=""),
            "predicted": Line2D([], [], color="#666666", linewidth=1.2),
        }
        first, all_of_it = gain.values()
        message = f"{n_agents} agents, {deepest:,} tokens, shared: all first tokens {first:.1f}x as early, "
        headline(figure, f"{message}all answers {all_of_it:.1f}x", key)
    return figure


def speedup_map(runs: pd.DataFrame, strategy: str = "shared", caption: str = "") -> Figure:
    """End-to-end speed-up over naive by depth and agents: predicted as colour and contours, measured as numbers."""
    measured = speedups(runs)["median"].xs(strategy, level="strategy")
    depths = np.unique(np.geomspace(runs.depth.min(), runs.depth.max(), 60).astype(int))
    agents = np.arange(1, runs.n_agents.max() + 1)
    speedup = CostModel.fit(runs).speedup(depths, agents, strategy).T
    few, most = (f"{speedup[n, -1]:.1f}x with {agents[n]}" for n in (min(1, len(agents) - 1), -1))
    with sheet(4.2, caption) as figure:
        ax = figure.subplots()
        mesh = ax.pcolormesh(depths, agents, speedup, cmap="cividis", shading="gouraud", vmin=1, rasterized=True)
        levels = [n for n in (1.5, 2, 3, 4, 6, 8, 10, 12, 14) if n < speedup.max()]
        lines = ax.contour(depths, agents, speedup, levels=levels, colors="white", linewidths=0.8)
        ax.clabel(lines, fmt=lambda level: f"{level:g}x", fontsize=8)
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        for (depth, n), factor in measured.items():
            ax.text(depth, n, f"{factor:.1f}", ha="center", va="center", fontsize=8, bbox=box)
        ax.set(xscale="log", yscale="log", xlabel="document, tokens", ylabel="agents")
        ax.set(xlim=(depths[0] * 0.88, depths[-1] * 1.14), ylim=(0.88, agents[-1] * 1.14))
        ticks_at(ax.xaxis, sorted(runs.depth.unique()))
        ticks_at(ax.yaxis, sorted(runs.n_agents.unique()))
        figure.colorbar(mesh, ax=ax, label="times faster (predicted; boxes: measured)")
        message = f"{depths[-1]:,} tokens, {strategy}: {few} agents, {most} (predicted)"
        headline(figure, message)
    return figure


def packing(runs: pd.DataFrame, caption: str = "") -> Figure:
    """An agent's own work one after another (shared), divided by packed (batched), against agents, by depth.

    Packing pays with the fewest agents that have 10 percent less work at every depth.
    """
    work = runs[runs.strategy.isin(["shared", "batched"])].set_index([*ROUND, "strategy"])
    after = (work.branch_ms + work.sample_ms + work.generate_ms).unstack("strategy")
    n_agents = after.index.get_level_values("n_agents")
    ratio = after["shared"] / (after["batched"] / n_agents)  # the packed ones share every step
    saved = ratio.groupby(["depth", "n_agents"]).median().unstack("n_agents")
    most = saved.columns.max()
    with_most = saved[most].dropna()
    pays = [n for n in saved if saved[n].min() >= _PAYS]
    begins = f"Packing pays from {pays[0]} agents on" if pays else "Packing does not pay"
    message = f"{begins}; with {most}, an agent's work is {_span(with_most.round(1))} times less"
    with sheet(3.9, caption) as figure:
        ax = figure.subplots()
        shades = mpl.colormaps["cividis"](np.linspace(0.0, 0.85, len(with_most)))
        for colour, depth, marker in zip(shades, with_most.index, cycle("osD^vP"), strict=False):
            row = saved.loc[depth].dropna()
            ax.plot(row.index, row, color=colour, marker=marker, linewidth=1.3, label=f"{depth:,} tokens")
        ax.axhline(1, color="#444444", linewidth=0.8)
        if pays:
            ax.axvline(pays[0], **DOTTED)
        ax.set(
            xscale="log", xlabel="agents", ylim=(0, None), ylabel="own work of an agent,\nshared / batched (measured)"
        )
        ticks_at(ax.xaxis, saved.columns)
        ax.grid()
        ax.legend()
        headline(figure, message)
    return figure


def break_even(grids: Mapping[str, pd.DataFrame], depth: int = 3501, n_agents: int = 2, caption: str = "") -> Figure:
    """The speed-up over naive if a prefill were as fast as the x axis says, with the copies of each machine. Predicted.

    grids: a sweep's runs by machine; a dot marks the machine's own prefill. Below 1 a strategy does not pay.
    """
    speeds = np.geomspace(100, 300_000, 120)  # tokens per second
    ends = []
    with sheet(4.0, caption) as figure:
        ax = figure.subplots()
        key = strategy_key(["swarmkv", "pooled", "shared"])
        for (machine, runs), line in zip(grids.items(), ("-", "--", ":"), strict=False):
            model, own = CostModel.fit(runs), 1e3 * float((runs.depth / runs.prefill_ms).median())
            for name in ("swarmkv", "pooled", "shared"):
                here, *gains = (model.speedup([depth], [n_agents], name, speed)[0, 0] for speed in (own, *speeds))
                ax.plot(speeds, gains, line, color=STRATEGY[name][0], linewidth=1.6)
                ax.plot(own, here, STRATEGY[name][1], color=STRATEGY[name][0], markersize=7, markeredgecolor="white")
                if name == "swarmkv":
                    ends.append(np.exp(np.interp(-1, -np.array(gains), np.log(speeds))))  # the gain falls
            key[machine] = Line2D([], [], color="#666666", linestyle=line)
        ax.axhline(1, **DOTTED)
        ax.set(xscale="log", xlabel="prefill, tokens per second (marks: each machine's own)", ylim=(0.8, n_agents))
        ax.set_ylabel("times as early as naive (predicted)")
        ticks_at(ax.xaxis, [10**n for n in range(2, 6)])
        ax.grid()
        at = " and ".join(f"{float(f'{end:.2g}'):,.0f}" for end in ends)
        headline(figure, f"{n_agents} agents: copies pay below a prefill of {at} tokens/s", key)
    return figure


def _span(values: pd.Series | pd.Index) -> str:
    """The smallest and the largest value, or one of them where they are the same."""
    return " to ".join(f"{value:,g}" for value in dict.fromkeys([values.min(), values.max()]))
