"""The snapshot inspector: the keys and values in a snapshot, by layer and head."""

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import swarmkv_studies as studies
from swarmkv_lab.llama.model import Model
from swarmkv_lab.snapshot.snapshot import KVSnapshot
from swarmkv_studies.common.widgets.explorer import LOOK, Explorer, html_table, size

_SHOWN = 96  # tokens per picture


class SnapshotInspector(Explorer):
    """Shows the keys and values of one layer and head, from a chosen token on."""

    name = "snapshot"

    def __init__(self, model: Model, snapshot: KVSnapshot, layer: int = 0, head: int = 0) -> None:
        self.model, self.snapshot, self.state = model, snapshot, snapshot.state()
        shape, n_tokens = model.geometry, len(self.state.positions)
        self.layer = ipywidgets.IntSlider(value=layer, max=shape.n_layer - 1, description="Layer", **LOOK)
        self.head = ipywidgets.IntSlider(value=head, max=max(shape.heads) - 1, description="KV head", **LOOK)
        self.first = ipywidgets.IntSlider(max=max(0, n_tokens - 1), description="From token", **LOOK)
        super().__init__([self.layer, self.head, self.first])

    def figure(self) -> Figure:
        """Keys beside values."""
        first, last = self._positions[[0, -1]]
        title = f"Layer {self.layer.value}, head {self._head}, tokens {first:,} to {last:,}"
        return studies.keys_and_values(*self._keys_and_values(), title, first=int(first))

    def data(self) -> pd.DataFrame:
        """The numbers shown, a row per token: position, k0 ..., v0 ..."""
        keys, values = map(pd.DataFrame, self._keys_and_values())
        positions = pd.Series(self._positions, name="position")
        return pd.concat([positions, keys.add_prefix("k"), values.add_prefix("v")], axis=1)

    def words(self) -> str:
        """Size of the snapshot, where the layer's bytes are, and the text of the first tokens shown."""
        parts = self.state.parts
        row = f"layer {self.layer.value}"
        of_layer = parts[parts.part.isin([f"K of {row}", f"V of {row}"])]
        text = self.model.detokenize(self.snapshot.tokens[self._positions[0] :][:24].tolist(), special=True)
        rows = [
            ("whole snapshot", f"{size(self.snapshot.nbytes)}, {len(self.snapshot.tokens):,} tokens"),
            *((part.part, f"{size(part.bytes)}, from byte {part.offset:,}") for part in of_layer.itertuples()),
            ("text of the first tokens shown", text),
        ]
        return html_table(rows, f"KV state of {self.model.name}")

    @property
    def _window(self) -> slice:
        """The rows of this layer from the chosen token on; a sliding-window layer holds only the last tokens."""
        positions = self.state.positions_of(self.layer.value)
        start = min(max(0, self.first.value - int(positions[0])), len(positions) - 1)
        return slice(start, start + _SHOWN)

    @property
    def _positions(self) -> np.ndarray:
        return self.state.positions_of(self.layer.value)[self._window]

    @property
    def _head(self) -> int:
        return min(self.head.value, self.model.geometry.heads[self.layer.value] - 1)

    def _keys_and_values(self) -> tuple[np.ndarray, np.ndarray]:
        layer, at = self.layer.value, (self._window, self._head)
        return self.state.keys(layer)[at], self.state.values(layer)[at]


snapshot_inspector = SnapshotInspector
