"""SequenceState: what the bytes of a snapshot are, read as numpy arrays that look into them."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from gguf.quants import dequantize

from swarmkv_lab.errors import SnapshotCorruptError, SwarmKVError
from swarmkv_lab.sizing.geometry import KV_TYPES, KVGeometry, ggml_type, is_quantized, row_bytes

if TYPE_CHECKING:
    from swarmkv_lab.snapshot.identity import KVIdentity

_MAGIC = 0xAF143CD8  # of llama_state_seq_get_data
_TYPES = {int(ggml_type(name)): name for name in KV_TYPES}


class SequenceState:
    """A sequence's state taken apart: positions, and each layer's keys and values.

    ``data``: the bytes, uint8 (nbytes,). ``parts``: DataFrame, one row per field in their order: part, offset, bytes,
    and its value where it is one number. Nothing is copied until keys or values are asked for, which quantized types
    have none to show of. Raises SnapshotCorruptError where the bytes are not such a state of this geometry.
    """

    def __init__(self, data: np.ndarray, geometry: KVGeometry) -> None:
        self.data, self.geometry = data, geometry
        self._at = 0
        self._parts: list[dict[str, Any]] = []
        self._rows: dict[tuple[str, int], tuple[np.ndarray, str]] = {}
        self._caches: list[tuple[np.ndarray, int]] = []  # of each cache: its cells, whether V is transposed
        self._number("magic", "<u4", _MAGIC)
        self.seq_id = self._number("sequence", "<i4")
        for layers, _ in geometry.caches():
            self._caches.append(self._read_cache(layers))
        if self._at != data.nbytes:
            raise SnapshotCorruptError(f"the state should end at byte {self._at:,}, and has {data.nbytes:,}")

    @classmethod
    def predicted(cls, geometry: KVGeometry, n_tokens: int) -> "SequenceState":
        """What a capture of n_tokens would give, in f16 without flash attention: its parts are right, K and V are 0."""
        return _Predicted(geometry, n_tokens)

    def require(self, n_tokens: int, said: "KVIdentity") -> None:
        """Raise SnapshotCorruptError unless this is what capturing n_tokens in a context of this identity gives.

        Cells may lie in any order; each position from its start on (in a window without swa_full: the last ones) is
        there once.
        """
        expected = self.geometry.caches(n_tokens, swa_full=said.swa_full)
        for (_, n), (cells, transposed) in zip(expected, self._caches, strict=True):
            first, end = said.start + n_tokens - n, said.start + n_tokens
            if n < 1 or not np.array_equal(np.sort(cells[:, 0]), np.arange(first, end)):
                raise SnapshotCorruptError(f"the state's {len(cells):,} cells are not at {first:,} to {end - 1:,}")
            if not (np.all(cells[:, 1] == 1) and np.all(cells[:, 2] == self.seq_id)):
                raise SnapshotCorruptError(f"the state has cells of other sequences than its {self.seq_id}")
            if self.geometry.head_dim_v and bool(transposed) == said.flash_attn:
                about = f"flash_attn={said.flash_attn}"
                raise SnapshotCorruptError(f"values transposed is {transposed}, and the header says {about}")
        kinds = dict(zip("KV", said.kv_type, strict=True))
        for (which, layer), (_, kind) in self._rows.items():
            if kind != kinds[which]:
                raise SnapshotCorruptError(f"{which} of layer {layer} is {kind}, and its header says {kinds[which]}")

    @property
    def parts(self) -> pd.DataFrame:
        """The fields in their order."""
        return pd.DataFrame(self._parts, columns=["part", "offset", "bytes", "value"]).astype({"value": "Int64"})

    @property
    def positions(self) -> np.ndarray:
        """The positions of all that is held, int32 (n,)."""
        return max((cells for cells, _ in self._caches), key=len)[:, 0]

    def keys(self, layer: int) -> np.ndarray:
        """A layer's keys, float32 (n, n_head_kv, head_dim_k), rotated to their positions."""
        return self._elements("K", layer, self.geometry.head_dim_k)

    def values(self, layer: int) -> np.ndarray:
        """A layer's values, float32 (n, n_head_kv, head_dim_v)."""
        return self._elements("V", layer, self.geometry.head_dim_v)

    def _elements(self, which: str, layer: int, head_dim: int) -> np.ndarray:
        if (which, layer) not in self._rows:
            about = f"{len(self.positions):,} tokens in {self.geometry.n_layer} layers"
            only = "" if self.geometry.head_dim_v else ", keys only"
            raise SwarmKVError(f"the state has no {which} of layer {layer}: it has {about}{only}")
        rows, kv_type = self._rows[which, layer]
        if is_quantized(kv_type):  # llama.cpp rotates a head's elements before it quantizes them
            raise SwarmKVError(f"{which} is {kv_type}: elements are read of f32, f16 and bf16 alone")
        whole = np.ascontiguousarray(rows).reshape(len(rows), -1)
        elements: np.ndarray = dequantize(whole, ggml_type(kv_type)).reshape(len(rows), -1, head_dim)
        return elements

    def _read_cache(self, layers: list[int]) -> tuple[np.ndarray, int]:
        """(cells, whether values are transposed): n cells, then all layers' keys, then all layers' values."""
        self._number("streams", "<u4", 1)  # one cache for all sequences
        if not (n := self._number("cells", "<u4")):
            return np.empty((0, 3), np.int32), 0
        cells = self._bytes("cells' positions and sequences", 12 * n).view("<i4").reshape(n, 3)
        transposed = self._number("values transposed", "<u4")
        if transposed not in (0, 1):
            raise SnapshotCorruptError(f"values transposed is {transposed}, and it is 0 or 1")
        self._number("layers", "<u4", len(layers))
        for layer in layers:
            self._read_rows("K", layer, n, self.geometry.head_dim_k, transposed=False)
        if self.geometry.head_dim_v:
            for layer in layers:
                self._read_rows("V", layer, n, self.geometry.head_dim_v, transposed=bool(transposed))
        return cells, transposed

    def _read_rows(self, which: str, layer: int, n: int, head_dim: int, *, transposed: bool) -> None:
        name = f"{which} of layer {layer}"
        number = self._number(f"{name}: type", "<i4")
        if number not in _TYPES:
            raise SnapshotCorruptError(f"{name} is of ggml's type {number}, which is not one of a KV cache's")
        width = self.geometry.heads[layer] * head_dim
        expected = row_bytes(width, _TYPES[number])
        if transposed:  # one element's bytes, the number of elements, and for each element all cells
            size = self._number(f"{name}: element bytes", "<u4", expected // width)
            self._number(f"{name}: elements", "<u4", width)
            rows = self._bytes(name, n * expected).reshape(width, n, size).transpose(1, 0, 2)
        else:
            self._number(f"{name}: row bytes", "<u8", expected)
            rows = self._bytes(name, n * expected).reshape(n, 1, expected)
        self._rows[which, layer] = rows, _TYPES[number]

    def _number(self, part: str, dtype: str, expected: int | None = None) -> int:
        value = int(self._bytes(part, np.dtype(dtype).itemsize).view(dtype)[0])
        if expected is not None and value != expected:
            raise SnapshotCorruptError(f"{part} is {value:,} in the state, and {expected:,} in one of this model")
        self._parts[-1]["value"] = value
        return value

    def _bytes(self, part: str, n_bytes: int) -> np.ndarray:
        end = self._at + n_bytes
        if end > self.data.nbytes:
            raise SnapshotCorruptError(f"the state has {self.data.nbytes:,} bytes, and {part} would end at {end:,}")
        self._parts.append({"part": part, "offset": self._at, "bytes": n_bytes, "value": None})
        self._at = end
        return self.data[end - n_bytes : end]


class _Predicted(SequenceState):
    """A state that no context has written: each number is what a capture would write where the parser asks for it."""

    def __init__(self, geometry: KVGeometry, n_tokens: int) -> None:
        self._cells = [n for _, n in geometry.caches(n_tokens)]
        super().__init__(np.zeros(geometry.snapshot_bytes(n_tokens), np.uint8), geometry)

    def _number(self, part: str, dtype: str, expected: int | None = None) -> int:
        self._bytes(part, np.dtype(dtype).itemsize)
        if expected is None:
            known = {"sequence": 0, "cells": self._cells[len(self._caches)], "values transposed": 1}
            expected = known[part] if part in known else int(ggml_type("f16"))
        self._parts[-1]["value"] = expected
        return expected
