"""Figures of positions: keys as they are stored and rotated back, and what a wrong position costs."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from swarmkv_studies.common.speedup import factor
from swarmkv_studies.common.style import BASELINE, DOTTED, OURS, headline, sheet, ticks_at

# as in positions.py: (label, colour, marker)
_SHIFTED = {
    "seam": ("branch starts late:\na gap before it", "#D55E00", "D"),
    "second half": ("gap in the middle\nof the document", "#CC79A7", "s"),
    "whole prefix": ("document and branch\nmoved together", "#0072B2", "o"),
}
_TICKS = [mantissa * 10.0**power for power in range(-6, 3) for mantissa in (1, 2, 5)]


def position_error_figure(frame: pd.DataFrame, caption: str = "") -> Figure:
    """KL to the unshifted run against how far keys were shifted; frame: from position_error."""
    floor = frame.kl_mean[frame.shifted == "nothing"].mean()
    widest = frame.gap.max()
    times = frame[frame.gap == widest].set_index("shifted").kl_mean / floor
    with sheet(4.2, caption) as figure:
        ax = figure.subplots()
        ends: dict[str, float] = {}
        for name, (_, colour, marker) in _SHIFTED.items():
            rows = frame[frame.shifted == name].sort_values("gap")
            ax.plot(rows.gap, rows.kl_mean, color=colour, marker=marker, linewidth=1.4)
            ends[name] = rows.kl_mean.iloc[-1]
        ax.axhline(floor, **DOTTED)
        measured = frame.kl_mean
        limits = measured.min() / 1.6, measured.max() * 1.6
        ax.set(xscale="log", yscale="log", ylim=limits, xlabel="positions moved, or left out")
        ax.set_ylabel("KL to the unshifted run, nats\n(measured, mean)")
        ticks_at(ax.xaxis, sorted(frame.gap[frame.gap > 0].unique()))
        ticks_at(ax.yaxis, [tick for tick in _TICKS if limits[0] <= tick <= limits[1]])
        ax.grid()
        ax.set_axisbelow(True)
        beside = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 8.5, "linespacing": 1.15}
        ends["floor"] = floor
        for name, y in _apart(ends, 0.12 * np.log(limits[1] / limits[0])).items():
            label, colour, _ = _SHIFTED.get(name, ("noise floor: nothing\nmoved, other kernels", "#444444", ""))
            ax.text(1.01, y, label, color=colour, **beside)
        headline(figure, f"A branch that starts {widest:,} positions late: KL {factor(times['seam'])} the noise floor")
    return figure


def _apart(ends: Mapping[str, float], room: float) -> dict[str, float]:
    """Heights of the labels beside lines that end at these values: in their order, none nearer than ``room`` in ln."""
    placed: dict[str, float] = {}
    for name, value in sorted(ends.items(), key=lambda end: end[1]):
        placed[name] = max([np.log(value), *(at + room for at in placed.values())])
    middle = np.mean([placed[name] - np.log(value) for name, value in ends.items()])
    return {name: float(np.exp(at - middle)) for name, at in placed.items()}


def rotation(
    stored: np.ndarray, unrotated: np.ndarray, turns: Mapping[int, float], title: str = "", caption: str = ""
) -> Figure:
    """One head's keys as stored and rotated back: images of all elements, and two lines for each of a few elements.

    stored, unrotated: float (n_tokens, head_dim). turns: {element: tokens for a whole turn of its pair}, drawn in this
    order. The images' colours end where one in twenty elements would go beyond, so that large ones do not pale the
    others.
    """
    limit = float(np.quantile(np.abs(stored), 0.95)) or 1.0
    lanes = [[f"{element}", f"{element}"] for element in turns]
    with sheet(4.0 + 1.4 * len(turns), caption) as figure:
        axes = figure.subplot_mosaic([["stored", "back"], *lanes], height_ratios=[3.6, *[1] * len(turns)])
        images = {"stored": (stored, "as stored", BASELINE, "-"), "back": (unrotated, "rotated back", OURS, "--")}
        for name, (rows, label, colour, line) in images.items():
            ax = axes[name]
            look = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "interpolation": "nearest", "aspect": "auto"}
            ax.imshow(rows.T, extent=(-0.5, len(rows) - 0.5, rows.shape[1] - 0.5, -0.5), **look)
            ax.set_title(f"{label}: blue {-limit:.2g} to red {limit:.2g}")
            ax.set_yticks(list(turns))
            for element in turns:
                axes[f"{element}"].plot(rows[:, element], line, color=colour, linewidth=1.8)
        axes["stored"].set_ylabel("element of the head")
        for element, tokens in turns.items():
            ax = axes[f"{element}"]
            ax.axhline(0, color="#BBBBBB", linewidth=0.6, zorder=0)
            ax.set(xlim=(-0.5, len(stored) - 0.5), ylabel="value")
            once = f"{tokens:,.1f}" if tokens < 100 else f"{tokens:,.0f}"
            ax.set_title(f"element {element}: RoPE turns its pair once in {once} tokens")
        axes[lanes[-1][0]].set_xlabel("token")
        headline(figure, title, {"as stored": BASELINE, "rotated back": OURS})
    return figure
