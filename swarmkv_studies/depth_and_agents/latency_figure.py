"""Figures of latency: measured points and predicted curves, against depth or number of agents."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from swarmkv_lab.errors import SwarmKVError
from swarmkv_studies.common.costmodel import CostModel
from swarmkv_studies.common.speedup import speedups
from swarmkv_studies.common.style import STRATEGY, headline, plain_numbers, sheet, strategy_key, ticks_at

METRICS = {
    "last_ttft_ms": "last agent's first token",
    "end_to_end_ms": "end to end, all agents",
    "activation_ms": "activation, per agent",
}
AXES = {"depth": "document, tokens", "n_agents": "agents"}


def latency(
    points: pd.DataFrame,
    curves: pd.DataFrame,
    *,
    kind: str = "measured",
    x: str = "depth",
    metrics: Sequence[str] = ("last_ttft_ms", "end_to_end_ms"),
    log: bool = True,
    mark: float | None = None,
    title: str = "",
    caption: str = "",
) -> Figure:
    """Latency in ms against ``x`` (depth or n_agents): measured points (median and range) and the model's curves.

    points: a sweep's runs at one value of the other axis. curves: from CostModel.predict, at the same value. kind: what
    the points are, measured or published. mark: the x of a dotted line. caption: shown if there are several metrics.
    """
    key = strategy_key({*points.strategy, *curves.strategy})
    key[kind] = Line2D([], [], color="#666666", marker="o", linestyle="")
    if len(curves):
        key["predicted"] = Line2D([], [], color="#666666", linewidth=1.2)
    # Explorers redraw a single panel often, and solving the layout would take most of that time.
    quick = len(metrics) == 1
    with sheet(3.9, "" if quick else caption, layout=not quick) as figure:
        for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            _draw_latency(ax, points, curves, x, metric)
            if log:
                ax.set(xscale="log", yscale="log")
            if mark is not None:
                ax.axvline(mark, color="#666666", linestyle=":", linewidth=1)
            values = sorted(set(points[x])) or sorted({curves[x].min(), curves[x].max()})
            ticks_at(ax.xaxis, _apart(values, log))
            ax.yaxis.set_minor_locator(NullLocator())  # minor ticks would take half the time of a redraw
            plain_numbers(ax.yaxis)
            ax.grid()
            ax.set_axisbelow(True)
            # with one panel, the figure's title says it
            ax.set(xlabel=AXES[x], ylabel="ms", title="" if quick else METRICS[metric])
        if quick:
            figure.subplots_adjust(left=0.1, right=0.98, top=0.8, bottom=0.14)
        headline(figure, title, key)
    return figure


def _draw_latency(ax: Axes, points: pd.DataFrame, curves: pd.DataFrame, x: str, metric: str) -> None:
    for name, (colour, marker) in STRATEGY.items():
        line = curves[curves.strategy == name]
        ax.plot(line[x], line[metric], color=colour, linewidth=1.3)
        at = points[points.strategy == name].groupby(x)[metric].agg(["min", "median", "max"])
        if len(at):
            if (at["min"] < at["max"]).any():
                ax.vlines(at.index, at["min"], at["max"], color=colour, linewidth=1)
            ax.plot(at.index, at["median"], marker, color=colour, markeredgecolor="white", markeredgewidth=0.5)


def _apart(values: Sequence[float], log: bool, room: float = 0.17) -> list[float]:
    """The values whose labels do not overlap; the last value is always kept."""
    scale = np.log(values) if log else np.asarray(values, float)
    span = max(scale[-1] - scale[0], 1e-9)
    kept: list[int] = []
    for i in reversed(range(len(values))):
        if all(abs(scale[i] - scale[j]) / span > room for j in kept):
            kept.append(i)
    return [values[i] for i in sorted(kept)]


def at_point(runs: pd.DataFrame, axis: str, value: int) -> pd.DataFrame:
    """A sweep's runs at one value of an axis. Raises SwarmKVError if naive or shared was not measured there."""
    at = runs[runs[axis] == value]
    missing = {"naive", "shared"} - set(at.strategy)
    if missing:
        measured = sorted(runs[axis].unique().tolist())
        raise SwarmKVError(f"{axis}={value}: {', '.join(sorted(missing))} not measured; choose one of {measured}")
    return at


def latency_against_depth(runs: pd.DataFrame, n_agents: int = 4, caption: str = "") -> Figure:
    """The last agent's TTFT and end to end against the document's depth, for one number of agents; runs: of a sweep."""
    at = at_point(runs, "n_agents", n_agents)
    deepest = at.depth.max()
    gains = {
        time: speedups(at, time)["median"][deepest, n_agents, "shared"] for time in ("last_ttft_ms", "end_to_end_ms")
    }
    depths = np.unique(np.geomspace(at.depth.min(), deepest, 40).astype(int))
    return latency(
        at,
        CostModel.fit(runs).predict(depths, [n_agents]),
        title=f"{n_agents} agents, {deepest:,} tokens, shared: all first tokens {gains['last_ttft_ms']:.1f}x as early, "
        f"all answers {gains['end_to_end_ms']:.1f}x",
        caption=caption,
    )


def latency_against_agents(runs: pd.DataFrame, depth: int, caption: str = "") -> Figure:
    """The last agent's TTFT and end to end against the number of agents, at one depth; runs: of a sweep."""
    at = at_point(runs, "depth", depth)
    total = at.groupby(["strategy", "n_agents"]).end_to_end_ms.median()
    most = at.n_agents.max()
    return latency(
        at,
        CostModel.fit(runs).predict([depth], range(1, most + 1)),
        x="n_agents",
        title=f"{depth:,} tokens, {most} agents, end to end: naive {total['naive', most] / 1e3:,.0f} s, "
        f"shared {total['shared', most] / 1e3:,.0f} s",
        caption=caption,
    )
