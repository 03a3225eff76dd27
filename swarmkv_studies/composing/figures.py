"""Figures of composing: roles before one document, quality against tokens computed, and what differs after the seam."""

from collections.abc import Mapping

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from swarmkv_studies.common.style import BASELINE, DOTTED, OURS, headline, sheet, ticks_at
from swarmkv_studies.common.widgets import LOOK, Explorer
from swarmkv_studies.composing.quality import MOVED
from swarmkv_studies.composing.study import BEHIND, FULL

# what the document's cells were computed behind: (colour, marker)
_LOOKS = dict(zip(BEHIND, (("#D55E00", "o"), ("#CC79A7", "D"), ("#009E73", "^")), strict=True))
_GREY, _GREEN = "#444444", "#009E73"


def right_aligned(
    roles: Mapping[str, int], document: int, question: int = 40, recompute: int = 32, caption: str = ""
) -> Figure:
    """Positions of agents' roles of several lengths (tokens) before one document; drawn are its beginning and end."""
    at, shown = max(roles.values()), 260
    end = at + shown
    with sheet(1.5 + 0.5 * len(roles), caption) as figure:
        ax = figure.subplots()
        for y, n in enumerate(roles.values()):
            pieces = {(at, shown): "#DDDDDD", (at, min(recompute, shown)): OURS}
            pieces |= {(at - n, n): BASELINE, (end, question): _GREEN}
            for (left, width), colour in pieces.items():
                ax.barh(y, width, left=left, color=colour, height=0.62)
            total = n + recompute + question
            share = total / (n + document + question)
            ax.text(end + question + 6, y, f"computes {total:,}\n({share:.1%} of all)", va="center", fontsize=8.5)
            ax.text(at - n - 4, y, f"{n}", va="center", ha="right", fontsize=8.5, color=BASELINE)
        ax.text(at + shown * 0.6, -0.62, f"… {document:,} tokens …", ha="center", fontsize=8.5, color=_GREY)
        ax.axvline(at, **DOTTED)
        ax.set_xticks([0, at, end], ["0", f"P = {at:,}", f"P + {document:,}"])
        ax.set_yticks(range(len(roles)), list(roles))
        ax.set(ylim=(len(roles) - 0.5, -0.85), xlim=(-22, end + question + 92), xlabel="position of the token")
        ax.spines["left"].set_visible(False)
        key = {"its own role": BASELINE, "document, shared": "#DDDDDD"}
        key |= {f"its first {recompute}, again": OURS} if recompute else {}
        headline(figure, "Every role ends where the document begins", key | {"question": _GREEN})
    return figure


class RightAligned(Explorer):
    """right_aligned for roles and recomputed tokens that sliders set."""

    def __init__(self, document: int = 3501) -> None:
        self.document = document
        self.role = ipywidgets.IntSlider(120, 4, 600, description="Longest role, tokens", **LOOK)
        self.recompute = ipywidgets.SelectionSlider(
            options=[0, 8, 32, 128], value=32, description="Recomputed, k", **LOOK
        )
        super().__init__([self.role, self.recompute])

    def figure(self) -> Figure:
        """The picture for these values."""
        n = self.role.value
        roles = {"short role": max(1, n // 8), "middle role": max(1, n // 3), "long role": n}
        return right_aligned(roles, self.document, recompute=self.recompute.value, caption=self.settings)


def composed_quality_figure(quality: pd.DataFrame, caption: str = "") -> Figure:
    """KL to a full prefill against the tokens that each agent computes; quality: one model's, of composed_quality."""
    rows = quality.set_index("arm")
    lines = {who.replace("nothing", "behind nothing"): (f"behind {who}, k", *look, "-") for who, look in _LOOKS.items()}
    lines |= {
        "32 in the middle": ("middle", "#999933", "x", ""),
        "document first": ("document first", BASELINE, "*", ""),
        "two documents (triangles: swapped)": ("in order: apart", _GREY, "s", ":"),
        "": ("swapped: apart", _GREY, "v", ":"),
    }
    floor, full = rows[rows.index.str.startswith("full, ")], rows.own_tokens[FULL]
    with sheet(4.8, caption) as figure:
        ax = figure.subplots()
        ax.axhspan(floor.kl_low.min(), floor.kl_high.max(), color="#E5E5E5", zorder=0)
        ax.axvline(full, **DOTTED)
        key = {}
        for label, (named, colour, marker, line) in lines.items():
            mine = rows[rows.index.str.contains(named)]
            if mine.empty:
                continue
            spread = [mine.kl - mine.kl_low, mine.kl_high - mine.kl]
            look = {"color": colour, "marker": marker, "linestyle": line, "markersize": 9 if marker == "*" else 6}
            ax.errorbar(mine.own_tokens, mine.kl, yerr=spread, elinewidth=0.9, **look)
            if mine.index.str.startswith("two").any():
                ax.text(mine.own_tokens.max() * 1.08, mine.kl.iloc[-1], label, fontsize=8.5, color=_GREY, va="center")
            else:
                key[label] = Line2D([], [], **look)
        for row in rows[rows.index.str.contains("behind nothing, k")].itertuples():
            k = str(row.Index).partition(", ")[2]
            # Two documents lie above the first, and the labels of the next two are close to each other.
            at, ha = ((-8, -3), "right") if k == "k = 0" else ((4, 9), "left")
            ax.annotate(k, (row.own_tokens, row.kl), at, fontsize=8, ha=ha, textcoords="offset points")
        about = "full prefill; grey: what other\npositions or kernels change"
        ax.text(full / 1.06, floor.kl_high.max() * 1.08, about, ha="right", va="bottom", fontsize=8.5, color=_GREY)
        ax.set(xscale="log", yscale="log", xlabel="prompt tokens computed per agent (mean; the shared document apart)")
        ax.set_ylabel("KL to a full prefill, nats\n(measured, mean, 95 % intervals)")
        ticks_at(ax.xaxis, [50, 100, 200, 500, 1000, 2000])
        ticks_at(ax.yaxis, [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
        ax.grid()
        ax.set_axisbelow(True)
        best, first = rows.loc["behind another role, k = 8"], rows.kl["document first"]
        message = f"composed, k = 8: KL {best.kl:.2g} for {best.own_tokens / full:.0%} of the tokens"
        headline(figure, f"{message}; document first: {first:.2g}", key)
    return figure


def composed_seam_figure(seam: pd.DataFrame, caption: str = "") -> Figure:
    """How other the document's values are, by token after the seam; seam: from composed_seam."""
    with sheet(4.0, caption) as figure:
        ax = figure.subplots()
        key = {}
        for behind, (colour, marker) in _LOOKS.items():
            rows = seam[seam.behind == behind]
            ax.plot(rows["first"] + 1, 100 * rows.error, color=colour, marker=marker)
            key[f"behind {behind}"] = Line2D([], [], color=colour, marker=marker)
        floor = 100 * seam.error[seam.behind == MOVED].mean()
        ax.axhline(floor, **DOTTED)
        ax.text(1, 1.06 * floor, "rounding alone: its own role, moved", fontsize=8.5, color=_GREY)
        for k in (8, 32, 128):
            ax.axvline(k + 1, color="#BBBBBB", linewidth=0.8, zorder=0)
            ax.text(k + 1, 118, f" k = {k}", fontsize=8.5, color=_GREY, va="top")
        ax.set(xscale="log", yscale="log", ylim=(2.2, 130), xlabel="token of the document (from this one on)")
        ax.set_ylabel("difference of the values, % of their norm\n(measured, mean over layers and roles)")
        ticks_at(ax.xaxis, [1, 2, 5, 10, 20, 50, 100, 200, 500])
        ticks_at(ax.yaxis, [3, 5, 10, 20, 50, 100])
        alone = seam[(seam.behind == "nothing") & (seam["first"] == 0)].iloc[0]
        message = f"Prefilled alone, the first token is a sink: values {100 * alone.error:.0f} % off"
        headline(figure, f"{message}, at {alone.norm:.0%} of the usual norm", key)
    return figure
