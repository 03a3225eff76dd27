"""Drawings: figures that explain an idea rather than show a measurement."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, FancyBboxPatch

from swarmkv_lab.figures.style import BASELINE, PHASES, headline, sheet

GREY = "#444444"
MAST = np.array([0.15, 0.76])  # the top of the tower


def broadcast(agents: Sequence[str] = ("security", "licence", "cost")) -> Figure:
    """The article's analogy: a tower that sends the same document to each phone, and one that broadcasts it once."""
    with sheet(3.4) as figure:
        left, right = figure.subplots(1, 2)
        phones = [np.array([0.98, y]) for y in np.linspace(0.86, 0.14, len(agents))]
        for phone in phones:
            left.annotate("", phone - (0.08, 0), MAST, arrowprops={"arrowstyle": "-|>", "color": BASELINE, "lw": 3})
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
        headline(figure, "A tower broadcasts the news once, not once per phone")
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
