"""Figures of sizes: KV bytes per token, by number of agents and by KV type."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from swarmkv_lab.figures.style import BASELINE, OURS, headline, plain_numbers, small_print, styled
from swarmkv_lab.sizing.memory import MOST_AGENTS

ATTENTION = {
    "MHA": ("#D55E00", "s"),
    "GQA": ("#0072B2", "o"),
    "sliding window": ("#009E73", "D"),
    "MLA": ("#CC79A7", "^"),
}


def bytes_per_token(frame: pd.DataFrame, n_tokens: int, caption: str = "") -> Figure:
    """The catalogue's models: KV bytes per token against parameters.

    frame: from sizing.memory.catalogue_bytes with n_tokens: a row per model with billions, attention, bytes_per_token.
    """
    with styled():
        figure = Figure(figsize=(8, 5.2))
        ax = figure.subplots()
        for attention, group in frame.groupby("attention"):
            colour, marker = ATTENTION[attention]
            ax.scatter(group.billions, group.bytes_per_token / 1024, color=colour, marker=marker, s=34, zorder=3)
        labelled = _spread_out(frame)
        for name, row in labelled.iterrows():
            ax.annotate(
                name, (row.billions, row.bytes_per_token / 1024), (5, 3), textcoords="offset points", fontsize=7.5
            )
        ax.set(xscale="log", yscale="log", xlabel="parameters, billions", xlim=(0.09, 4000))
        ax.set_ylabel(f"KiB of KV per token, f16, at {n_tokens:,} tokens (predicted)")
        for axis in (ax.xaxis, ax.yaxis):
            plain_numbers(axis)
        ax.grid(color="#E5E5E5", linewidth=0.6)
        ax.set_axisbelow(True)
        handles = [Line2D([], [], color=c, marker=m, linestyle="", label=name) for name, (c, m) in ATTENTION.items()]
        ax.legend(handles=handles, loc="upper left", frameon=False, fontsize=9)
        most, least = frame.bytes_per_token.max(), frame.bytes_per_token.min()
        headline(
            figure,
            f"The kind of attention decides the KV cache per token: {least / 1024:.0f} to {most / 1024:,.0f} KiB",
        )
        small_print(figure, caption)
    return figure


def _spread_out(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows whose labels do not overlap: the first row of each neighbourhood."""
    kept: list[str] = []
    at = np.log(frame[["billions", "bytes_per_token"]].astype(float))
    for name in frame.index:
        if all(
            abs(at.loc[name] - at.loc[other]).iloc[0] > 1.0 or abs(at.loc[name] - at.loc[other]).iloc[1] > 0.17
            for other in kept
        ):
            kept.append(name)
    return frame.loc[kept]


def agents_that_fit(frame: pd.DataFrame, n_tokens: int, caption: str = "") -> Figure:
    """How many agents fit in memory, copied and shared; frame: from sizing.memory.agents_by_budget."""
    models = list(frame.model.unique())
    with styled():
        figure = Figure(figsize=(8, 1.5 + 1.35 * ((len(models) + 1) // 2)))
        axes = figure.subplots((len(models) + 1) // 2, 2, sharex=False, squeeze=False).flat
        for model, ax in zip(models, axes, strict=False):  # models first, or zip would take one axis too many
            rows = frame[frame.model == model]
            budgets = sorted(rows.budget_gb.unique())
            x = np.arange(len(budgets))
            for layout, colour, shift in (("copied", BASELINE, -0.2), ("shared", OURS, 0.2)):
                agents = rows[rows.layout == layout].set_index("budget_gb").agents.reindex(budgets).to_numpy()
                ax.bar(x + shift, np.maximum(agents, 0.6), width=0.38, color=colour, label=layout)
                for at, n in zip(x + shift, agents, strict=True):
                    ax.text(at, max(n, 0.6) * 1.12, f"{n}" if n < MOST_AGENTS else f"{n}+", ha="center", fontsize=8)
            ax.set(yscale="log", ylim=(0.6, 900), xticks=x)
            ax.set_xticklabels([f"{gb} GB" for gb in budgets])
            ax.set_title(model, fontsize=10)
            plain_numbers(ax.yaxis)
        for ax in axes:  # the unused ones
            ax.axis("off")
        figure.supylabel("agents that fit (predicted)", fontsize=9)
        headline(
            figure,
            f"Many more agents fit in memory if they share the {n_tokens:,} tokens that they read",
            {"copied": BASELINE, "shared": OURS},
        )
        small_print(figure, caption)
    return figure


def fidelity(frame: pd.DataFrame, caption: str = "") -> Figure:
    """KL against snapshot bytes by KV type; frame: from kv_type_fidelity. Types that change nothing are left out."""
    reference = frame.loc[frame.kv_type == "f16", "snapshot_bytes"].iloc[0]
    is_floor = frame.kv_type.str.contains("without")
    floor = frame.loc[is_floor, "kl_mean"].iloc[0]
    types = frame[~is_floor & (frame.kl_mean > 1e-6)].sort_values("kl_mean")
    ratio = types.snapshot_bytes / reference
    with styled():
        figure = Figure(figsize=(8, 4))
        ax = figure.subplots()
        ax.vlines(ratio, types.kl_mean, types.kl_max, color="#BBBBBB", linewidth=1.2, zorder=1)
        ax.scatter(ratio, types.kl_mean, color=OURS, s=45, zorder=3, edgecolor="#444444", linewidth=0.5)
        beside = {"iq4_nl": (-7, 5), "q4_0": (-7, -5)}  # same size: one label above the other, on the left
        for name, x, y in zip(types.kv_type, ratio, types.kl_mean, strict=True):
            offset = beside.get(name, (7, 0))
            side = "left" if offset[0] > 0 else "right"
            ax.annotate(name, (x, y), offset, textcoords="offset points", va="center", ha=side, fontsize=9)
        ax.axhline(floor, color="#444444", linestyle=":", linewidth=1.2)
        ax.text(0.97, floor, "noise floor: f16 with other kernels", fontsize=8.5, va="top", ha="right", color="#444444")
        ax.set(yscale="log", xlabel="snapshot size, % of f16", xlim=(0.17, 1.1))
        ax.set_ylabel("KL to f16, nats\n(measured: mean, line to max)")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        ax.grid(axis="y", color="#E5E5E5", linewidth=0.6)
        half = types[types.kv_type == "q8_0"].iloc[0]
        share = half.snapshot_bytes / reference
        headline(
            figure, f"q8_0 halves the cache ({share:.0%}) at a KL of {half.kl_mean:.4f}; the noise floor is {floor:.4f}"
        )
        small_print(figure, caption)
    return figure


def memory_against_agents(frame: pd.DataFrame, budget: int, n_agents: int, title: str) -> Figure:
    """KV memory against agents, copied and shared, and a budget in bytes; frame: from memory.memory_by_agents."""
    # No constrained layout and few ticks, because they would take most of the time of an explorer's redraw.
    with styled(layout=False):
        figure = Figure(figsize=(8, 3.6))
        ax = figure.subplots()
        figure.subplots_adjust(left=0.09, right=0.86, top=0.88, bottom=0.15)
        top = budget / 1e9 * 2
        fit = {layout: int((frame[layout] <= budget).sum()) for layout in ("copied", "shared")}
        for layout, colour in (("copied", BASELINE), ("shared", OURS)):
            gb = frame[layout] / 1e9
            ax.plot(frame.agents, gb, color=colour, linewidth=2)
            now = gb[frame.agents == n_agents].iloc[0]
            ax.plot(n_agents, min(now, top), "o" if now <= top else "^", color=colour, markersize=8, clip_on=False)
            last = gb.iloc[-1]
            if last <= top:
                ax.text(
                    frame.agents.iloc[-1] + 0.8,
                    last,
                    f"{layout}, {last:,.1f} GB",
                    va="center",
                    fontsize=9,
                    color=colour,
                )
            else:
                at = frame.agents[gb <= top].max() if (gb <= top).any() else 1
                ax.text(at, top, f" {layout}", va="bottom", fontsize=9, color=colour)
            if 0 < fit[layout] < len(frame):
                ax.vlines(fit[layout], 0, budget / 1e9, color=colour, linestyle=":", linewidth=1)
        ax.axhline(budget / 1e9, color="#444444", linewidth=1)
        ax.text(frame.agents.iloc[-1] + 0.8, budget / 1e9, f"budget, {budget / 1e9:,.0f} GB", va="center", fontsize=9)
        ax.locator_params(nbins=5)
        ax.set(xlim=(1, frame.agents.iloc[-1]), ylim=(0, top), xlabel="agents", ylabel="GB of KV cache (predicted)")
        more = "+" if fit["shared"] == len(frame) else ""
        message = f"{title}: {fit['copied']} agents fit with copies, {fit['shared']}{more} if shared"
        ax.set_title(message, y=1.06)  # y: no search for a place
        figure.set_label(message)
    return figure
