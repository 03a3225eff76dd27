"""Figures of weight formats: how fast each is and what it changes, and which of the machine's limits it meets."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from swarmkv_studies.common.style import BASELINE, DOTTED, OURS, headline, plain_numbers, sheet
from swarmkv_studies.peers.roofline import roofline as speeds

_PANELS = {"prefill_ms": "prefill", "branch_ms": "question", "token_ms": "one token", "kl_mean": "KL to the source"}
_WORKS = {"prefill": ("prefill", "o"), "branch": ("question", "s"), "token": ("one token", "D")}
_ROOF = {"color": "#222222", "linewidth": 1.3}
_SMALL = {"fontsize": 8, "textcoords": "offset points"}


def weight_formats_figure(frame: pd.DataFrame, caption: str = "") -> Figure:
    """Times and KL of each format beside the source's, the slowest prefill at the top.

    frame: from measure.formats.weight_formats.
    """
    frame = frame.sort_values("prefill_ms", ignore_index=True)
    source, best = frame[frame.is_source].iloc[0], frame.iloc[0]
    n_tokens = int(source.n_tokens)
    with sheet(1.5 + 0.33 * len(frame), caption) as figure:
        axes = figure.subplots(1, 4, sharey=True, width_ratios=[1.5, 1, 1, 1])
        for ax, (column, label) in zip(axes, _PANELS.items(), strict=True):
            _bars(ax, frame, column) if column != "kl_mean" else _divergence(ax, frame)
            ax.set_title(label, fontsize=9)
        axes[0].hlines(frame.index, frame.prefill_min_ms, frame.prefill_max_ms, color="#222222", linewidth=1)
        axes[0].set_title(f"prefill of {n_tokens:,} tokens", fontsize=9)
        sizes = [f"{row.format}, {row.file_bytes / 1e6:,.0f} MB" for row in frame.itertuples()]
        axes[0].set_yticks(range(len(frame)), sizes)
        factor = source.prefill_ms / best.prefill_ms
        message = f"{best.format} prefills {factor:.1f}x as fast as {source.format}, at a KL of {best.kl_mean:.2g}"
        if best.is_source:
            message = f"No format prefills faster than the source's, {source.format}"
        key = {f"source ({source.format})": BASELINE, "made of it": OURS}
        headline(figure, message, key)
    return figure


def _bars(ax: Axes, frame: pd.DataFrame, column: str) -> None:
    """A bar per format, and the source's time as a dotted line."""
    ax.barh(frame.index, frame[column], 0.66, color=frame.is_source.map({True: BASELINE, False: OURS}))
    ax.axvline(frame.loc[frame.is_source, column].iloc[0], **DOTTED)
    ax.set_xlabel("ms (measured)", fontsize=8.5)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.locator_params(axis="x", nbins=4)


def _divergence(ax: Axes, frame: pd.DataFrame) -> None:
    """A dot per format at its mean KL, with the number beside it; the source has none."""
    made = frame[frame.kl_mean > 0]
    ax.scatter(made.kl_mean, made.index, color=OURS, s=26, zorder=3)
    for row in made.itertuples():
        ax.annotate(f"{row.kl_mean:.2g}", (row.kl_mean, row.Index), (6, 0), va="center", **_SMALL)
    ax.set_xlabel("nats (measured)", fontsize=8.5)
    if len(made):
        ax.set(xscale="log", xlim=(made.kl_mean.min() / 3, made.kl_mean.max() * 12))
    ax.grid(axis="y", color="#EEEEEE")
    ax.set_axisbelow(True)


def roofline_figure(frame: pd.DataFrame, peaks: Mapping[str, Any], caption: str = "") -> Figure:
    """Operations per second against operations per byte, a point per format and work, under the machine's limits.

    frame: from measure.formats.weight_formats; peaks: from measure.roofline.peaks.
    """
    table = speeds(frame, peaks)
    memory, roofs = peaks["memory_gb_per_s"], peaks["gflops"]
    shown = dict.fromkeys(["numpy float32", max(roofs, key=roofs.get)])
    points = {work: table[[f"{work}_flop_per_byte", f"{work}_gflops"]].to_numpy() for work in _WORKS}
    everything = np.concatenate(list(points.values()))
    left, right = everything[:, 0].min() / 2, everything[:, 0].max() * 2.2
    top = max(roofs.values())
    source = int(table.is_source.to_numpy().argmax())
    with sheet(4.4, caption) as figure:
        ax = figure.subplots()
        ax.plot([left, top / memory], [memory * left, top], **_ROOF)
        at = (1.3 * left, 1.3 * left * memory)
        slope = {"rotation": 45, "rotation_mode": "anchor", "transform_rotates_text": True}
        ax.annotate(f"memory: {memory:.0f} GB per second", at, (-3, 5), **_SMALL, **slope)
        for name in shown:
            ax.plot([roofs[name] / memory, right], [roofs[name], roofs[name]], **_ROOF)
            at = (1.15 * roofs[name] / memory, roofs[name])
            ax.annotate(f"matrices in {name}: {roofs[name]:,.0f}", at, (0, 3), **_SMALL)
        for work, at in points.items():
            colours = table.is_source.map({True: BASELINE, False: OURS})
            ax.scatter(*at.T, color=colours, marker=_WORKS[work][1], s=34, zorder=3, edgecolor="white", linewidth=0.5)
            ax.scatter(*at[source], color=BASELINE, marker=_WORKS[work][1], s=34, zorder=4, edgecolor="white")
            best = int(at[:, 1].argmax())
            ax.annotate(table.format[best], at[best], (6, 0), va="center", **_SMALL)
            if best != source:
                ax.annotate(table.format[source], at[source], (0, -6), va="top", ha="center", **_SMALL)
        highest = max(top, everything[:, 1].max())
        ax.set(xscale="log", yscale="log", xlim=(left, right), ylim=(everything[:, 1].min() / 2, highest * 1.6))
        ax.set_xlabel("operations per byte of weights and KV that is read (counted)")
        ax.set_ylabel("10^9 operations per second (measured)")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plain_numbers(ax.xaxis, ax.yaxis)
        ax.grid()
        ax.set_axisbelow(True)
        best = table.iloc[points["prefill"][:, 1].argmax()]
        message = (
            f"{best.format}: a prefill reaches {best.prefill_share:.0%} of peak arithmetic, "
            f"a token {best.token_memory_share:.0%} of memory speed"
        )
        look = {"color": "#222222", "linestyle": "", "markersize": 5}
        key = {label: Line2D([], [], marker=marker, **look) for label, marker in _WORKS.values()}
        key |= {f"source ({table.format[source]})": BASELINE, "made of it": OURS}
        headline(figure, message, key)
    return figure
