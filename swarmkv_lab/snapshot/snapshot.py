"""KVSnapshot: the KV state of one prefix, captured once, restored into as many contexts as there are agents."""

import io
import pickle
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from swarmkv_lab.errors import ContextBudgetError, SnapshotCorruptError, SwarmKVError
from swarmkv_lab.files import replacing
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.model import Model
from swarmkv_lab.snapshot.file import SnapshotHeader, reading
from swarmkv_lab.snapshot.identity import KVIdentity
from swarmkv_lab.snapshot.state import SequenceState


class KVSnapshot:
    """A sequence's KV state on the host: read-only bytes that any number of branches restore from.

    ``data``: uint8 (nbytes,), llama.cpp's own sequence state. ``tokens``: int32 (n,), the prefix that it holds.
    ``identity``: what it belongs to. A pickle or a copy of it is checked as a file is.
    """

    def __init__(self, data: np.ndarray, tokens: np.ndarray, identity: KVIdentity) -> None:
        for name, array, dtype in (("data", data, np.uint8), ("tokens", tokens, np.int32)):
            is_row = isinstance(array, np.ndarray) and array.dtype == dtype and array.ndim == 1
            if not is_row or not array.flags.c_contiguous:
                raise SwarmKVError(f"a snapshot's {name} is one row of {np.dtype(dtype)} without gaps")
            array.flags.writeable = False
        self.data = data
        self.tokens = tokens
        self.identity = identity
        self._checked = False

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return self.data.nbytes

    @classmethod
    def capture(cls, ctx: Context, tokens: Sequence[int] | np.ndarray, seq_id: int = 0) -> "KVSnapshot":
        """Copy a sequence's state to the host; ``tokens`` are the ones that it was decoded from."""
        ids = ctx.model.check_tokens(tokens).copy()
        with ctx.guard:
            start, composed = ctx.origins[seq_id]
            if (n := ctx.n_past(seq_id) - start) != len(ids):
                about = f"sequence {seq_id} holds {n:,} tokens and {len(ids):,} were named"
                raise SwarmKVError(f"{about}: capture right after the decode of exactly these")
            identity = replace(KVIdentity.of(ctx.model, ctx.settings), start=start, composed=composed)
            snapshot = cls(ctx.get_state(seq_id), ids, identity)
        snapshot._check()
        return snapshot

    def restore(self, ctx: Context, seq_id: int = 0) -> None:
        """Replace a sequence by this prefix; the next decode starts at position len(tokens). No copy of ours is made.

        Raises SnapshotMismatchError, ContextBudgetError or SnapshotCorruptError before a byte reaches llama.cpp.
        """
        self.identity.require(KVIdentity.of(ctx.model, ctx.settings))
        if (end := self.identity.start + len(self.tokens)) > ctx.n_ctx_seq:
            raise ContextBudgetError(f"the snapshot ends at {end:,} tokens and n_ctx={ctx.n_ctx_seq:,}: make it larger")
        self._check()
        with ctx.guard:
            ctx.set_state(self.data, seq_id)
            if (n_past := ctx.n_past(seq_id)) != end:
                ctx.clear(seq_id)
                raise SnapshotCorruptError(f"the state ends at position {n_past:,}, not at its {end:,}")
            ctx.origins[seq_id] = self.identity.start, self.identity.composed

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: whole under its name, or not at all.

        Raises SwarmKVError with the reason; an earlier file then stays as it was.
        """
        parts = self._parts
        with replacing(path) as file:
            file.writelines(parts)

    @classmethod
    def load(cls, path: str | Path, model: Model) -> "KVSnapshot":
        """A saved snapshot for this model.

        Raises SwarmKVError when there is no such file, SnapshotCorruptError when it is damaged, SnapshotMismatchError
        when it is another model's or llama.cpp's.
        """
        with reading(path) as (file, size):
            return cls._read(file, size, str(path), model)[0]

    @classmethod
    def describe(cls, path: str | Path) -> dict[str, Any]:
        """What a file says of itself; errors as of ``load``, but no model is needed."""
        with reading(path) as (file, size):
            snapshot, metadata = cls._read(file, size, str(path))
        return {"tokens": len(snapshot.tokens), "kv_bytes": snapshot.nbytes, "file_bytes": size, **metadata}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        header, tokens, state = self._parts  # from protocol 5 on the state travels beside the pickle, without a copy
        return KVSnapshot._from_parts, (header, bytes(tokens), (pickle.PickleBuffer if protocol >= 5 else bytes)(state))

    @classmethod
    def _from_parts(cls, header: bytes, tokens: bytes, data: Any) -> "KVSnapshot":
        """What a pickle holds, checked as a file is."""
        begins, state = header + tokens, np.frombuffer(data, np.uint8)
        return cls._read(io.BytesIO(begins), len(begins) + state.nbytes, "the pickle", state=state)[0]

    @classmethod
    def _read(
        cls, file: BinaryIO, size: int, name: str, model: Model | None = None, state: np.ndarray | None = None
    ) -> tuple["KVSnapshot", dict[str, str]]:
        """(the snapshot, what its file says of it). state: where it does not follow in the file."""
        header, tokens = SnapshotHeader.read(file, size, name)
        identity = header.identity
        if model is not None:
            asked = KVIdentity.of(model, identity.settings)
            identity.require(replace(asked, long_rope=identity.long_rope))  # that is the context's, which is not here
        snapshot = cls(header.read_state(file) if state is None else header.checked(state), tokens, identity)
        snapshot._check()
        return snapshot, header.metadata

    @cached_property
    def _parts(self) -> tuple[bytes | memoryview, ...]:
        """The parts of the file, in their order; the state is read once for its checksum, as it does not change."""
        self._check()
        header = SnapshotHeader.of(self.identity, self.tokens, self.data).render()
        return header, self.tokens.data, self.data.data

    def state(self) -> SequenceState:
        """The bytes taken apart: positions, and each layer's keys and values."""
        if self.identity.geometry is None:
            raise SwarmKVError(f"{self.identity.architecture}: the geometry of its state is not known")
        return SequenceState(self.data, self.identity.geometry)

    def copy(self) -> "KVSnapshot":
        """The same snapshot in memory of its own, as the article copies the host buffer for each branch."""
        self._check()
        snapshot = KVSnapshot(self.data.copy(), self.tokens, self.identity)
        snapshot._checked = True
        return snapshot

    def _check(self) -> None:
        """Once: that the state is what a state of these tokens and this identity looks like."""
        if not self._checked and self.identity.geometry is not None:
            self.state().require(len(self.tokens), self.identity)
        self._checked = True
