"""The two layouts of a state's values: with flash attention a row per cell, without it (transposed) one per element.

So a document can be prefilled with flash attention, and its branches decoded without it.
"""

import re
from dataclasses import replace

import numpy as np

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.snapshot.snapshot import KVSnapshot
from swarmkv_lab.snapshot.state import SequenceState

_VALUES = re.compile(r"V of layer (\d+)")
_BLOCK = 16  # cells turned at a time; whole layers at once take ten times as long where a row is a power of two


def without_flash_attention(snapshot: KVSnapshot) -> KVSnapshot:
    """The same prefix for contexts that decode without flash attention: its values transposed, in memory of its own.

    A branch that goes on from it has other last bits than one whose prefix was prefilled without flash attention.
    Raises SwarmKVError for quantized values, which have one layout only, and where the geometry is not known.
    """
    if not snapshot.identity.flash_attn:
        raise SwarmKVError("the snapshot was captured without flash attention: its values are transposed already")
    return KVSnapshot(other_layout(snapshot.state()), snapshot.tokens, replace(snapshot.identity, flash_attn=False))


def other_layout(state: SequenceState) -> np.ndarray:
    """The bytes of the same state with its values in the other layout: uint8 (nbytes,).

    Every part stays where it is. The values are turned, and what is said of them is written anew: whether they are
    transposed, and in eight bytes either a row's or an element's bytes and the number of elements.
    """
    data, other = state.data, np.empty_like(state.data)
    transposed = False
    for part, start, size in state.parts[["part", "offset", "bytes"]].itertuples(index=False):
        given, into = data[start : start + size], other[start : start + size]
        if part == "values transposed":  # said once for each of the caches, before its values
            transposed = bool(given.view("<u4")[0])
            into.view("<u4")[0] = not transposed
        elif values := _VALUES.fullmatch(part):
            layer = int(values[1])
            n_cells, width = len(state.positions_of(layer)), state.geometry.heads[layer] * state.geometry.head_dim_v
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
