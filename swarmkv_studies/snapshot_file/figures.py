"""Figure of a snapshot's bytes: where each field lies."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from swarmkv_studies.common.style import BASELINE, OURS, headline, sheet

_FIRST = 10  # fields of a snapshot that are drawn one by one
_KEY, _VALUE, _REST = BASELINE, OURS, "#BBBBBB"


def snapshot_layout(parts: pd.DataFrame, caption: str = "") -> Figure:
    """Where a snapshot's bytes are: its whole length, and its first fields, which are not to scale.

    parts: SequenceState.parts: columns part, offset and bytes.
    """
    total = int(parts.bytes.sum())
    kinds = parts.part.str.extract(r"^([KV]) of layer \d+$")[0].map({"K": _KEY, "V": _VALUE}).fillna(_REST)
    around = int(parts.bytes[kinds == _REST].sum())
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
        key = {"keys": _KEY, "values": _VALUE, "all the rest": _REST}
        headline(figure, f"Of {total:,} bytes all but {around:,} are keys and values", key)
    return figure
