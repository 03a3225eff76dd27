"""The figures' common look: colours, type, headline and small print, and how they are saved."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Patch

# Okabe and Ito's colours, told apart with any colour vision; the hatches help in grey print.
# phase: (label, colour, hatch)
PHASES = {
    "prefill": ("prefill", "#0072B2", ""),
    "capture": ("capture", "#56B4E9", "//"),
    "context": ("new context", "#BBBBBB", ""),
    "copy": ("copy", "#CC79A7", "\\\\"),
    "restore": ("restore", "#E69F00", "xx"),
    "share": ("share", "#E69F00", ""),
    "branch": ("its question", "#D55E00", ""),
    "choose": ("its answer", "#009E73", ""),
    "generate": ("its answer", "#009E73", ""),
}
BASELINE, OURS = "#0072B2", "#E69F00"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "svg.hashsalt": "swarmkv-lab",  # the same figure gives the same file
    "hatch.linewidth": 0.6,
}


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and as SVG, without the time of writing in it."""
    paths = [folder / f"{name}.{ending}" for ending in ("png", "svg")]
    with mpl.rc_context(STYLE):
        figure.savefig(paths[0])
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def headline(figure: Figure, message: str, key: Mapping[str, str | tuple[str, str]] | None = None) -> None:
    """The figure's message, bold at the top, and under it a key: {label: colour or (colour, hatch)}."""
    shown = {label: (look, "") if isinstance(look, str) else look for label, look in (key or {}).items()}
    handles = [Patch(facecolor=c, hatch=h, label=label, edgecolor="white") for label, (c, h) in shown.items()]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=max(len(handles), 1), frameon=False, fontsize=9, title=message,
        title_fontproperties={"weight": "bold", "size": 12}, alignment="left", columnspacing=1.4, borderpad=0.2,
    )  # fmt: skip


def small_print(figure: Figure, caption: str) -> None:
    """Where the numbers come from, under the figure."""
    if caption:
        figure.supxlabel(caption, fontsize=6.5, color="#666666", x=0.01, ha="left")
