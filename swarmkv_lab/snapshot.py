"""KVSnapshot: the KV state of one prefix, captured once, restored into as many contexts as there are agents."""

from dataclasses import dataclass, fields

import numpy as np

from swarmkv_lab.errors import ContextBudgetError, SnapshotCorruptError, SnapshotMismatchError, SwarmKVError
from swarmkv_lab.llama import STATE_VERSION, Context
from swarmkv_lab.sizing import KVGeometry
from swarmkv_lab.state import SequenceState


@dataclass(frozen=True)
class KVIdentity:
    """All that must agree between the context that was captured and the one that is restored."""

    model: str
    """Model.content_hash"""
    kv_type: tuple[str, str]
    """of K and of V"""
    flash_attn: bool
    """without it V is stored transposed"""
    n_stream: int
    """1 for a unified cache, else one stream a sequence"""
    state_version: int
    """llama.cpp's LLAMA_STATE_SEQ_VERSION"""

    @classmethod
    def of(cls, ctx: Context) -> "KVIdentity":
        """A context's identity."""
        return cls(ctx.model.content_hash, ctx.kv_type, ctx.flash_attn, ctx.n_stream, STATE_VERSION)

    def require(self, other: "KVIdentity") -> None:
        """Raise SnapshotMismatchError naming each difference between this snapshot's identity and a context's."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        differences = [f"{name} {mine!r}, the context has {its!r}" for name, mine, its in pairs if mine != its]
        if differences:
            raise SnapshotMismatchError(
                f"the snapshot has {'; '.join(differences)}: restore it into a context with the snapshot's settings"
            )


class KVSnapshot:
    """A sequence's KV state in host memory: read-only bytes that any number of branches restore from.

    ``data``: uint8 (nbytes,), llama.cpp's own sequence state. ``tokens``: int32 (n,), the prefix that it holds.
    """

    def __init__(self, data: np.ndarray, tokens: np.ndarray, identity: KVIdentity) -> None:
        for array in (data, tokens):
            array.flags.writeable = False
        self.data = data
        self.tokens = tokens
        self.identity = identity

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return self.data.nbytes

    @classmethod
    def capture(cls, ctx: Context, tokens: np.ndarray | list[int], seq_id: int = 0) -> "KVSnapshot":
        """Copy a sequence's state to the host; ``tokens`` are the ones that it was decoded from."""
        ids = ctx.model.check_tokens(tokens).copy()
        with ctx.guard:
            if ctx.n_past(seq_id) != len(ids):
                raise SwarmKVError(
                    f"sequence {seq_id} holds {ctx.n_past(seq_id):,} tokens and {len(ids):,} were named: "
                    "capture right after the decode of exactly these tokens"
                )
            return cls(ctx.get_state(seq_id), ids, KVIdentity.of(ctx))

    def restore(self, ctx: Context, seq_id: int = 0) -> None:
        """Replace a sequence by this prefix; the next decode starts at position len(tokens). No copy of ours is made.

        Raises SnapshotMismatchError or ContextBudgetError before a byte reaches llama.cpp.
        """
        self.identity.require(KVIdentity.of(ctx))
        if len(self.tokens) > ctx.n_ctx_seq:
            raise ContextBudgetError(
                f"the snapshot holds {len(self.tokens):,} tokens and the context {ctx.n_ctx_seq:,}: make it larger"
            )
        with ctx.guard:
            ctx.set_state(self.data, seq_id)
            if ctx.n_past(seq_id) != len(self.tokens):
                n_past = ctx.n_past(seq_id)
                ctx.clear(seq_id)
                raise SnapshotCorruptError(f"the state ends at {n_past:,} tokens, not at its {len(self.tokens):,}")

    def state(self, geometry: KVGeometry) -> SequenceState:
        """The bytes taken apart: positions, and each layer's keys and values."""
        return SequenceState(self.data, geometry)

    def copy(self) -> "KVSnapshot":
        """The same snapshot in memory of its own, as the article copies the host buffer for each branch."""
        return KVSnapshot(self.data.copy(), self.tokens, self.identity)
