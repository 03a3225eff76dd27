"""Figures of guards: latency and throughput of agents in threads."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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


def outcomes(trials: pd.DataFrame, caption: str = "") -> Figure:
    """How many trials without a guard ended in each way; trials: from measure.guards.trials_without_guard."""
    counts = trials.outcome.value_counts().reindex(["crashed", "hung", "wrong answers", "right by luck"], fill_value=0)
    with sheet(2.4, caption) as figure:
        ax = figure.subplots()
        ax.barh(counts.index, counts, color=[*[BASELINE] * 3, OURS], height=0.6)
        for y, n in enumerate(counts):
            ax.text(n, y, f"  {n}", va="center", fontsize=9)
        ax.set(xlabel="processes (measured)", xlim=(0, len(trials) * 1.1))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.tick_params(axis="y", length=0)
        ax.invert_yaxis()
        ended, n = len(trials) - counts["right by luck"], len(trials)
        headline(figure, f"Two threads, one context, no guard: {ended} of {n} processes went wrong")
    return figure


def waiting(frame: pd.DataFrame, caption: str = "") -> Figure:
    """How OpenMP's threads wait, and what it costs: bars are medians, dots are repeats; frame: from compare_waiting."""
    labels = {"sleeps_per_token": "sleeps per token (measured)", "tokens_per_s": "tokens per second (measured)"}
    ways = dict(zip(frame.waiting.unique(), (BASELINE, OURS), strict=True))
    median = frame.groupby(["variant", "waiting"], sort=False)[list(labels)].median()
    variants = list(frame.variant.unique())
    with sheet(2.8, caption) as figure:
        for ax, (metric, label) in zip(figure.subplots(1, 2, sharey=True), labels.items(), strict=True):
            for at, (way, colour) in zip((-0.2, 0.2), ways.items(), strict=True):
                rows = frame[frame.waiting == way]
                values = [median.loc[(variant, way), metric] for variant in variants]
                ax.barh([y + at for y in range(len(variants))], values, 0.36, color=colour)
                ax.plot(rows[metric], rows.variant.map(variants.index) + at, "o", color="#222222", markersize=3)
                for y, value in enumerate(values):
                    ax.text(value, y + at, f"    {value:,.0f}", va="center", fontsize=9)
            longest = frame[metric].max()
            ax.set(xlabel=label, xlim=(0, longest * 1.25 if longest > 0 else 1))
            ax.xaxis.set_major_locator(MaxNLocator(4))
            plain_numbers(ax.xaxis)
        ax.set_yticks(
            range(len(variants)), [variant.replace(", own contexts", ",\nown contexts") for variant in variants]
        )
        ax.invert_yaxis()
        counted = frame.sleeps_per_token.notna().all()  # not on Windows
        metric, what = ("sleeps_per_token", "sleeps per token") if counted else ("tokens_per_s", "tokens per second")
        one, two = (median.loc[(variant, next(iter(ways))), metric] for variant in variants)
        message = f"Agents in turns: {one:,.0f} {what}; in threads: {two:,.0f}"
        headline(figure, message, {f"threads wait {way}": colour for way, colour in ways.items()})
    return figure
