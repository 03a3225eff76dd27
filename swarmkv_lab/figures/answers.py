"""Figures of answers: whether they are the same, and how moved positions change them."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_lab.figures.style import DOTTED, STRATEGY, headline, plain_numbers, sheet, ticks_at

# as in positions.py: (label, colour, marker)
_SHIFTED = {
    "second half": ("second half moved away", "#D55E00", "s"),
    "whole prefix": ("whole prefix moved", "#0072B2", "o"),
}


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


def position_error(frame: pd.DataFrame, caption: str = "") -> Figure:
    """KL to the unshifted run against how far keys were shifted; frame: from measure.positions.position_error."""
    floor = frame.kl_mean[frame.shifted == "nothing"].mean()
    widest = frame.gap.max()
    times = frame[frame.gap == widest].set_index("shifted").kl_mean / floor
    with sheet(3.8, caption) as figure:
        ax = figure.subplots()
        key = {}
        for name, (label, colour, marker) in _SHIFTED.items():
            rows = frame[frame.shifted == name].sort_values("gap")
            ax.plot(rows.gap, rows.kl_mean, color=colour, marker=marker, linewidth=1.4)
            key[label] = Line2D([], [], color=colour, marker=marker)
        key["nothing moved, other kernels (noise floor)"] = Line2D([], [], color="#444444", linestyle=":")
        ax.axhline(floor, **DOTTED)
        ax.set(xscale="log", yscale="log", xlabel="shift, in positions")
        ax.set_ylabel("KL to the unshifted run, nats\n(measured, mean)")
        ticks_at(ax.xaxis, sorted(frame.gap[frame.gap > 0].unique()))
        plain_numbers(ax.yaxis)
        ax.grid()
        whole, gap = times["whole prefix"], times["second half"]
        message = f"Keys moved by {widest:,}: KL {whole:.1f}x the noise floor as a whole, {gap:.0f}x with a gap"
        headline(figure, message, key)
    return figure


def keys_and_values(keys: np.ndarray, values: np.ndarray, title: str = "", first: int = 0) -> Figure:
    """One head's keys and values as images: float (n_tokens, head_dim) each; first: number of the first token."""
    with sheet(3.7, layout=False) as figure:
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.07, right=0.98, top=0.82, bottom=0.13, wspace=0.2)
        for ax, rows, name in ((left, keys, "keys"), (right, values, "values")):
            limit = float(np.abs(rows).max()) or 1.0
            look = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "interpolation": "nearest", "aspect": "auto"}
            ax.imshow(rows.T, extent=(first - 0.5, first + len(rows) - 0.5, rows.shape[1] - 0.5, -0.5), **look)
            ax.set(xlabel="token")
            ax.set_title(f"{name}: blue {-limit:.3g} to red {limit:.3g}", y=1.0)  # y: no search
        left.set_ylabel("element of the head")
        headline(figure, title)
    return figure
