"""Figures of answers: whether they are the same."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from swarmkv_studies.common.style import STRATEGY, headline, sheet


def exactness(runs: pd.DataFrame, caption: str = "") -> Figure:
    """Each of a sweep's runs of several agents: its largest logit difference from naive, and which answers changed.

    A single agent is left out: nothing is packed with it, so that every strategy agrees with naive.
    """
    compared = runs[runs.max_abs_logit_diff.notna() & (runs.strategy != "naive") & (runs.n_agents > 1)]
    by_name = {name: compared[compared.strategy == name] for name in STRATEGY if name in set(compared.strategy)}
    rng = np.random.default_rng(0)  # spreads the dots, so that they do not overlap
    with sheet(3.2, caption) as figure:
        ax = figure.subplots()
        for y, (name, rows) in enumerate(by_name.items()):
            colour, marker = STRATEGY[name]
            at = y + rng.uniform(-0.22, 0.22, len(rows))
            ax.plot(rows.max_abs_logit_diff, at, marker, color=colour, alpha=0.75, clip_on=False)
            ax.text(1.02, y, _answers(rows), va="center", fontsize=9, transform=ax.get_yaxis_transform())
        ax.set_yticks(range(len(by_name)), by_name)
        ax.set(ylim=(len(by_name) - 0.5, -0.5), xlim=(-0.01, max(0.1, compared.max_abs_logit_diff.max() * 1.08)))
        ax.set_xlabel("largest difference from naive's first-token logits, over the agents of a run (measured)")
        ax.grid(axis="x")
        exact = [n for n, rows in by_name.items() if (rows.max_abs_logit_diff == 0).all() and rows.same_tokens.all()]
        headline(figure, f"First logits identical to naive's in every run: {', '.join(exact) or 'none'}")
    return figure


def _answers(rows: pd.DataFrame) -> str:
    """How many answers are naive's, and where the others begin to differ; of older files, which say less, the runs."""
    if "same_answers" not in rows:
        return f"same tokens in\n{rows.same_tokens.astype(bool).sum()} of {len(rows)} runs"
    total, same = int(rows.n_agents.sum()), int(rows.same_answers.sum())
    if same == total:
        return f"all {total:,} answers\nas naive's"
    return (
        f"{total - same} of {total:,} answers\nchange ({1 - same / total:.0%}), a run's\n"
        f"first at token {rows.first_difference.median() + 1:.0f} (median)"
    )
