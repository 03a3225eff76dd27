"""Figures of sizes: KV bytes per token, by number of agents and by KV type."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_lab.figures.style import BASELINE, DOTTED, OURS, headline, plain_numbers, sheet
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
    frame = frame.assign(kib=frame.bytes_per_token / 1024)
    with sheet(5.2, caption) as figure:
        ax = figure.subplots()
        for attention, group in frame.groupby("attention"):
            colour, marker = ATTENTION[attention]
            ax.scatter(group.billions, group.kib, color=colour, marker=marker, s=34, zorder=3)
        for name, row in _spread_out(frame).iterrows():
            ax.annotate(name, (row.billions, row.kib), (5, 3), textcoords="offset points", fontsize=7.5)
        ax.set(xscale="log", yscale="log", xlabel="parameters, billions", xlim=(0.09, 4000))
        ax.set_ylabel(f"KiB of KV per token, f16, at {n_tokens:,} tokens (predicted)")
        plain_numbers(ax.xaxis, ax.yaxis)
        ax.grid()
        ax.set_axisbelow(True)
        handles = [Line2D([], [], color=c, marker=m, linestyle="", label=name) for name, (c, m) in ATTENTION.items()]
        ax.legend(handles=handles, loc="upper left")
        least, most = frame.kib.min(), frame.kib.max()
        headline(figure, f"The kind of attention decides the KV cache per token: {least:.0f} to {most:,.0f} KiB")
    return figure


def _spread_out(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows whose labels do not overlap: the first row of each neighbourhood."""
    at = np.log(frame[["billions", "bytes_per_token"]].astype(float)).to_numpy()
    kept: list[int] = []
    for i, here in enumerate(at):
        if (np.abs(here - at[kept]) > (1.0, 0.17)).any(axis=1).all():
            kept.append(i)
    return frame.iloc[kept]


def agents_that_fit(frame: pd.DataFrame, n_tokens: int, caption: str = "") -> Figure:
    """How many agents fit in memory, copied and shared; frame: from sizing.memory.agents_by_budget."""
    models = list(frame.model.unique())
    rows = (len(models) + 1) // 2
    with sheet(1.5 + 1.35 * rows, caption) as figure:
        axes = figure.subplots(rows, 2, squeeze=False).flat
        for model, ax in zip(models, axes, strict=False):  # models first, or zip would take one axis too many
            fit = frame[frame.model == model].pivot(index="budget_gb", columns="layout", values="agents")
            x = np.arange(len(fit))
            for layout, colour, shift in (("copied", BASELINE, -0.2), ("shared", OURS, 0.2)):
                ax.bar(x + shift, fit[layout].clip(0.6), width=0.38, color=colour)
                for at, n in zip(x + shift, fit[layout], strict=True):
                    ax.text(at, max(n, 0.6) * 1.12, f"{n}" if n < MOST_AGENTS else f"{n}+", ha="center", fontsize=8)
            ax.set(yscale="log", ylim=(0.6, 900), title=model)
            ax.set_xticks(x, [f"{gb} GB" for gb in fit.index])
            plain_numbers(ax.yaxis)
        for ax in axes:  # the unused ones
            ax.axis("off")
        figure.supylabel("agents that fit (predicted)", fontsize=9)
        message = f"Many more agents fit in memory if they share the {n_tokens:,} tokens that they read"
        headline(figure, message, {"copied": BASELINE, "shared": OURS})
    return figure


def fidelity(frame: pd.DataFrame, caption: str = "") -> Figure:
    """KL against snapshot bytes by KV type; frame: from kv_type_fidelity. Types that change nothing are left out."""
    is_floor = frame.kv_type.str.contains("without")
    floor = frame.loc[is_floor, "kl_mean"].iloc[0]
    reference = frame.loc[frame.kv_type == "f16", "snapshot_bytes"].iloc[0]
    frame = frame.assign(ratio=frame.snapshot_bytes / reference)
    types = frame[~is_floor & (frame.kl_mean > 1e-6)].sort_values("kl_mean")
    half = types[types.kv_type == "q8_0"].iloc[0]
    with sheet(4, caption) as figure:
        ax = figure.subplots()
        ax.vlines(types.ratio, types.kl_mean, types.kl_max, color="#BBBBBB", linewidth=1.2, zorder=1)
        ax.scatter(types.ratio, types.kl_mean, color=OURS, s=45, zorder=3, edgecolor="#444444", linewidth=0.5)
        beside = {"iq4_nl": (-7, 5), "q4_0": (-7, -5)}  # same size: one label above the other, on the left
        for row in types.itertuples():
            offset = beside.get(row.kv_type, (7, 0))
            look = {"textcoords": "offset points", "va": "center", "ha": "left" if offset[0] > 0 else "right"}
            ax.annotate(row.kv_type, (row.ratio, row.kl_mean), offset, fontsize=9, **look)
        ax.axhline(floor, **DOTTED)
        ax.text(0.97, floor, "noise floor: f16 with other kernels", fontsize=8.5, va="top", ha="right", color="#444444")
        ax.set(yscale="log", xlabel="snapshot size, % of f16", xlim=(0.17, 1.1))
        ax.set_ylabel("KL to f16, nats\n(measured: mean, line to max)")
        ax.xaxis.set_major_formatter("{x:.0%}")
        ax.grid(axis="y")
        message = f"q8_0 halves the cache ({half.ratio:.0%}) at a KL of {half.kl_mean:.4f}"
        headline(figure, f"{message}; the noise floor is {floor:.4f}")
    return figure


def memory_against_agents(
    frame: pd.DataFrame, budget: int, n_agents: int, fit: Mapping[str, int], title: str, caption: str = ""
) -> Figure:
    """KV memory against agents, copied and shared, and a budget in bytes; frame: from memory.memory_by_agents.

    fit: the agents that fit by layout, from memory.agents_that_fit; they may be more than the frame has.
    """
    limit, most = budget / 1e9, frame.agents.iloc[-1]
    top = limit * 2
    copied, shared = (f"{n}+" if n == MOST_AGENTS else f"{n}" for n in (fit["copied"], fit["shared"]))
    message = f"{title}: {copied} agents fit with copies, {shared} if shared"
    with sheet(3.8, caption, layout=False) as figure:
        ax = figure.subplots()
        figure.subplots_adjust(left=0.09, right=0.83, top=0.88, bottom=0.2)
        for layout, colour in (("copied", BASELINE), ("shared", OURS)):
            gb = frame[layout] / 1e9
            ax.plot(frame.agents, gb, color=colour, linewidth=2)
            now, last = gb[frame.agents == n_agents].iloc[0], gb.iloc[-1]
            ax.plot(n_agents, min(now, top), "o" if now <= top else "^", color=colour, markersize=8, clip_on=False)
            if last <= top:
                ax.text(most + 0.8, last, f"{layout}, {last:,.1f} GB", va="center", fontsize=9, color=colour)
            else:
                at = frame.agents[gb <= top].max() if (gb <= top).any() else 1
                ax.text(at, top, f" {layout}", va="bottom", fontsize=9, color=colour)
            if 0 < fit[layout] < most:
                ax.vlines(fit[layout], 0, limit, color=colour, linestyle=":", linewidth=1)
        ax.axhline(limit, color="#444444", linewidth=1)
        ax.text(most + 0.8, limit, f"budget, {limit:,.0f} GB", va="center", fontsize=9)
        ax.locator_params(nbins=5)  # many ticks would take most of the time of a redraw
        ax.set(xlim=(1, most), ylim=(0, top), xlabel="agents", ylabel="GB of KV cache (predicted)")
        ax.set_title(message, fontsize=11, y=1.06)  # y: no search for a place
        figure.set_label(message)
    return figure
