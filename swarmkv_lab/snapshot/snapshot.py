"""KVSnapshot: the KV state of one prefix, captured once, restored into as many contexts as there are agents."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from swarmkv_lab.errors import ContextBudgetError, SnapshotCorruptError, SwarmKVError
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.weights import Weights
from swarmkv_lab.snapshot import storage
from swarmkv_lab.snapshot.file import SnapshotHeader
from swarmkv_lab.snapshot.identity import KVIdentity
from swarmkv_lab.snapshot.state import SequenceState


class KVSnapshot:
    """A sequence's KV state on the host: read-only bytes that any number of branches restore from.

    ``data``: uint8 (nbytes,), llama.cpp's own sequence state; when the snapshot was loaded from a file, touch it only
    inside ``pinned()``. ``tokens``: int32 (n,), the prefix that it holds. ``identity``: what it belongs to.
    """

    def __init__(
        self,
        data: np.ndarray,
        tokens: np.ndarray,
        identity: KVIdentity,
        *,
        source: storage.Source | None = None,
        header: SnapshotHeader | None = None,
    ) -> None:
        """source: whose bytes the data are. header: of the file, when its checksum is still to be compared."""
        for array in (data, tokens):
            array.flags.writeable = False
        self.data = data
        self.tokens = tokens
        self.identity = identity
        self._source = source or storage.InMemory(data)
        self._header = header
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
            if ctx.n_past(seq_id) != len(ids):
                raise SwarmKVError(
                    f"sequence {seq_id} holds {ctx.n_past(seq_id):,} tokens and {len(ids):,} were named: "
                    "capture right after the decode of exactly these tokens"
                )
            snapshot = cls(ctx.get_state(seq_id), ids, KVIdentity.of(ctx))
        snapshot._checked = True  # llama.cpp wrote it, just now
        return snapshot

    def restore(self, ctx: Context, seq_id: int = 0) -> None:
        """Replace a sequence by this prefix; the next decode starts at position len(tokens). No copy of ours is made.

        Raises SnapshotMismatchError, ContextBudgetError or SnapshotCorruptError before a byte reaches llama.cpp.
        """
        self.identity.require(KVIdentity.of(ctx))
        if len(self.tokens) > ctx.n_ctx_seq:
            raise ContextBudgetError(
                f"the snapshot holds {len(self.tokens):,} tokens and the context {ctx.n_ctx_seq:,}: make it larger"
            )
        with ctx.guard, self.pinned():
            self._check()
            ctx.set_state(self.data, seq_id)
            if ctx.n_past(seq_id) != len(self.tokens):
                n_past = ctx.n_past(seq_id)
                ctx.clear(seq_id)
                raise SnapshotCorruptError(f"the state ends at {n_past:,} tokens, not at its {len(self.tokens):,}")

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: whole under its name, or not at all. Also to an fsspec URL (s3://, memory://).

        Raises SwarmKVError with the reason; an earlier file then stays as it was.
        """
        if self.identity.geometry is None:
            raise SwarmKVError(
                f"a snapshot of {self.identity.model_name} ({self.identity.architecture}) cannot be saved: "
                "what it must look like is not known, so that it could not be checked when it is loaded"
            )
        with self.pinned():
            self._check()
            header = SnapshotHeader.of(self.identity, self.tokens, self.data)
            with storage.write(path) as file:
                for part in (header.render(), self.tokens.data, self.data.data):
                    file.write(part)

    @classmethod
    def load(cls, path: str | Path, model: Weights, *, defer_check: bool = False) -> "KVSnapshot":
        """A saved snapshot for this model, memory mapped where the system keeps a mapped file still.

        defer_check: leave the state's checksum, which reads every byte, to the first use. Header and tokens are checked
        at once. Raises SwarmKVError when there is no such file, SnapshotCorruptError when it is damaged,
        SnapshotMismatchError when it is another model's or llama.cpp's.
        """
        source = storage.read(path)
        with source.pinned():
            header = SnapshotHeader.read(source.data, Path(path).name)
            identity = header.identity
            identity.require(KVIdentity.asked_for(model, identity.settings))
            tokens, data = header.split(source.data)
            snapshot = cls(data, tokens.copy(), identity, source=source, header=header)
            if not defer_check:
                snapshot._check()
        return snapshot

    def pinned(self) -> AbstractContextManager[None]:
        """While this lasts a loaded snapshot's file cannot be changed, and ``data`` can be read."""
        return self._source.pinned()

    def state(self) -> SequenceState:
        """The bytes taken apart: positions, and each layer's keys and values."""
        if self.identity.geometry is None:
            raise SwarmKVError(f"{self.identity.architecture}: the geometry of its state is not known")
        with self.pinned():
            return SequenceState(self._own_data(), self.identity.geometry)

    def copy(self) -> "KVSnapshot":
        """The same snapshot in memory of its own, as the article copies the host buffer for each branch."""
        with self.pinned():
            self._check()
            snapshot = KVSnapshot(self.data.copy(), self.tokens, self.identity)
        snapshot._checked = True
        return snapshot

    def _own_data(self) -> np.ndarray:
        """The bytes, to keep for longer than ``pinned()`` lasts."""
        return self.data if isinstance(self._source, storage.InMemory) else self.data.copy()

    def _check(self) -> None:
        """Once: that the state is what was saved, and what a state of these tokens and this identity looks like."""
        if self._checked:
            return
        if self._header is not None:
            self._header.require_state(self.data)
        if (geometry := self.identity.geometry) is not None:
            SequenceState(self.data, geometry).require(len(self.tokens), self.identity)
        self._checked = True


def describe(path: str | Path) -> dict[str, Any]:
    """What a snapshot file says of itself, as a dict; header, checksums and structure are checked, no model is needed.

    Raises SwarmKVError when there is no such file, SnapshotCorruptError when it is damaged.
    """
    source = storage.read(path)
    with source.pinned():
        header = SnapshotHeader.read(source.data, Path(path).name)
        tokens, data = header.split(source.data)
        KVSnapshot(data, tokens.copy(), header.identity, source=source, header=header)._check()
    return {"tokens": header.n_tokens, "kv_bytes": header.kv_bytes, "file_bytes": header.end, **header.metadata}
