"""Limits: what a restore cannot be faster than, the copying of its bytes in memory."""

import timeit
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.snapshot import KVSnapshot
from swarmkv_lab.snapshot.state import SequenceState


def restore_against_memcpy(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    rounds: int = 9,
    settings: ContextSettings = ContextSettings(),  # noqa: B008 it is frozen
) -> dict[str, Any]:
    """Restore beside two copies of the same bytes between warm buffers, interleaved; medians in ms.

    memcpy_ms: one block, which the C library writes past the caches; ratio: restore over that. pieces_ms: the pieces
    that llama.cpp's cache is made of (a layer's keys; with flash attention off, each element of its values for all
    tokens), which are too small for that.
    """
    with model.open_context(settings.sized(len(tokens))) as ctx:
        ctx.decode(tokens)
        snapshot = KVSnapshot.capture(ctx, tokens)
        target = snapshot.data.copy()
        pieces = _pieces(snapshot, model, ctx.n_ctx) if model.sized else []

        def copy_pieces() -> None:
            for into, piece in pieces:
                np.copyto(into, piece)

        calls: tuple[Callable[[], None], ...] = (
            lambda: snapshot.restore(ctx),
            lambda: np.copyto(target, snapshot.data),
            copy_pieces,
        )
        seconds = [[timeit.timeit(call, number=1) for call in calls] for _ in range(rounds + 1)]
    restore, memcpy, in_pieces = (float(each) * 1e3 for each in np.median(seconds[1:], axis=0))
    times = {"restore_ms": restore, "memcpy_ms": memcpy, "pieces_ms": in_pieces if pieces else None}
    return {"bytes": snapshot.nbytes, **times, "ratio": restore / memcpy}


def _pieces(snapshot: KVSnapshot, model: Model, n_ctx: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(where to, what) of each layer's keys and values: rows of bytes that lie apart as in a cache of n_ctx tokens."""
    parts = SequenceState(snapshot.data, model.geometry).parts.set_index("part")
    pairs = []
    for name in parts.index[parts.index.str.fullmatch(r"[KV] of layer \d+")]:
        start, n_bytes = int(parts.offset[name]), int(parts.bytes[name])
        rows = snapshot.data[start : start + n_bytes].reshape(int(parts.value.get(f"{name}: elements", 1)), -1)
        cache = np.zeros((len(rows), rows.shape[1] * n_ctx // len(snapshot.tokens)), np.uint8)
        pairs.append((cache[:, : rows.shape[1]], rows))
    return pairs
