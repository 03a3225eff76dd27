"""Sequence states: llama.cpp's own bytes of a sequence, out of a context and back into one."""

import ctypes
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np

from swarmkv_lab.errors import SnapshotCorruptError
from swarmkv_lab.llama.api import pointer, require_memory, take_errors

if TYPE_CHECKING:
    from swarmkv_lab.llama.context import Context


class StateMethods:
    """The part of Context that reads and writes states."""

    def state_bytes(self: "Context", seq_id: int | None = 0) -> int:
        """Bytes of a sequence's state as it is now (llama_state_seq_get_size), or of the whole context's (None)."""
        with self.guard:
            if seq_id is None:
                return llama_cpp.llama_state_get_size(self.handle)
            self._check_seq(seq_id)
            return llama_cpp.llama_state_seq_get_size(self.handle, seq_id)

    def get_state(self: "Context", seq_id: int | None = 0) -> np.ndarray:
        """A sequence's state, uint8 (state_bytes,): one allocation of the right size, one llama_state_seq_get_data.

        None: the whole context's, by llama_state_get_data. That is another format, which set_state refuses.
        """
        with self.guard:
            size = self.state_bytes(seq_id)
            require_memory(size, "a snapshot")
            state = np.empty(size, np.uint8)
            target = pointer(state, ctypes.c_uint8)
            if seq_id is None:
                written = llama_cpp.llama_state_get_data(self.handle, target, size)
            else:
                written = llama_cpp.llama_state_seq_get_data(self.handle, target, size, seq_id)
        if written != size:
            raise SnapshotCorruptError(f"llama.cpp wrote {written:,} of {size:,} state bytes{take_errors()}")
        return state

    def set_state(self: "Context", state: np.ndarray, seq_id: int = 0) -> None:
        """Replace a sequence by a state, straight from the given uint8 buffer: one llama_state_seq_set_data."""
        with self.guard:
            self._check_seq(seq_id)
            self._forget(seq_id)
            take_errors()
            size = state.nbytes
            read = llama_cpp.llama_state_seq_set_data(self.handle, pointer(state, ctypes.c_uint8), size, seq_id)
            if read == 0 or read != size:  # 0 is llama.cpp's word for refused, also of 0 bytes
                self.clear(seq_id)
                raise SnapshotCorruptError(f"llama.cpp accepted {read:,} of {size:,} state bytes{take_errors()}")
