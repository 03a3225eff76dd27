"""Figures of shipping: ship a cache or compute it again, to how many machines, both at once, and how many bytes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from swarmkv_studies.common.style import BASELINE, DOTTED, OURS, headline, plain_numbers, sheet, ticks_at
from swarmkv_studies.many_machines.queueing import crossing, simulate_cluster
from swarmkv_studies.many_machines.shipping import (
    WAYS,
    Document,
    Link,
    arrivals,
    codec_break_even,
    crossings,
    join_bound,
)

_WAYS = dict(zip(WAYS, (("#0072B2", "o"), ("#D55E00", "s"), ("#E69F00", "D"), ("#009E73", "^"), ("#CC79A7", "v"),
                        ("#56B4E9", "P")), strict=True))  # fmt: skip
_LEAST = 0.1  # MB per second: where the bars begin
_MODELS = (BASELINE, "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_LINKS = {"100 Mbit/s": 12.5e6, "1 Gbit/s": 125e6, "10 Gbit/s": 1.25e9}
_MACHINES = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
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
        key = {"break-even S/T (predicted)": Line2D([], [], color="#666666", linewidth=2)}
        headline(figure, _agreement(ax, by_model.iloc[:, 0], points, key), key)
    return figure


def _agreement(ax: Axes, line: pd.Series, points: pd.DataFrame, key: dict) -> str:
    """Draw who won at each measured point; the message says at how many the line predicted it."""
    ships = (points.winner == "ship").to_numpy()
    for won, colour, marker in ((ships, OURS, "^"), (~ships, BASELINE, "o")):
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


def arrivals_against_machines(
    document: Document,
    link: Link,
    store_bytes_per_s: float,
    service: pd.DataFrame,
    agents: int = 100,
    caption: str = "",
) -> Figure:
    """Six warm ways against 10 to 10,000 machines: when the last one has the cache, and when agents have first tokens.

    Left: predicted by ``arrivals``. Right: simulated with so many agents per machine; service: from ``service_times``.
    """
    at = crossings(document, link, store_bytes_per_s)
    last = {way: [arrivals(way, document, link, n, store_bytes_per_s=store_bytes_per_s)[-1] for n in _MACHINES]
            for way in WAYS}  # fmt: skip
    simulated = pd.concat([
        simulate_cluster(document, link, n, agents * n, service, store_bytes_per_s=store_bytes_per_s)
        for n in _MACHINES
    ])  # fmt: skip
    with sheet(4.3, caption) as figure:
        left, right = figure.subplots(1, 2)
        for way, (colour, marker) in _WAYS.items():
            rows = simulated[simulated.way == way]
            for ax, seconds in ((left, last[way]), (right, rows.first_p50_s)):
                ax.plot(_MACHINES, seconds, color=colour, marker=marker, markersize=4.5, linewidth=1.3)
        titles = {left: "the last machine has the cache (predicted)", right: "first token, median agent (simulated)"}
        for ax, title in titles.items():
            ax.set(xscale="log", yscale="log", xlabel="machines" if ax is left else f"machines, {agents:,} agents each")
            ax.set(ylabel="s", xlim=(_MACHINES[0] * 0.7, _MACHINES[-1] * 1.4))
            ax.set_title(title, fontsize=9)
            ax.yaxis.set_major_locator(LogLocator(subs=(1,) if ax is left else (1, 2, 5)))
            plain_numbers(ax.xaxis, ax.yaxis)
            ax.grid()
            ax.set_axisbelow(True)
        alone = np.floor(at["star"])
        _mark(left, at["star"], f"from {alone + 1:,.0f} machines on\nthe star is too late", 2)
        _mark(left, at["store full"], f"the store is full\nat {at['store full']:,.0f} readers", 28)
        words = {
            "star": ("star slower than\ncomputing from {:,.0f} on", 2),
            "object store": ("the store:\n{:,.0f}", 84),
        }
        for way, (text, down) in words.items():
            if (slow := crossing(simulated, way, "recompute")) is not None:
                _mark(right, slow, text.format(slow), down)
        tree = max((n for n, own, again in zip(_MACHINES, last["chunked tree"], last["recompute"], strict=True)
                    if own < again), default=0)  # fmt: skip
        message = f"A star beats computing again up to {alone:,.0f} machines, a chunked tree up to {tree:,}"
        headline(figure, message, {w: Line2D([], [], color=c, marker=m, markersize=5) for w, (c, m) in _WAYS.items()})
    return figure


def _mark(ax: Axes, n: float, text: str, down: int) -> None:
    """A dotted line at a number of machines, with words at its top."""
    if _MACHINES[0] <= n <= _MACHINES[-1]:
        ax.axvline(n, **DOTTED)
        ax.annotate(text, (n, 1), (4, -down), xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, **_GREY)  # fmt: skip


def join_race(points: pd.DataFrame, caption: str = "") -> Figure:
    """Time against bandwidth: computing alone, loading alone, and both at once with their bound t_c*t_l/(t_c + t_l).

    points: measured by ``join_times``. The curves are predicted from their bytes and the median compute_ms.
    """
    bandwidth = np.geomspace(1e6, 1e9, 200)
    compute_s, nbytes = float(points.compute_ms.median()) / 1e3, int(points.bytes.iloc[0])
    load_s = nbytes / bandwidth
    even = nbytes / compute_s / 1e6
    with sheet(4.2, caption) as figure:
        ax = figure.subplots()
        curves = {
            "computing alone": (np.full_like(load_s, compute_s), BASELINE, "o", "compute_ms"),
            "loading alone": (load_s, OURS, "s", "load_ms"),
            "both (join)": (join_bound(compute_s, load_s), "#009E73", "^", "join_ms"),
        }
        key = {}
        for name, (seconds, colour, marker, column) in curves.items():
            ax.plot(bandwidth / 1e6, seconds, color=colour, linewidth=1.5)
            key[name] = Line2D([], [], color=colour, linewidth=1.5)
            ax.plot(points.bandwidth / 1e6, points[column] / 1e3, marker, color=colour, markersize=6,
                    markeredgecolor="white")  # fmt: skip
        key["measured"] = Line2D([], [], color="#666666", marker="o", linestyle="")
        ax.axvline(even, **DOTTED)
        ax.annotate(f"S/T = {even:,.1f} MB/s: half is computed, half is loaded", (even, 0.03), (5, 0),
                    xycoords=("data", "axes fraction"), textcoords="offset points", **_GREY)  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="bandwidth, MB per second", xlim=(0.9, 1100))
        ax.set_ylabel("s until the cache is there\n(curves: predicted)")
        ax.set_ylim(min(load_s[-1], compute_s) / 2.5, max(load_s[0], compute_s) * 1.5)
        plain_numbers(ax.xaxis, ax.yaxis)
        ax.grid()
        ax.set_axisbelow(True)
        headline(figure, _join_message(points), key)
    return figure


def _join_message(points: pd.DataFrame) -> str:
    median = points.groupby("bandwidth")[["join_ms", "load_ms"]].median()
    best = median.load_ms.clip(upper=points.compute_ms.median())
    most = (best / median.join_ms).max()
    worst = (median.join_ms / best - 1).max()
    said = f"at most {worst:.0%} slower" if worst > 0 else "never slower"
    return f"Both at once: up to {most:.2f}x as fast as the faster way alone, and {said}"


def codecs_figure(table: pd.DataFrame, caption: str = "") -> Figure:
    """Bytes against KL of each codec, and the bandwidth below which it pays; table: from ``codecs``."""
    floor = table[table.name.str.contains("without")].kl_mean.iloc[0]
    table = table[~table.name.str.contains("without")]
    table = table.assign(share=100 / table.ratio, lossless=table.kl_mean == 0)
    table["pays"] = codec_break_even(table.ratio, table.compress_mb_per_s, table.decompress_mb_per_s)
    # of a lossless codec, with or without a shuffle, whichever pays more
    family = table.name.str.split(",").str[0]
    table = table.loc[table.groupby(family, sort=False).pays.idxmax()].sort_values("ratio", ignore_index=True)
    lossy, exact = table[~table.lossless], table[table.lossless]
    bottom = lossy.kl_mean.min() / 8
    with sheet(4.4, caption) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
        left.vlines(lossy.share, lossy.kl_mean, lossy.kl_max, color="#BBBBBB", linewidth=1.2)
        left.scatter(lossy.share, lossy.kl_mean, color=OURS, s=40, zorder=3)
        left.scatter(exact.share, np.full(len(exact), bottom), color=BASELINE, s=40, zorder=3)
        beside = {"q8_0": (7, -9), "q8_0 cache": (-7, 7), "12 bits": (7, 7)}  # which lie close to each other
        for row in lossy.itertuples():
            offset = beside.get(row.name, (7, 0))
            look = {"textcoords": "offset points", "va": "center", "ha": "left" if offset[0] > 0 else "right"}
            left.annotate(f"{row.name}, {row.kl_mean:.2g}", (row.share, row.kl_mean), offset, fontsize=8.5, **look)
        best, worst = exact.share.min(), exact.share.max()
        left.annotate(f"{len(exact)} lossless codecs, {best:.0f} to {worst:.0f} %", (best, bottom), (-7, 0), ha="right",
                      va="center", textcoords="offset points", fontsize=8.5)  # fmt: skip
        left.axhline(floor, **DOTTED)
        left.annotate(f"noise floor, {floor:.2g}", (2, floor), (0, -4), va="top",
                      textcoords="offset points", **_GREY)  # fmt: skip
        left.set(yscale="log", xlabel="bytes, % of f16 (measured)", xlim=(0, 108))
        left.set_ylabel("KL to f16, nats (measured: mean, line to max)")
        decades = [10.0**e for e in range(-9, 3) if bottom * 2 < 10.0**e < lossy.kl_max.max() * 2]
        left.set_yticks([bottom, *decades], ["0", *(f"{tick:g}" for tick in decades)])
        left.yaxis.set_minor_formatter(NullFormatter())
        left.grid()
        left.set_axisbelow(True)
        bars = table[np.isfinite(table.pays)]
        y = np.arange(len(bars))
        right.barh(y, bars.pays.clip(lower=_LEAST), 0.66, color=bars.lossless.map({True: BASELINE, False: OURS}))
        for at, pays in zip(y, bars.pays, strict=True):
            right.annotate(f"{pays:,.3g}", (max(pays, _LEAST), at), (4, 0), va="center", textcoords="offset points",
                           fontsize=8.5)  # fmt: skip
        right.set_yticks(y, [_name(row.name, row.share) for row in bars.itertuples()], fontsize=8.5)
        right.tick_params(axis="y", length=0)
        right.set(xscale="log", xlim=(_LEAST, max(10, bars.pays.max()) * 6))
        right.set_xlabel("saves time below, MB per second\n(measured)", fontsize=9)
        plain_numbers(right.xaxis)
        half = lossy.set_index("name").loc["q8_0"]
        saved = f"Lossless codecs save at most {100 - best:.0f} %; q8_0 saves {100 - half.share:.0f} %"
        headline(figure, f"{saved}, at a KL of {half.kl_mean:.2g}", {"lossless": BASELINE, "lossy": OURS})
    return figure


def _name(name: str, share: float) -> str:
    in_numpy = " in numpy" if name in ("q8_0", "q4_0", "12 bits") else ""
    return f"{name}{in_numpy} ({share:.0f} %)"
