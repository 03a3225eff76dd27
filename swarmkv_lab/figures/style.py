"""The figures' common look: colours, fonts, title, legend and caption; and how figures are saved."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

# Okabe and Ito's colours, which people with any colour vision can tell apart; hatches help in black-and-white print.
# phase: (label, colour, hatch)
PHASES = {
    "prefill": ("prefill", "#0072B2", ""),
    "capture": ("capture", "#56B4E9", "//"),
    "context": ("new context", "#BBBBBB", ""),
    "copy": ("copy", "#CC79A7", "\\\\"),
    "restore": ("restore", "#E69F00", "xx"),
    "share": ("share", "#E69F00", ""),
    "branch": ("question", "#D55E00", ""),
    "sample": ("answer", "#009E73", ""),
    "generate": ("answer", "#009E73", ""),
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
BASELINE, OURS = "#0072B2", "#E69F00"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "swarmkv-lab",  # the same figure gives the same file
    "hatch.linewidth": 0.6,
}


@contextmanager
def styled(layout: bool = True) -> Iterator[None]:
    """Set the common look, for one thread at a time, as matplotlib's settings are global. layout: solve it (slow)."""
    with _settings, mpl.rc_context(STYLE | {"figure.constrained_layout.use": layout}):
        yield


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and as SVG, without a date in the files; return their paths."""
    paths = [folder / f"{name}.{ending}" for ending in ("png", "svg")]
    with styled(layout=False):  # the figure keeps its own layout solver
        figure.savefig(paths[0])
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


Look = str | tuple[str, str] | Artist


def headline(figure: Figure, message: str, key: Mapping[str, Look] | None = None) -> None:
    """Draw the message in bold at the top, and a legend under it: {label: colour, (colour, hatch) or an artist}."""
    figure.set_label(message)  # explorers use it as the alt text
    handles = [_handle(label, look) for label, look in (key or {}).items()]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=max(len(handles), 1), frameon=False, fontsize=9, title=message,
        title_fontproperties={"weight": "bold", "size": 12}, alignment="left", columnspacing=1.4, borderpad=0.2,
    )  # fmt: skip


def quick_headline(figure: Figure, message: str, key: Mapping[str, Look] | None = None, shown: bool = True) -> None:
    """Like headline, for figures whose layout is not solved, because explorers redraw them often.

    shown: whether the message is drawn, or is only the figure's label.
    """
    figure.set_label(message)
    if shown:
        figure.text(0.012, 0.94, message, weight="bold", size=12)
    if key:
        handles = [_handle(label, look) for label, look in key.items()]
        figure.legend(
            handles=handles, loc="upper left", ncols=len(handles), frameon=False, fontsize=9, columnspacing=1.2,
            handletextpad=0.5, bbox_to_anchor=(0.0, 0.94 if shown else 1.0),
        )  # fmt: skip


def _handle(label: str, look: Look) -> Artist:
    if isinstance(look, Artist):
        look.set_label(label)
        return look
    colour, hatch = (look, "") if isinstance(look, str) else look
    return Patch(facecolor=colour, hatch=hatch, label=label, edgecolor="white")


def strategy_key(names: Iterable[str]) -> dict[str, Artist]:
    """Legend entries for the strategies' lines and markers."""
    looks = {name: STRATEGY[name] for name in STRATEGY if name in set(names)}
    return {name: Line2D([], [], color=c, marker=m, markersize=6, linewidth=1.5) for name, (c, m) in looks.items()}


def plain_numbers(axis: Axis) -> None:
    """Label ticks as 1,000 rather than 10^3, and only major ticks."""
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def small_print(figure: Figure, caption: str) -> None:
    """Write the caption, which says where the numbers come from, under the figure."""
    if caption:
        figure.supxlabel(caption, fontsize=6.5, color="#666666", x=0.01, ha="left")
