"""Figure of the clock: the same bench again and again, with times as they were and corrected."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_lab.figures.style import BASELINE, DOTTED, OURS, headline, sheet

_LOOKS = {"raw": ("as measured", BASELINE, "o"), "corrected": ("corrected by the metronome", OURS, "s")}


def steadiness(shares: pd.DataFrame, caption: str = "") -> Figure:
    """The share of the bound that each bench found; shares: from analysis.summary.share_of_bound, one point."""
    spread = {name: shares[name].max() / shares[name].min() for name in _LOOKS}
    with sheet(3.2, caption) as figure:
        ax = figure.subplots()
        key = {}
        for name, (label, colour, marker) in _LOOKS.items():
            ax.plot(shares.bench + 1, 100 * shares[name], color=colour, marker=marker, linewidth=1.3)
            key[f"{label}: largest / smallest {spread[name]:.2f}"] = Line2D([], [], color=colour, marker=marker)
        ax.axhline(100, **DOTTED)
        ax.set(xlabel="bench", ylabel="speed-up of shared,\n% of its bound (measured)")
        ax.set_xticks(shares.bench + 1)
        ax.grid(axis="y")
        low, high = 100 * shares.corrected.min(), 100 * shares.corrected.max()
        headline(figure, f"The same bench {len(shares)} times: {low:.0f} to {high:.0f} % of the bound, corrected", key)
    return figure
