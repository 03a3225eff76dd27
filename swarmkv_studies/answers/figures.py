"""Figure of a study: how many answers are right in each way to answer, and how many are not naive's."""

from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_studies.answers.quality import accuracy, differences
from swarmkv_studies.common.style import BASELINE, DOTTED, OURS, headline, sheet

_LOOKS = [(BASELINE, "o"), (OURS, "s"), ("#009E73", "^"), ("#CC79A7", "D")]
_COLUMNS = {"changed": 1.02, "became_right": 1.13, "became_wrong": 1.21}  # in widths of the axes
_HEADS = ["other\nanswers", "now\nright", "now\nwrong"]


def study_figure(scored: pd.DataFrame, caption: str = "") -> Figure:
    """Accuracy with its 95 % interval by arm and model, and what becomes of naive's answers; scored: from ``score``."""
    rates = accuracy(scored)
    changes = differences(scored).set_index(["model", "arm"])
    arms, models = list(dict.fromkeys(scored.arm)), list(dict.fromkeys(scored.model))
    step = 0.62 / len(models)
    with sheet(1.5 + 0.26 * len(arms) * len(models), caption) as figure:
        ax = figure.subplots()
        key = {}
        for i, (model, (colour, marker)) in enumerate(zip(models, cycle(_LOOKS))):
            rows = rates[rates.model == model].set_index("arm").reindex(arms)
            y = [at + (i - (len(models) - 1) / 2) * step for at in range(len(arms))]
            spread = 100 * pd.concat([rows.accuracy - rows.low, rows.high - rows.accuracy], axis=1).to_numpy().T
            ax.errorbar(100 * rows.accuracy, y, xerr=spread, fmt=marker, color=colour, markersize=5, elinewidth=1.1)
            ax.axvline(100 * rows.accuracy["naive"], **DOTTED | {"color": colour})
            key[f"{model}, {rows.n['naive']:,.0f} answers"] = Line2D([], [], color=colour, marker=marker)
            for arm, at in zip(arms, y, strict=True):
                if (model, arm) in changes.index:
                    for column, x in _COLUMNS.items():
                        n = changes.loc[(model, arm), column]
                        weight = "bold" if n else "normal"
                        where = ax.get_yaxis_transform()
                        ax.text(x, at, f"{n}", color=colour, weight=weight, ha="left", va="center", transform=where)
        for head, x in zip(_HEADS, _COLUMNS.values(), strict=True):
            ax.text(x, -0.62, head, fontsize=8, va="bottom", transform=ax.get_yaxis_transform())
        ax.set_yticks(range(len(arms)), arms)
        ax.set(
            ylim=(len(arms) - 0.4, -0.6),
            xlim=(0, 100 * min(1, 1.05 * rates.high.max())),
            xlabel="right answers, % (measured; 95 % intervals)",
        )
        ax.grid(axis="x")
        headline(figure, _message(changes.reset_index()), key)
    return figure


def _message(changes: pd.DataFrame) -> str:
    """Which arms have naive's answers."""
    changed = changes.groupby("arm", sort=False).changed.sum()
    same = list(changed.index[changed == 0])
    if not same:
        return "Every way to answer changes some answers"
    return f"The same answers as naive's, token by token: {', '.join(same)}"
