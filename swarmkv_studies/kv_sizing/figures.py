"""Figures of sizes: KV bytes per token, by number of agents and by KV type."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from swarmkv_studies.common.style import BASELINE, OURS, headline, sheet, ticks_at
from swarmkv_studies.kv_sizing.memory import MOST_AGENTS

ATTENTION = {
    "MHA": ("#D55E00", "s"),
    "GQA": ("#0072B2", "o"),
    "sliding window": ("#009E73", "D"),
    "MLA": ("#CC79A7", "^"),
}


def bytes_per_token(frame: pd.DataFrame, n_tokens: int, caption: str = "") -> Figure:
    """The catalogue's models: KV bytes per token against parameters.

    frame: from memory.catalogue_bytes with n_tokens: a row per model with billions, attention, bytes_per_token.
    """
    frame = frame.assign(kb=frame.bytes_per_token / 1000)
    least, most = frame.kb.min(), frame.kb.max()
    with sheet(7.6, caption) as figure:
        ax = figure.subplots()
        for attention, group in frame.groupby("attention"):
            colour, marker = ATTENTION[attention]
            ax.scatter(group.billions, group.kb, color=colour, marker=marker, s=26, zorder=3)
        ax.set(xscale="log", yscale="log", xlabel="parameters, billions")
        ax.set(xlim=(frame.billions.min() / 1.6, frame.billions.max() * 4), ylim=(least / 1.3, most * 1.5))
        ax.set_ylabel(f"kB (1,000 bytes) of KV per token, f16, at {n_tokens:,} tokens (predicted)")
        ticks_at(ax.xaxis, [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000])
        ticks_at(ax.yaxis, [5, 10, 20, 50, 100, 200, 500])
        ax.grid()
        ax.set_axisbelow(True)
        handles = [Line2D([], [], color=c, marker=m, linestyle="", label=name) for name, (c, m) in ATTENTION.items()]
        ax.legend(handles=handles, loc="lower right")
        headline(figure, f"The kind of attention decides the KV cache per token: {least:.0f} to {most:,.0f} kB")
    figure.draw_without_rendering()  # now, with the caption, the points are where they stay
    _label_all(ax, frame)
    return figure


_SIDES = [(dx, dy) for far in (0, 1, 2, 3, 4) for dx in (1, -1, 0) for dy in {far, -far} if dx or dy]


def _label_all(ax: Axes, frame: pd.DataFrame) -> None:
    """Name every point where no other point or name is; a name that had to move away is tied to its point by a line."""
    points = ax.transData.transform(frame[["billions", "kb"]].to_numpy())
    unit = ax.figure.dpi / 72
    taken = [Bbox.from_extents(x - 3 * unit, y - 3 * unit, x + 3 * unit, y + 3 * unit) for x, y in points]
    for i in np.lexsort((points[:, 0], -points[:, 1].round())):  # from the top, each line from the left
        row, (x, y) = frame.iloc[i], points[i]
        tie = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        label = ax.annotate(
            str(frame.index[i]), (row.billions, row.kb), (0, 0), textcoords="offset points", fontsize=7, va="center",
            color=ATTENTION[row.attention][0], arrowprops=tie,
        )  # fmt: skip
        size = label.get_window_extent()
        for dx, dy in _SIDES:
            left = x + (6 * unit if dx > 0 else -6 * unit - size.width if dx < 0 else -size.width / 2)
            low = y + dy * 9.2 * unit - size.height / 2
            box = Bbox.from_bounds(left, low, size.width, size.height)
            if left > ax.bbox.x0 and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        label.set_position(((left - x) / unit, dy * 9.2))
        label.arrow_patch.set_visible(abs(dy) > 1)


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
