"""Figures of many machines: ship a cache or compute it again, and who did what when, by worker."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_studies.common.style import BASELINE, DOTTED, OURS, headline, phase_key, plain_numbers, sheet, ticks_at
from swarmkv_studies.naive_vs_fanout.figures import draw_lanes

_MODELS = (BASELINE, "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_LINKS = {"100 Mbit/s": 12.5e6, "1 Gbit/s": 125e6, "10 Gbit/s": 1.25e9}
_GREY = {"color": "#444444", "fontsize": 8.5}


def ship_or_recompute(lines: pd.DataFrame, points: pd.DataFrame, caption: str = "") -> Figure:
    """A map of depth and bandwidth: above a model's line its snapshot arrives before a prefill would end.

    lines: of two or more models, from shipping.break_even_table. points: measured with the first of these models,
    columns depth, bytes_per_s, winner ("ship" or "recompute").
    """
    by_model = lines.pivot(index="depth", columns="model", values="bytes_per_s")[list(lines.model.unique())] / 1e6
    depths = by_model.index.to_numpy()
    shown = points.bytes_per_s / 1e6
    low = min([by_model.min(axis=None), *shown]) / 6
    high = max([by_model.max(axis=None), *shown]) * 50
    with sheet(4.4, caption) as figure:
        ax = figure.subplots()
        ax.fill_between(depths, low, by_model.min(axis=1), color=BASELINE, alpha=0.10, linewidth=0)
        ax.fill_between(depths, by_model.max(axis=1), high, color=OURS, alpha=0.14, linewidth=0)
        for model, colour in zip(by_model, _MODELS, strict=False):
            line = by_model[model]
            ax.plot(depths, line, color=colour, linewidth=2)
            span = " to ".join(f"{each:,.3g}" for each in dict.fromkeys(round(line.iloc[i], 1) for i in (0, -1)))
            ax.annotate(f"{model}: {span} MB per second", (depths[0], line.iloc[0]), (8, -5), va="top", color=colour,
                        textcoords="offset points", fontsize=9, weight="bold")  # fmt: skip
        words = {"ha": "center", "va": "center", "fontsize": 11}
        middle = float(np.sqrt(depths[0] * depths[-1]))
        ax.text(middle, high / 4, "ship: the snapshot arrives before a prefill ends", **words)
        ax.text(middle, low * 2, "compute again: the prefill ends before the snapshot arrives", **words)
        between = float(np.sqrt(by_model.min(axis=1).max() * by_model.max(axis=1).min()))
        # left of the middle, where nothing was measured, and under the label of the upper line
        ax.text(middle / 1.5, between / 1.5, "it depends on the model", **words)
        _links(ax, low, high)
        ax.set(xscale="log", yscale="log", xlim=(depths[0], depths[-1]), ylim=(low, high))
        ax.set(xlabel="document, tokens", ylabel="link, MB per second")
        ticks_at(ax.xaxis, depths)
        plain_numbers(ax.yaxis)
        key = {"break-even S/T at one prefill speed (predicted)": Line2D([], [], color="#666666", linewidth=2)}
        headline(figure, _agreement(ax, by_model.iloc[:, 0], points, key), key)
    return figure


def _agreement(ax: Axes, line: pd.Series, points: pd.DataFrame, key: dict) -> str:
    """Draw who won at each measured point; the message says at how many the line predicted it."""
    ships = (points.winner == "ship").to_numpy()
    for won, colour, marker in ((~ships, BASELINE, "o"), (ships, OURS, "^")):
        look = {"color": colour, "marker": marker, "markeredgecolor": "white", "markersize": 8, "linestyle": ""}
        ax.plot(points.depth[won], points.bytes_per_s[won] / 1e6, **look)
        key["shipping won (measured)" if marker == "^" else "computing won (measured)"] = Line2D([], [], **look)
    predicted = np.exp(np.interp(np.log(points.depth), np.log(line.index), np.log(line)))
    right = int((ships == (points.bytes_per_s / 1e6 > predicted).to_numpy()).sum())
    return f"Shipping wins above S/T, computing below: true in {right} of {len(points)} measured races"


def _links(ax: Axes, low: float, high: float) -> None:
    """Well-known links as ticks on the right side."""
    for name, bandwidth in _LINKS.items():
        if low < bandwidth / 1e6 < high:
            ax.axhline(bandwidth / 1e6, 0.88, **DOTTED)
            ax.annotate(name, (0.99, bandwidth / 1e6), (0, 2), xycoords=("axes fraction", "data"), ha="right",
                        textcoords="offset points", **_GREY)  # fmt: skip


def workers_timeline(timeline: pd.DataFrame, caption: str = "", died: str = "") -> Figure:
    """Who did what when, a lane per worker; agents' names stand in their answers. A cross: the worker died.

    timeline: of a cluster's run (columns agent, phase, start_ms, end_ms, worker). died: a worker's address.
    """
    numbered = {worker: f"worker {i}" for i, worker in enumerate(dict.fromkeys(timeline.worker), 1)}
    frame = timeline.assign(lane=timeline.worker.map(numbered))
    n, end = len(numbered), frame.end_ms.max()
    with sheet(1.5 + 0.62 * n, caption) as figure:
        ax = figure.subplots()
        draw_lanes(ax, frame.assign(agent=frame.lane), scale=1e-3)
        lanes = [label.get_text() for label in ax.get_yticklabels()]
        for span in frame[frame.phase == "generate"].itertuples():
            room = int(120 * (span.end_ms - span.start_ms) / end)  # letters
            if room >= min(4, len(span.agent)):
                name = span.agent if len(span.agent) <= room else f"{span.agent[: room - 1]}…"
                middle = (span.start_ms + span.end_ms) / 2e3
                look = {"ha": "center", "va": "center", "fontsize": 7, "color": "white", "clip_on": True}
                ax.text(middle, lanes.index(span.lane), name, parse_math=False, **look)
        if died in numbered:
            at = frame[frame.worker == died].end_ms.max() * 1e-3
            ax.plot(at, lanes.index(numbered[died]), "x", color="black", markersize=11, markeredgewidth=2.5)
        ax.set_xlabel("seconds since the first call (measured)")
        answered = set(frame[frame.phase == "generate"].agent)
        also = "; one died, every agent has its answer" if died else ""
        ax.set_xlim(0, end * 1.01e-3)
        prefills = int((frame.phase == "prefill").sum())
        read = f"{prefills or 'no'} prefill{'s' if prefills > 1 else ''}"  # none: the snapshot was kept
        headline(figure, f"{len(answered)} agents on {n} workers, {read}{also}", phase_key({"run": frame}))
    return figure
