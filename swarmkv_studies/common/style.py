"""The figures' common look: colours, fonts, title, legend and caption; and how figures are saved."""

import base64
import io
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter, NullLocator

# Okabe and Ito's colours, which people with any colour vision can tell apart; hatches help in black-and-white print.
# phase: (label, colour, hatch)
PHASES = {
    "prefill": ("prefill", "#0072B2", ""),
    "capture": ("capture", "#56B4E9", "//"),
    "load": ("load from a file", "#999933", "//"),
    "fetch": ("fetch from a worker", "#F0E442", ""),
    "context": ("new context", "#BBBBBB", ""),
    "copy": ("copy", "#CC79A7", "\\\\"),
    "restore": ("restore", "#E69F00", "xx"),
    "share": ("share", "#000000", ""),
    "branch": ("question", "#D55E00", ""),
    "sample": ("answer", "#009E73", ""),
    "generate": ("answer", "#009E73", ""),
    "lost": ("lost with its worker", "#882255", "xx"),
}
# strategy: (colour, marker)
STRATEGY = {
    "naive": ("#0072B2", "o"),
    "swarmkv": ("#D55E00", "s"),
    "pooled": ("#CC79A7", "D"),
    "shared": ("#009E73", "^"),
    "batched": ("#E69F00", "v"),
}
_settings = threading.RLock()
_LINE = 130  # characters of small print beside each other, so that they are legible 600 pixels wide
BASELINE, OURS = "#0072B2", "#E69F00"
DOTTED = {"color": "#444444", "linestyle": ":", "linewidth": 1.2}  # bounds and noise floors
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "swarmkv-lab",  # the same figure gives the same file
    "hatch.linewidth": 0.6,
}


class Described(Figure):
    """A figure that notebooks show as an image with an alt text: JupyterLab gives a plain image none."""

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        return {"text/html": as_html(self)}, {"image/png": {"alt": described(self)}}


def described(figure: Figure) -> str:
    """A figure in words: its message, what is drawn against what, and its small print."""
    axes = [f"{ax.get_ylabel()} against {ax.get_xlabel()}" for ax in figure.axes if ax.get_xlabel() and ax.get_ylabel()]
    sentences = [figure.get_label(), *dict.fromkeys(axes), figure.get_supxlabel()]
    return ". ".join(" ".join(sentence.split()) for sentence in sentences if sentence)


def as_html(figure: Figure, dpi: int = 95) -> str:
    """A figure as an HTML image that fits a narrow window, with its description as alt text."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi, pil_kwargs={"compress_level": 1})
    data, alt = base64.b64encode(png.getvalue()).decode(), escape(described(figure), quote=True)
    return f'<img alt="{alt}" style="max-width:100%;width:760px" src="data:image/png;base64,{data}">'


@contextmanager
def styled(layout: bool = True) -> Iterator[None]:
    """Set the common look, for one thread at a time, as matplotlib's settings are global. layout: solve it (slow)."""
    with _settings, mpl.rc_context(STYLE | {"figure.constrained_layout.use": layout}):
        yield


@contextmanager
def sheet(height: float, caption: str = "", layout: bool = True) -> Iterator[Figure]:
    """A figure of 8 by ``height`` inches in the common look, with the caption (where its numbers are from) under it.

    layout: solve it. This takes most of the time of a redraw, so figures that explorers redraw often do without.
    """
    with styled(layout):
        figure = Described(figsize=(8, height))
        yield figure
        if caption:
            lines = "\n".join(fill(line, _LINE) for line in caption.splitlines())
            figure.supxlabel(lines, fontsize=8, color="#666666", x=0.01, ha="left")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and as SVG, without a date in the files; return their paths."""
    paths = [folder / f"{name}.{ending}" for ending in ("png", "svg")]
    with styled(layout=False):  # the figure keeps its own layout solver
        figure.savefig(paths[0])
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


Look = str | tuple[str, str] | Artist


def headline(figure: Figure, message: str, key: Mapping[str, Look] | None = None) -> None:
    """Draw the message in bold at the top, and a legend under it: {label: colour, (colour, hatch) or an artist}.

    Where the layout is not solved, the message is the figure's label alone.
    """
    figure.set_label(message)  # explorers use it as the alt text
    handles = [_handle(label, look) for label, look in (key or {}).items()]
    columns = max(len(handles), 1)
    if figure.get_layout_engine():
        figure.legend(
            handles=handles, loc="outside upper left", ncols=columns, title=message, alignment="left", borderpad=0.2,
            title_fontproperties={"weight": "bold", "size": 12}, columnspacing=1.4,
        )  # fmt: skip
        return
    figure.legend(handles=handles, loc="upper left", ncols=columns, columnspacing=1.2, handletextpad=0.5)


def _handle(label: str, look: Look) -> Artist:
    if isinstance(look, Artist):
        look.set_label(label)
        return look
    colour, hatch = (look, "") if isinstance(look, str) else look
    return Patch(facecolor=colour, hatch=hatch, label=label, edgecolor="white")


def strategy_key(names: Iterable[str]) -> dict[str, Artist]:
    """Legend entries for the strategies' lines and markers."""
    return {name: Line2D([], [], color=c, marker=m) for name, (c, m) in STRATEGY.items() if name in set(names)}


def phase_key(timelines: Mapping[str, pd.DataFrame]) -> dict[str, tuple[str, str]]:
    """Legend entries for the phases in these timelines: {label: (colour, hatch)}."""
    phases = set(pd.concat(timelines.values()).phase)
    return {label: (colour, hatch) for phase, (label, colour, hatch) in PHASES.items() if phase in phases}


def plain_numbers(*axes: Axis) -> None:
    """Label ticks as 1,000 rather than 10^3, and only major ticks."""
    for axis in axes:
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter("{x:,g}")


def ticks_at(axis: Axis, values: Iterable[float]) -> None:
    """Put ticks at these values alone, labelled as plain numbers."""
    axis.set_ticks(list(values))
    axis.set_minor_locator(NullLocator())
    plain_numbers(axis)
