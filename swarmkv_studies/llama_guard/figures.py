"""Figures of guards: latency and throughput of agents in threads."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from swarmkv_studies.common.style import BASELINE, OURS, headline, plain_numbers, sheet
from swarmkv_studies.llama_guard.spinning import SINGLE


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
    """How many trials without a guard ended in each way; trials: from ``trials_without_guard``."""
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


def spinning(frame: pd.DataFrame, caption: str = "") -> Figure:
    """Seconds of one batch and single tokens, beside busy programs, by how threads wait; frame: compare_spinning's.

    Bars are medians, dots are rounds.
    """
    rows = frame.assign(seconds=(frame.prompt_ms + SINGLE * frame.single_ms) / 1e3)
    median = rows.groupby(["busy", "waiting"], sort=False).seconds.median().unstack("waiting")
    ways, ours = list(median), median["the lab's"]
    with sheet(3.4, caption) as figure:
        for ax, (busy, times) in zip(figure.subplots(1, len(median), sharey=True), median.iterrows(), strict=True):
            ax.barh(ways, times, color=[OURS if way == "the lab's" else BASELINE for way in ways], height=0.6)
            dots = rows[rows.busy == busy]
            ax.plot(dots.seconds, dots.waiting, "o", color="#222222", markersize=2)
            for y, value in enumerate(times):
                ax.text(dots.seconds.max() * 1.4, y, f"{value:.1f} s", va="center", ha="right", fontsize=9)
            ax.set(xlabel="seconds (measured)", xlim=(0, dots.seconds.max() * 1.42))
            ax.set_title(f"{busy} busy programs" if busy else "a quiet machine", fontsize=9)
            ax.xaxis.set_major_locator(MaxNLocator(3))
        figure.axes[0].invert_yaxis()
        busiest = median.index.max()
        gain = median.loc[busiest, "libgomp's default"] / ours[busiest]
        headline(figure, f"Beside {busiest} busy programs, threads that soon sleep are {gain:.1f}x as fast")
    return figure
