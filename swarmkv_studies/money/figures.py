"""Figures of money: from how many reads on a provider's cache, and a snapshot that is kept, cost less."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_studies.common.style import DOTTED, headline, plain_numbers, sheet, ticks_at

_COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#444444", "#999933")
_GREY = {"color": "#444444", "fontsize": 8.5}
_MONTH = 30  # days


def cached_reads(costs: pd.DataFrame, pays: pd.Series, caption: str = "") -> Figure:
    """What N reads of a prefix cost with each provider's cache, in percent of the same reads without it.

    costs: from ``cost_of_reads``. pays: from ``pays_from``, in the same order of offers; marked.
    """
    offers = list(costs.groupby(["model", "lifetime"], sort=False, dropna=False))
    with sheet(4.4, caption) as figure:
        ax = figure.subplots()
        for ((model, lifetime), rows), colour, first in zip(offers, _COLOURS, pays, strict=False):
            name = model if pd.isna(lifetime) else f"{model}, {lifetime}"
            ax.plot(rows.reads, 100 * rows.share, color=colour, linewidth=1.4, label=f"{name}: {first}")
            there = rows[rows.reads == first]
            ax.plot(there.reads, 100 * there.share, "o", color=colour, markeredgecolor="white", markersize=8)
        ax.axhline(100, **DOTTED)
        ax.annotate(
            "without a cache", (costs.reads.max(), 100), (0, 3), ha="right", textcoords="offset points", **_GREY
        )
        ax.set(xscale="log", yscale="log", xlabel="reads of the same prefix, within the cache's lifetime")
        ax.set_ylabel("cost with the cache,\n% of without (predicted)")
        ticks_at(ax.xaxis, [n for n in (1, 2, 3, 5, 10, 20, 50, 100) if n <= costs.reads.max()])
        ticks_at(ax.yaxis, [n for n in (2, 5, 10, 20, 50, 100, 200, 500) if n < 120 * costs.share.max()])
        ax.grid()
        ax.set_axisbelow(True)
        ax.legend(
            fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5), title="costs less from read:", alignment="left"
        )
        span = " to ".join(str(n) for n in dict.fromkeys([pays.min(), pays.max()]))
        headline(figure, f"A provider's cache costs less from {span} reads on, depending on the offer")
    return figure


def kept_reads(table: pd.DataFrame, caption: str = "") -> Figure:
    """From how many reads per month on a kept snapshot pays for its storage, against the speed of loading it.

    table: from ``kept``. A line ends where loading takes
    as long as a prefill.
    """
    with sheet(4.4, caption) as figure:
        ax = figure.subplots()
        dashes: dict[str, str] = {}
        finite = table[np.isfinite(table.reads)]
        most = 10 ** np.ceil(np.log10(finite.reads.quantile(0.95)))
        for ((model, machine), by_machine), colour in zip(
            table.groupby(["model", "machine"], sort=False), _COLOURS[::2], strict=False
        ):
            for storage, rows in by_machine.groupby("storage", sort=False):
                line = dashes.setdefault(storage, ("-", "--", ":")[len(dashes) % 3])
                label = f"{model}, {machine}" if line == "-" else None
                pays = rows.reads.clip(upper=most * 10)  # it leaves the panel at the top
                ax.plot(rows.bytes_per_s / 1e6, pays, line, color=colour, linewidth=1.5, label=label)
        for per_month, words in ((1, "once a month"), (_MONTH, "once a day"), (24 * _MONTH, "once an hour")):
            ax.axhline(per_month, **DOTTED)
            ax.annotate(
                words, (table.bytes_per_s.min() / 1e6, per_month), (-14, 2), textcoords="offset points", **_GREY
            )
        ax.set(xscale="log", yscale="log", xlabel="loading the snapshot, MB per second")
        ax.set(ylabel="pays from so many reads\nper month on (predicted)", ylim=(finite.reads.min() / 100, most))
        plain_numbers(ax.xaxis, ax.yaxis)
        ax.grid()
        ax.set_axisbelow(True)
        ax.legend(fontsize=8, handlelength=1.2, loc="lower left")  # below the lines, where the axis leaves room for it
        key = {name: Line2D([], [], color="#666666", linestyle=line) for name, line in dashes.items()}
        headline(figure, "Keeping a snapshot pays only if it loads faster than a prefill", key)
    return figure
