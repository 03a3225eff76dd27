"""Figures of forks: the bytes that n answers hold, and how their scores develop."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from swarmkv_studies.common.style import BASELINE, OURS, headline, sheet


def fork_bytes(frame: pd.DataFrame, caption: str = "") -> Figure:
    """KV bytes by number of answers, a copy each against shared cells; frame: from forks.fork_bytes."""
    x = np.arange(len(frame))
    with sheet(3.4, caption) as figure:
        ax = figure.subplots()
        for side, (layout, colour) in zip((-0.2, 0.2), {"copied": BASELINE, "shared": OURS}.items(), strict=True):
            bars = ax.bar(x + side, frame[layout] / 1e6, 0.38, color=colour)
            ax.bar_label(bars, [f"{n_bytes / 1e6:,.1f}" for n_bytes in frame[layout]], fontsize=8.5, padding=2)
            ax.plot(x + side, frame[f"{layout}_predicted"] / 1e6, "_", color="#222222", markersize=22)
        ax.set_xticks(x, frame.n)
        ax.set(xlabel="answers that branch from one state", ylabel="MB of KV cache (measured)")
        ax.set_ylim(0, 1.12 * frame[["copied", "shared"]].max(axis=None) / 1e6)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        last = frame.iloc[-1]
        off = int(
            (frame.shared - frame.shared_predicted).abs().max() + (frame.copied - frame.copied_predicted).abs().max()
        )
        exact = "predicted to the byte" if not off else f"predicted within {off:,} bytes"
        key = {
            "a copy for each answer": BASELINE,
            "shared cells": OURS,
            "predicted": Line2D([], [], color="#222222", marker="_", markersize=14, linestyle=""),
        }
        message = (
            f"{last.n} answers: {last.shared / 1e6:,.1f} MB if shared, {last.copied / 1e6:,.1f} MB if copied; {exact}"
        )
        headline(figure, message, key)
    return figure


def best_answers(frame: pd.DataFrame, caption: str = "") -> Figure:
    """The mean log-probability of each answer so far, by token; frame: from studies.best_of, the best one first."""
    steps = [np.cumsum(each) / np.arange(1, len(each) + 1) for each in frame.logprobs]
    with sheet(3.6, caption) as figure:
        ax = figure.subplots()
        for i, mean in reversed(list(enumerate(steps))):
            look = {"color": OURS, "linewidth": 2.2} if i == 0 else {"color": "#999999", "linewidth": 1}
            ax.plot(range(1, len(mean) + 1), mean, **look)
            ax.plot(len(mean), mean[-1], "o", color=look["color"], markersize=5 if i else 7)
        ax.set(xlabel="tokens of the answer so far", ylabel="mean log-probability per token,\nnats (measured)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid()
        ax.set_axisbelow(True)
        led = _led_from(steps)
        message = f"The best of {len(frame)} answers leads from its token {led} on"
        key = {
            "the best answer": Line2D([], [], color=OURS, linewidth=2.2),
            "the others; a dot where each ends": Line2D([], [], color="#999999", marker="o", markersize=5),
        }
        headline(figure, message, key)
    return figure


def _led_from(steps: list[np.ndarray]) -> int:
    """The token of the best answer from which on no other one has a higher mean, each as far as it has come."""
    best, others = steps[0], steps[1:]
    behind = [i for i in range(len(best)) if any(each[min(i, len(each) - 1)] > best[i] for each in others)]
    return behind[-1] + 2 if behind else 1
