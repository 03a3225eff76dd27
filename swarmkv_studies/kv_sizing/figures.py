"""Figures of sizes: KV bytes per token, by number of agents and by KV type."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_studies.common.style import BASELINE, OURS, headline, sheet, ticks_at
from swarmkv_studies.kv_sizing.memory import MOST_AGENTS

# kind: (label, colour, marker)
KINDS = {
    "MHA": ("all tokens, keys and values of each head (MHA)", "#D55E00", "s"),
    "GQA": ("all tokens, heads share keys and values (GQA)", "#0072B2", "o"),
    "MLA": ("all tokens, compressed (MLA)", "#CC79A7", "^"),
    "sliding window": ("in most layers the last tokens alone (windows)", "#009E73", "D"),
    "hybrid": ("in most layers a state of fixed size (hybrid)", "#E69F00", "v"),
}


def bytes_per_token(frame: pd.DataFrame, n_tokens: int, caption: str = "") -> Figure:
    """KV bytes per token of some models, by what they keep.

    frame: from memory.bytes_by_model with n_tokens: a row per model with kind and bytes_per_token.
    """
    frame = frame.assign(kb=frame.bytes_per_token / 1000).sort_values("kb", ascending=False)
    least, most = frame.kb.min(), frame.kb.max()
    with sheet(1.9 + 0.2 * len(frame), caption) as figure:
        ax = figure.subplots()
        for y, row in enumerate(frame.itertuples()):
            _, colour, marker = KINDS[row.kind]
            ax.plot([least / 2, row.kb], [y, y], color="#DDDDDD", linewidth=1, zorder=1)
            ax.plot(row.kb, y, marker, color=colour, markersize=7)
            ax.text(row.kb * 1.09, y, f"{row.kb:,.3g}", va="center", fontsize=9)
        ax.set(xscale="log", xlim=(least / 2, most * 1.5), ylim=(len(frame) - 0.5, -0.6))
        ax.set_xlabel(f"kB (1,000 bytes) per token of a document of {n_tokens:,} tokens, f16 (predicted)")
        ax.set_yticks(range(len(frame)), frame.index)
        ax.tick_params(axis="y", length=0)
        ticks_at(ax.xaxis, [tick for tick in (1, 3, 10, 30, 100, 300, 1000) if least / 2 < tick < most * 1.5])
        looks = [look for kind, look in KINDS.items() if kind in set(frame.kind)]
        handles = [Line2D([], [], color=c, marker=m, linestyle="", label=name) for name, c, m in looks]
        ax.legend(handles=handles, loc="lower right", fontsize=8.5)
        headline(figure, f"What a model keeps decides its KV cache: {least:,.2g} to {most:,.0f} kB per token")
    return figure


def memory_against_agents(
    frame: pd.DataFrame,
    budget: int,
    n_agents: int,
    fit: Mapping[str, int],
    title: str,
    caption: str = "",
    weights: int = 0,
) -> Figure:
    """Weights and KV memory against agents, copied and shared, and a budget in bytes; weights: bytes of them.

    frame: from memory.memory_by_agents. fit: the agents that fit by layout, from memory.agents_that_fit; they may be
    more than the frame has.
    """
    limit, base, most = budget / 1e9, weights / 1e9, frame.agents.iloc[-1]
    top = max(limit, base) * 2
    copied, shared = (f"{n}+" if n == MOST_AGENTS else f"{n}" for n in (fit["copied"], fit["shared"]))
    message = f"{title}: {copied} agents fit with copies, {shared} if shared"
    with sheet(3.8, caption, layout=False) as figure:
        ax = figure.subplots()
        figure.subplots_adjust(left=0.09, right=0.83, top=0.88, bottom=0.2)
        ax.fill_between([1, most], base, color="#DDDDDD", linewidth=0)
        ax.text(most + 0.8, base / 2, f"weights, {base:,.1f} GB", va="center", fontsize=9, color="#555555")
        for layout, colour in (("copied", BASELINE), ("shared", OURS)):
            gb = base + frame[layout] / 1e9
            ax.plot(frame.agents, gb, color=colour, linewidth=2)
            now, last = gb[frame.agents == n_agents].iloc[0], gb.iloc[-1]
            ax.plot(n_agents, min(now, top), "o" if now <= top else "^", color=colour, markersize=8, clip_on=False)
            if last <= top:
                height = max(last, base / 2 + 0.08 * top)  # above the label of the weights
                height += 0.08 * top * (abs(height - limit) < 0.06 * top)  # and beside the budget's
                ax.text(most + 0.8, height, f"{layout}, {last:,.1f} GB", va="center", fontsize=9, color=colour)
            else:
                at = frame.agents[gb <= top].max() if (gb <= top).any() else 1
                ax.text(at, top, f" {layout}", va="bottom", fontsize=9, color=colour)
            if 0 < fit[layout] < most:
                ax.vlines(fit[layout], 0, limit, color=colour, linestyle=":", linewidth=1)
        ax.axhline(limit, color="#444444", linewidth=1)
        ax.text(most + 0.8, limit, f"memory, {limit:,.0f} GB", va="center", fontsize=9)
        ax.locator_params(nbins=5)  # many ticks would take most of the time of a redraw
        ax.set(xlim=(1, most), ylim=(0, top), xlabel="agents", ylabel="GB of weights and KV (predicted)")
        ax.set_title(message, fontsize=11, y=1.06)  # y: no search for a place
        figure.set_label(message)
    return figure
