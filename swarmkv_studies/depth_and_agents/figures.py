"""Figures of grids: speed-up, packing and memory by depth and number of agents, and the cost model's errors."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_studies.common.costmodel import CostModel
from swarmkv_studies.common.speedup import ROUND, speedups
from swarmkv_studies.common.style import (
    BASELINE,
    DOTTED,
    OURS,
    STRATEGY,
    headline,
    plain_numbers,
    sheet,
    strategy_key,
    ticks_at,
)
from swarmkv_studies.depth_and_agents.latency_figure import AXES, METRICS, at_point

_PAYS = 1.1  # packing pays from 10 percent less work on: repeats of the same work differ by less
_DASHES = ("-", "--", ":", "-.")


def speedup_against_agents(runs: pd.DataFrame, depth: int, caption: str = "") -> Figure:
    """End-to-end speed-up over naive against agents, at one depth, with its bound for branches one after another.

    Points are medians over the rounds, lines through them the quartiles.
    """
    gains = speedups(at_point(runs, "depth", depth)).loc[depth]
    counts = sorted(gains.index.unique("n_agents"))
    agents = np.arange(1, counts[-1] + 1)
    bound = pd.Series(CostModel.fit(runs).bound([depth], agents)[0], agents)
    few = next((n for n in counts if n > 1), counts[-1])
    with sheet(3.9, caption) as figure:
        ax = figure.subplots()
        ax.plot(bound.index, bound, color="#444444", linestyle="--", linewidth=1.2)
        for name, rows in gains.groupby("strategy"):
            at = rows.droplevel("strategy")
            colour, marker = STRATEGY[name]
            ax.plot(at.index, at["median"], color=colour, marker=marker, linewidth=1.2)
            ax.vlines(at.index, at.low, at.high, color=colour, linewidth=2.5, alpha=0.5)
        ax.set(xlabel="agents", ylabel="times as early as naive (measured)", ylim=(0, None))
        ax.set_xticks(counts)
        ax.grid()
        ends = ", ".join(f"{gains['median'][n, 'shared']:.1f}x with {n}" for n in dict.fromkeys([few, counts[-1]]))
        key = {"bound N(P+B)/(P+NB), predicted": Line2D([], [], color="#444444", linestyle="--")}
        message = f"{depth:,} tokens: agents that share end {ends}"
        headline(figure, message, strategy_key(gains.index.unique("strategy")) | key)
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
        ax.set(xscale="log", yscale="log", xlabel=AXES["depth"], ylabel=AXES["n_agents"])
        ax.set(xlim=(depths[0] * 0.88, depths[-1] * 1.14), ylim=(0.88, agents[-1] * 1.14))
        ticks_at(ax.xaxis, sorted(runs.depth.unique()))
        ticks_at(ax.yaxis, sorted(runs.n_agents.unique()))
        figure.colorbar(mesh, ax=ax, label="times faster (predicted; boxes: measured)")
        message = f"{depths[-1]:,} tokens, {strategy}: {few} agents, {most} (predicted)"
        headline(figure, message)
    return figure


def predicted_against_measured(table: pd.DataFrame, caption: str = "") -> Figure:
    """Predictions of held-out points against measurements, with a band of 10 %; table: from costmodel.held_out."""
    errors = {metric: table[f"error_{metric}"].abs().median() for metric in ("last_ttft_ms", "end_to_end_ms")}
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


def break_even(
    grids: Mapping[str, pd.DataFrame], n_agents: Sequence[int] = (2, 16), caption: str = "", deepest: int = 32_768
) -> Figure:
    """The length of a document from which each strategy is faster than naive, against the speed of a prefill.

    grids: a sweep's runs by the machine whose copies they count; a panel each, with the machine's own prefill dotted.
    deepest: where a line leaves the panel, no document up to so many tokens is long enough.
    """
    speeds = np.geomspace(100, 200_000, 60)
    limits = []
    with sheet(4.1, caption) as figure:
        panels = figure.subplots(1, len(grids), squeeze=False, sharey=True)[0]
        for ax, (machine, runs) in zip(panels, grids.items(), strict=True):
            table = CostModel.fit(runs).break_evens(speeds, n_agents, deepest=deepest)
            for (name, n), rows in table.groupby(["strategy", "n_agents"], sort=False):
                pays = rows.depth.notna().to_numpy()
                shown = slice(None if pays.all() else pays.argmin() + 1)  # to the first that leaves the panel
                look = {"color": STRATEGY[name][0], "linestyle": _DASHES[list(n_agents).index(n)]}
                width = 3 if name == "pooled" else 1.5  # it may lie under shared
                ax.plot(rows.tokens_per_s[shown], rows.depth.fillna(deepest * 10)[shown], linewidth=width, **look)
            limits.append(
                table[(table.strategy == "swarmkv") & table.depth.notna()].groupby("n_agents").tokens_per_s.max()
            )
            own = 1e3 * float((runs.depth / runs.prefill_ms).median())
            ax.axvline(own, **DOTTED)
            to_left = own > np.sqrt(speeds[0] * speeds[-1])
            ax.annotate(f"its own prefill:\n{own:,.0f}", (own, 0.97), (-3 if to_left else 3, 0), va="top", fontsize=8.5,
                        ha="right" if to_left else "left", xycoords=("data", "axes fraction"), color="#444444",
                        textcoords="offset points")  # fmt: skip
            ax.set(xscale="log", yscale="log", ylim=(0.8, deepest), xlabel="prefill, tokens per second")
            ax.set_title(machine, fontsize=8.5, weight="normal")
            plain_numbers(ax.xaxis, ax.yaxis)
            ax.grid()
        panels[0].set_ylabel("pays from so many tokens on (predicted)")
        few = n_agents[0]
        ends = " and ".join(f"{float(f'{limit.get(few, 0):.2g}'):,.0f}" for limit in limits)
        message = f"{few} agents: copies pay below a prefill of {ends} tokens per second"
        lines = zip(n_agents, _DASHES, strict=False)
        key = {f"{n} agents": Line2D([], [], color="#666666", linestyle=line) for n, line in lines}
        headline(figure, message, strategy_key(table.strategy) | key)
    return figure


def _span(values: pd.Series | pd.Index) -> str:
    """The smallest and the largest value, or one of them where they are the same."""
    return " to ".join(f"{value:,g}" for value in dict.fromkeys([values.min(), values.max()]))


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
