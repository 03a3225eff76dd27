"""The two layouts of a state's values: with flash attention a row per cell, without it (transposed) one per element."""

import re

import numpy as np

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.sizing.geometry import KVGeometry
from swarmkv_lab.snapshot.state import SequenceState

_VALUES = re.compile(r"V of layer (\d+)")
_BLOCK = 16  # cells turned at a time; whole layers at once take ten times as long where a row is a power of two


def other_layout(data: np.ndarray, geometry: KVGeometry) -> np.ndarray:
    """The same state with its values in the other layout: uint8 (nbytes,), in memory of its own.

    Every part stays where it is. The values are turned, and what is said of them is written anew: whether they are
    transposed, and in eight bytes either a row's or an element's bytes and the number of elements.
    Raises SwarmKVError for quantized values, whose blocks are no elements, and SnapshotCorruptError as SequenceState.
    """
    state = SequenceState(data, geometry)
    other = np.empty_like(data)
    transposed = False
    for part, start, size in state.parts[["part", "offset", "bytes"]].itertuples(index=False):
        given, into = data[start : start + size], other[start : start + size]
        if part == "values transposed":  # said once for each of the caches, before its values
            transposed = bool(given.view("<u4")[0])
            into.view("<u4")[0] = not transposed
        elif values := _VALUES.fullmatch(part):
            layer = int(values[1])
            n_cells, width = len(state.positions_of(layer)), geometry.heads[layer] * geometry.head_dim_v
            n_bytes, rest = divmod(size, n_cells * width)
            if rest or not n_bytes:
                raise SwarmKVError(f"{part} is quantized: such values are stored in one layout only, flash attention's")
            element = f"<u{n_bytes}"
            said = other[start - 8 : start]
            if transposed:
                said.view("<u8")[0] = n_bytes * width
                _turn(given.view(element).reshape(width, n_cells).T, into.view(element).reshape(n_cells, width))
            else:
                said.view("<u4")[:] = n_bytes, width
                _turn(given.view(element).reshape(n_cells, width), into.view(element).reshape(width, n_cells).T)
        else:
            into[:] = given
    return other


def _turn(given: np.ndarray, into: np.ndarray) -> None:
    """Copy (cells, elements), one of which lies transposed in memory, a few cells at a time."""
    for start in range(0, len(given), _BLOCK):
        into[start : start + _BLOCK] = given[start : start + _BLOCK]
