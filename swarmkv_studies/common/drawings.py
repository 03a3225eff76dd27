"""Drawings: figures that explain an idea rather than show a measurement."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Arc, FancyBboxPatch, Rectangle

from swarmkv_lab.sizing.geometry import KVGeometry, row_bytes
from swarmkv_studies.common.style import BASELINE, OURS, PHASES, headline, sheet

GREY = "#444444"
_FIRST = 10  # fields of a snapshot that are drawn one by one
MAST = np.array([0.15, 0.76])  # the top of the tower


def broadcast(agents: Sequence[str] = ("security", "licence", "cost")) -> Figure:
    """The article's analogy: a cell that sends the document to each phone, and one that broadcasts it once."""
    with sheet(3.7) as figure:
        left, right = figure.subplots(1, 2)
        phones = [np.array([0.98, y]) for y in np.linspace(0.86, 0.14, len(agents))]
        for ax in (left, right):
            for phone in phones:
                own = {"arrowstyle": "<|-|>", "color": PHASES["branch"][1], "lw": 1.2, "linestyle": (0, (4, 2))}
                ax.annotate("", phone - (0.07, 0.04), MAST - (0, 0.03), arrowprops=own)
        for phone in phones:
            left.annotate("", phone - (0.07, -0.03), MAST, arrowprops={"arrowstyle": "-|>", "color": BASELINE, "lw": 3})
        for radius in (0.18, 0.34, 0.50, 0.66):
            right.add_patch(Arc(MAST, 2 * radius, 2 * radius, theta1=-52, theta2=18, color=BASELINE, linewidth=3))
        for ax, title, times in (
            (left, "naive: the document is sent to each", len(agents)),
            (right, "fan-out: it is sent once, to all", 1),
        ):
            _tower(ax)
            for agent, phone in zip(agents, phones, strict=True):
                _phone(ax, phone, agent)
            ax.text(0.03, 0.96, f"prefill, {times}x", color=BASELINE)
            ax.set(xlim=(0, 1.5), ylim=(0, 1.04), aspect="equal", title=title)
            ax.axis("off")
        look = {"color": PHASES["branch"][1], "lw": 1.2, "linestyle": (0, (4, 2))}
        key = {
            "document = system information": Line2D([], [], color=BASELINE, lw=3),
            "question and answer = dedicated channel": Line2D([], [], **look),
        }
        headline(figure, "A cell sends its system information once, for all phones", key)
    return figure


_KEY, _VALUE = BASELINE, OURS


def size_by_steps(geometry: KVGeometry, n_tokens: int, caption: str = "") -> Figure:
    """From one head's key to a whole snapshot in f16, each step with its bytes (predicted).

    For a model whose layers are all alike and keep all tokens.
    """
    head = row_bytes(geometry.head_dim_k, "f16")
    token, whole = geometry.bytes_per_token(), geometry.snapshot_bytes(n_tokens)
    layer, heads = token // geometry.n_layer, geometry.heads[0]
    steps = [
        ("a key of one head", f"{geometry.head_dim_k} numbers\nof 2 bytes", head),
        ("a token in a layer", f"keys and values\nof {heads} KV heads", layer),
        ("a token", f"{geometry.n_layer} layers\n", token),
        ("a snapshot", f"{n_tokens:,} tokens, and\n{whole - n_tokens * token:,} bytes around them", whole),
    ]
    with sheet(3.6, caption) as figure:
        axes = figure.subplots(1, len(steps), sharey=True)
        for ax, draw, (title, what, n_bytes) in zip(axes, (_one_key, _one_layer, _one_token, _all), steps, strict=True):
            draw(ax, heads)
            ax.set(xlim=(-0.05, 1.15), ylim=(-0.62, 1.12), title=title)
            ax.text(0.5, -0.15, what, ha="center", va="top", fontsize=9, color=GREY)
            ax.text(0.5, -0.46, f"{n_bytes:,} bytes", ha="center", va="top", fontsize=10.5, weight="bold")
            ax.axis("off")
        for ax, times in zip(axes[1:], (2 * heads, geometry.n_layer, n_tokens), strict=True):
            ax.text(-0.12, 0.5, f"x {times:,}", ha="center", va="center", fontsize=10.5, weight="bold", clip_on=False)
        message = f"{n_tokens:,} tokens take {whole / 1e6:,.1f} MB (predicted; 1 MB is 10^6 bytes)"
        headline(figure, message, {"keys": _KEY, "values": _VALUE})
    return figure


def _row(ax: Axes, x: float, y: float, width: float, height: float, colour: str, cells: int = 16) -> None:
    for i in range(cells):
        shape = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.5}
        ax.add_patch(Rectangle((x + i * width / cells, y), width / cells, height, **shape))


def _one_key(ax: Axes, heads: int) -> None:
    _row(ax, 0.12, 0.46, 0.8, 0.08, _KEY)


def _one_layer(ax: Axes, heads: int, x: float = 0.14, y: float = 0.2, width: float = 0.8, height: float = 0.6) -> None:
    each = height / (2 * heads)
    for i in range(2 * heads):
        _row(ax, x, y + height - (i + 1) * each, width, each * 0.85, _KEY if i < heads else _VALUE)


def _one_token(ax: Axes, heads: int) -> None:
    for i in reversed(range(7)):  # sheets, one behind the other
        x, y = 0.14 + 0.06 * i, 0.1 + 0.09 * i
        ax.add_patch(Rectangle((x, y), 0.5, 0.3, facecolor="white", edgecolor=GREY, linewidth=0.8))
        _one_layer(ax, heads, x + 0.03, y + 0.02, 0.44, 0.26)


def _all(ax: Axes, heads: int) -> None:
    for i in range(24):
        x, colour = 0.14 + 0.034 * i, GREY
        if i in (20, 21):  # and so on
            continue
        ax.add_patch(Rectangle((x, 0.1), 0.028, 0.42, facecolor=_VALUE, edgecolor=colour, linewidth=0.4))
        ax.add_patch(Rectangle((x, 0.52), 0.028, 0.42, facecolor=_KEY, edgecolor=colour, linewidth=0.4))
    ax.text(0.14 + 0.034 * 21, 0.52, "...", ha="center", va="center", fontsize=9)


def snapshot_layout(parts: pd.DataFrame, caption: str = "") -> Figure:
    """Where a snapshot's bytes are: its whole length, and its first fields, which are not to scale.

    parts: SequenceState.parts: columns part, offset and bytes.
    """
    total = int(parts.bytes.sum())
    kinds = parts.part.str.extract(r"^([KV]) of layer \d+$")[0].map({"K": _KEY, "V": _VALUE}).fillna("#BBBBBB")
    around = int(parts.bytes[kinds == "#BBBBBB"].sum())
    with sheet(3.3, caption) as figure:
        whole, first = figure.subplots(2, 1, height_ratios=[1, 1.5])
        whole.barh([0] * len(parts), parts.bytes / 1e6, left=parts.offset / 1e6, color=kinds, height=0.8)
        whole.set(xlim=(0, total / 1e6), xlabel="MB from the start (10^6 bytes)", yticks=[], ylim=(-0.5, 0.5))
        whole.set_title("the whole state: all layers' keys, then all layers' values")
        shown = parts.iloc[:_FIRST]
        for i, (row, colour) in enumerate(zip(shown.itertuples(), kinds, strict=False)):
            first.add_patch(Rectangle((i, 0), 0.96, 1, facecolor=colour, edgecolor="white"))
            text = row.part.replace("cells' positions and sequences", "positions,\nsequences").replace(" of ", "\nof ")
            first.text(i + 0.48, 1.08, f"{row.bytes:,}", ha="center", va="bottom", fontsize=8, weight="bold")
            first.text(i + 0.48, -0.08, text.replace(": ", ":\n").replace("values t", "values\nt"),
                       ha="center", va="top", fontsize=7.5)  # fmt: skip
        first.set(xlim=(0, len(shown)), ylim=(-1.3, 1.5), title=f"its first {len(shown)} fields, with their bytes")
        first.axis("off")
        key = {"keys": _KEY, "values": _VALUE, "all the rest": "#BBBBBB"}
        headline(figure, f"Of {total:,} bytes all but {around:,} are keys and values", key)
    return figure


def _tower(ax: Axes) -> None:
    x, top = MAST
    foot, width = 0.05, 0.09

    def half(height: float) -> float:
        return width * (top - height) / (top - foot)

    ax.plot([x - width, x, x + width], [foot, top, foot], color=GREY, linewidth=2)
    for low, high in ((0.14, 0.32), (0.32, 0.46)):  # the lattice
        for side in (-1, 1):
            ax.plot([x - side * half(low), x + side * half(high)], [low, high], color=GREY, linewidth=1.2)
    ax.plot(x, top, "o", color=GREY, markersize=7)


def _phone(ax: Axes, centre: np.ndarray, agent: str) -> None:
    x, y = centre
    shape = FancyBboxPatch((x - 0.025, y - 0.065), 0.05, 0.13, boxstyle="round,pad=0.015", fc="white", ec=GREY, lw=1.5)
    ax.add_patch(shape)
    ax.plot([x - 0.01, x + 0.01], [y - 0.06] * 2, color=GREY, linewidth=1.5)
    ax.text(x + 0.08, y + 0.04, agent, va="center")
    ax.text(x + 0.08, y - 0.05, PHASES["branch"][0], fontsize=8.5, va="center", color=PHASES["branch"][1])
