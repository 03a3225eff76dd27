"""Figure of the clock: the same ratio measured again and again, with times as they were and corrected."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_studies.common.style import BASELINE, DOTTED, OURS, headline, sheet

_LOOKS = {"raw": ("as measured", BASELINE, "o"), "corrected": ("corrected by beats", OURS, "s")}


def steadiness(shares: pd.DataFrame, caption: str = "") -> Figure:
    """The share of the bound that each round found; shares: from analysis.summary.share_of_bound, rounds=1."""
    ends = {name: (100 * shares[name].min(), 100 * shares[name].max()) for name in _LOOKS}
    with sheet(3.2, caption) as figure:
        ax = figure.subplots()
        key = {}
        for name, (label, colour, marker) in _LOOKS.items():
            ax.plot(range(len(shares)), 100 * shares[name], color=colour, marker=marker, linewidth=1.3)
            key[label] = Line2D([], [], color=colour, marker=marker)
        ax.axhline(100, **DOTTED)
        ax.set(xlabel="agents, round by round", ylabel="speed-up of shared,\n% of its bound (measured)")
        ax.set_xticks(range(len(shares)), shares.n_agents)
        ax.grid(axis="y")
        message = "{} rounds: {:.0f} to {:.0f} % of the bound as measured, {:.0f} to {:.0f} % corrected"
        message = message.format(len(shares), *ends["raw"], *ends["corrected"])
        headline(figure, message, key)
    return figure
