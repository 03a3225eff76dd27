"""The snapshot inspector: the keys and values in a snapshot, by layer and head."""

from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure

from swarmkv_lab import figures
from swarmkv_lab.llama.model import Model
from swarmkv_lab.snapshot.snapshot import KVSnapshot
from swarmkv_lab.widgets.explorer import LOOK, Explorer, html_table

_SHOWN = 96  # tokens per picture


class SnapshotInspector(Explorer):
    """Shows the keys and values of one layer and head, from a chosen token on."""

    name = "snapshot"

    def __init__(self, model: Model, snapshot: KVSnapshot, layer: int = 0, head: int = 0) -> None:
        self.model = model
        self.snapshot = snapshot
        self.state = snapshot.state()
        heads = max(model.geometry.heads)
        last = max(0, len(self.state.positions) - 1)
        self.layer = ipywidgets.IntSlider(
            value=layer, min=0, max=model.geometry.n_layer - 1, description="Layer", **LOOK
        )
        self.head = ipywidgets.IntSlider(value=head, min=0, max=heads - 1, description="KV head", **LOOK)
        self.first = ipywidgets.IntSlider(value=0, min=0, max=last, description="From token", **LOOK)
        super().__init__([self.layer, self.head, self.first])

    def figure(self) -> Figure:
        """Keys beside values."""
        keys, values = (rows[self._window, self._head] for rows in self._rows())
        title = (
            f"Layer {self.layer.value}, head {self._head}, tokens {self._first:,} to {self._first + len(keys) - 1:,}"
        )
        return figures.keys_and_values(keys, values, title, first=self._first)

    def data(self) -> pd.DataFrame:
        """The numbers shown, a row per token: position, k0 ..., v0 ..."""
        keys, values = (pd.DataFrame(rows[self._window, self._head]) for rows in self._rows())
        positions = pd.Series(self.state.positions_of(self.layer.value)[self._window], name="position")
        return pd.concat([positions, keys.add_prefix("k"), values.add_prefix("v")], axis=1)

    def words(self) -> str:
        """Size of the snapshot, where the layer's bytes are, and the text of the first tokens shown."""
        parts = self.state.parts
        row = f"layer {self.layer.value}"
        of_layer = parts[parts.part.isin([f"K of {row}", f"V of {row}"])]
        text = self.model.detokenize(self.snapshot.tokens[self._first :][:24].tolist(), special=True)
        rows = [
            ("whole snapshot", f"{self.snapshot.nbytes:,} bytes, {len(self.snapshot.tokens):,} tokens"),
            *((part.part, f"{part.bytes:,} bytes, from byte {part.offset:,}") for part in of_layer.itertuples()),
            ("text of the first tokens shown", text),
        ]
        return html_table(rows, f"KV state of {self.model.name}")

    @property
    def _window(self) -> slice:
        """The rows of this layer from the chosen token on; a sliding-window layer holds only the last tokens."""
        positions = self.state.positions_of(self.layer.value)
        start = min(max(0, self.first.value - int(positions[0])), len(positions) - 1)
        return slice(start, min(start + _SHOWN, len(positions)))

    @property
    def _first(self) -> int:
        return int(self.state.positions_of(self.layer.value)[self._window.start])

    @property
    def _head(self) -> int:
        return min(self.head.value, self.model.geometry.heads[self.layer.value] - 1)

    def _rows(self) -> tuple[Any, Any]:
        return self.state.keys(self.layer.value), self.state.values(self.layer.value)


def snapshot_inspector(model: Model, snapshot: KVSnapshot, **start: Any) -> SnapshotInspector:
    """The snapshot inspector; start: layer, head."""
    return SnapshotInspector(model, snapshot, **start)
