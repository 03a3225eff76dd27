"""Figures of guards: latency and throughput of agents in threads."""

import pandas as pd
from matplotlib.figure import Figure

from swarmkv_studies.common.style import BASELINE, OURS, headline, plain_numbers, sheet


def guards(frame: pd.DataFrame, caption: str = "") -> Figure:
    """Latency and throughput by variant: bars are medians, dots are repeats; frame: from compare_guards."""
    labels = {"latency_ms": "ms to an agent's answer (measured)", "tokens_per_s": "tokens per second (measured)"}
    median = frame.groupby("variant", sort=False)[list(labels)].median()
    best = median.tokens_per_s.idxmax()
    colours = [OURS if variant == best else BASELINE for variant in median.index]
    with sheet(3.2, caption) as figure:
        for ax, (metric, label) in zip(figure.subplots(1, 2, sharey=True), labels.items(), strict=True):
            ax.barh(median.index, median[metric], color=colours, height=0.6)
            ax.plot(frame[metric], frame.variant, "o", color="#222222", markersize=3)
            for y, value in enumerate(median[metric]):
                ax.text(value, y, f"   {value:,.0f}", va="bottom", fontsize=9)
            ax.set(xlabel=label, xlim=(0, frame[metric].max() * 1.2))
            plain_numbers(ax.xaxis)
            ax.grid(axis="x")
            ax.set_axisbelow(True)
        figure.axes[0].invert_yaxis()
        gain = median.tokens_per_s[best] / median.tokens_per_s.iloc[0]
        headline(figure, f"{gain:.1f}x the tokens per second: {best}")
    return figure
