"""Batch: a llama_batch whose columns are numpy arrays."""

import ctypes

import llama_cpp
import numpy as np

from swarmkv_lab.llama.api import pointer


class Batch:
    """The input of one llama_decode, up to ``n_batch`` rows, filled by whole columns rather than token by token."""

    def __init__(self, n_batch: int) -> None:
        self.token = np.empty(n_batch, np.int32)
        self.pos = np.empty(n_batch, np.int32)
        self.seq = np.empty(n_batch, np.int32)
        self.n_seq = np.ones(n_batch, np.int32)  # every row belongs to exactly one sequence
        self.wants_logits = np.empty(n_batch, np.int8)
        # llama_batch.seq_id is an array of pointers, one a row; row i's points at seq[i].
        self.seq_pointers = self.seq.ctypes.data + np.arange(n_batch, dtype=np.uintp) * self.seq.itemsize
        self.struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=pointer(self.token, ctypes.c_int32),
            embd=None,
            pos=pointer(self.pos, ctypes.c_int32),
            n_seq_id=pointer(self.n_seq, ctypes.c_int32),
            seq_id=pointer(self.seq_pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=pointer(self.wants_logits, ctypes.c_int8),
        )

    def fill(self, token: np.ndarray, pos: np.ndarray, seq: np.ndarray, ends: np.ndarray) -> llama_cpp.llama_batch:
        """Rows of token ids, positions and sequence ids; logits are asked for at the rows in ``ends``."""
        n = len(token)
        self.token[:n], self.pos[:n], self.seq[:n] = token, pos, seq
        self.wants_logits[:n] = 0
        self.wants_logits[ends] = 1
        self.struct.n_tokens = n
        return self.struct
