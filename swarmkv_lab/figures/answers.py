"""Figures of answers: whether they are the same, and how moved positions change them."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from swarmkv_lab.figures.style import STRATEGY, headline, plain_numbers, quick_headline, small_print, styled

# as in positions.py: (colour, marker)
_SHIFTED = {"second half": ("#D55E00", "s"), "whole prefix": ("#0072B2", "o")}


def exactness(runs: pd.DataFrame, caption: str = "") -> Figure:
    """The largest logit difference from naive in each of a sweep's runs, and how many runs have the same tokens."""
    compared = runs[runs.max_abs_logit_diff.notna() & (runs.strategy != "naive")]
    by_name = {name: compared[compared.strategy == name] for name in STRATEGY if name in set(compared.strategy)}
    rng = np.random.default_rng(0)  # spreads the dots, so that they do not overlap
    with styled():
        figure = Figure(figsize=(8, 3.2))
        ax = figure.subplots()
        for y, (name, rows) in enumerate(by_name.items()):
            colour, marker = STRATEGY[name]
            at = y + rng.uniform(-0.22, 0.22, len(rows))
            ax.plot(rows.max_abs_logit_diff, at, marker, color=colour, markersize=6, alpha=0.75, clip_on=False)
            same = int(rows.same_tokens.astype(bool).sum())
            ax.text(1.02, y, f"same tokens in\n{same} of {len(rows)} runs", va="center", fontsize=9,
                    transform=ax.get_yaxis_transform())  # fmt: skip
        ax.set_yticks(range(len(by_name)), by_name)
        ax.set(ylim=(len(by_name) - 0.5, -0.5), xlim=(-0.01, max(0.1, compared.max_abs_logit_diff.max() * 1.08)))
        ax.set_xlabel("largest difference from naive's first-token logits, over all agents of a run (measured)")
        ax.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        exact = [n for n, rows in by_name.items() if (rows.max_abs_logit_diff == 0).all() and rows.same_tokens.all()]
        headline(figure, f"First logits identical to naive's in every run: {', '.join(exact) or 'none'}")
        small_print(figure, caption)
    return figure


def position_error(frame: pd.DataFrame, caption: str = "") -> Figure:
    """KL to the unshifted run against how far keys were shifted; frame: from measure.positions.position_error."""
    with styled():
        figure = Figure(figsize=(8, 3.8))
        ax = figure.subplots()
        for name, (colour, marker) in _SHIFTED.items():
            rows = frame[frame.shifted == name].sort_values("gap")
            ax.plot(rows.gap, rows.kl_mean, color=colour, marker=marker, markersize=6, linewidth=1.4)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="shift, in positions",
            ylabel="KL to the unshifted run, nats\n(measured, mean)",
        )
        mean = frame.groupby("shifted").kl_mean.mean()
        ax.axhline(mean["nothing"], color="#444444", linestyle=":", linewidth=1.2)
        ax.set_xticks(sorted(frame.gap[frame.gap > 0].unique()))
        ax.xaxis.set_minor_locator(NullLocator())
        plain_numbers(ax.xaxis), plain_numbers(ax.yaxis)
        ax.grid(color="#E5E5E5", linewidth=0.6)
        widest = frame.gap.max()
        times = frame[frame.gap == widest].set_index("shifted").kl_mean / mean["nothing"]
        headline(
            figure,
            f"Keys moved by {widest:,}: KL {times['whole prefix']:.1f}x the noise floor as a whole, "
            f"{times['second half']:.0f}x with a gap",
            {
                "second half moved away": Line2D([], [], color="#D55E00", marker="s"),
                "whole prefix moved": Line2D([], [], color="#0072B2", marker="o"),
                "nothing moved, other kernels (noise floor)": Line2D([], [], color="#444444", linestyle=":"),
            },
        )
        small_print(figure, caption)
    return figure


def keys_and_values(keys: np.ndarray, values: np.ndarray, title: str = "", first: int = 0) -> Figure:
    """One head's keys and values as images: float (n_tokens, head_dim) each; first: number of the first token."""
    with styled(layout=False):
        figure = Figure(figsize=(8, 3.7))
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.07, right=0.98, top=0.82, bottom=0.13, wspace=0.2)
        for ax, rows, name in ((left, keys, "keys"), (right, values, "values")):
            limit = float(np.abs(rows).max()) or 1.0
            ends = (first - 0.5, first + len(rows) - 0.5, rows.shape[1] - 0.5, -0.5)
            ax.imshow(
                rows.T, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest", extent=ends
            )
            ax.set(xlabel="token")
            ax.set_title(f"{name}: blue {-limit:.3g} to red {limit:.3g}", fontsize=10, y=1.0)  # y: no search
        left.set_ylabel("element of the head")
        quick_headline(figure, title)
    return figure
