"""Figures of guards: latency and throughput of agents in threads."""

import pandas as pd
from matplotlib.figure import Figure

from swarmkv_lab.figures.style import BASELINE, OURS, headline, plain_numbers, small_print, styled


def guards(frame: pd.DataFrame, caption: str = "") -> Figure:
    """Latency and throughput by variant: bars are medians, dots are repeats; frame: from compare_guards."""
    variants = list(dict.fromkeys(frame.variant))
    median = frame.groupby("variant")[["latency_ms", "tokens_per_s"]].median()
    best = median.tokens_per_s.idxmax()
    gain = median.tokens_per_s[best] / median.tokens_per_s[variants[0]]
    with styled():
        figure = Figure(figsize=(8, 3.2))
        axes = figure.subplots(1, 2, sharey=True)
        for ax, metric, label in zip(
            axes,
            ("latency_ms", "tokens_per_s"),
            ("ms to an agent's answer (measured)", "tokens per second (measured)"),
            strict=True,
        ):
            colours = [OURS if variant == best else BASELINE for variant in variants]
            ax.barh(variants, median[metric].reindex(variants), color=colours, height=0.6)
            ax.plot(frame[metric], frame.variant, "o", color="#222222", markersize=3)
            for y, value in enumerate(median[metric].reindex(variants)):
                ax.text(value, y, f"   {value:,.0f}", va="bottom", fontsize=9)
            ax.set(xlabel=label, xlim=(0, frame[metric].max() * 1.2))
            plain_numbers(ax.xaxis)
            ax.grid(axis="x", color="#E5E5E5", linewidth=0.6)
            ax.set_axisbelow(True)
        axes[0].invert_yaxis()
        headline(figure, f"{gain:.1f}x the tokens per second: {best}")
        small_print(figure, caption)
    return figure
