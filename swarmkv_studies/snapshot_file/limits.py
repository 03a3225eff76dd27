"""Limits: a restore cannot be faster than a copy of its bytes in memory."""

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
    """Time a restore and two copies of the same bytes between warm buffers, in turns: medians in ms.

    memcpy_ms: copied as one block, which the C library writes to memory past the processor's caches. ratio: restore_ms
    over memcpy_ms. pieces_ms: copied in the pieces of llama.cpp's cache (a layer's keys; without flash attention, one
    element of a layer's values for all tokens), too small for such writes; None if the model's geometry is unknown.
    """
    with model.open_context(settings.sized(len(tokens))) as ctx:
        ctx.decode(tokens)
        snapshot = KVSnapshot.capture(ctx, tokens)
        target = snapshot.data.copy()
        pieces = _pieces(snapshot, model, ctx.n_ctx) if model.sized else []

        def copy_pieces() -> None:
            for into, piece in pieces:
                np.copyto(into, piece)

        restore, memcpy, in_pieces = _medians_ms(
            rounds, lambda: snapshot.restore(ctx), lambda: np.copyto(target, snapshot.data), copy_pieces
        )
    times = {"restore_ms": restore, "memcpy_ms": memcpy, "pieces_ms": in_pieces if pieces else None}
    return {"bytes": snapshot.nbytes, **times, "ratio": restore / memcpy}


def _medians_ms(rounds: int, *calls: Callable[[], Any]) -> list[float]:
    """The median time of each call in ms; they take turns, and the first round is a warm-up."""
    seconds = [[timeit.timeit(call, number=1) for call in calls] for _ in range(rounds + 1)]
    return [float(each) * 1e3 for each in np.median(seconds[1:], axis=0)]


def _pieces(snapshot: KVSnapshot, model: Model, n_ctx: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(destination, source) of each layer's keys and values: rows of bytes, spaced as in a cache of n_ctx tokens."""
    parts = SequenceState(snapshot.data, model.geometry).parts.set_index("part")
    pairs = []
    for name in parts.index[parts.index.str.fullmatch(r"[KV] of layer \d+")]:
        start, n_bytes = int(parts.offset[name]), int(parts.bytes[name])
        rows = snapshot.data[start : start + n_bytes].reshape(int(parts.value.get(f"{name}: elements", 1)), -1)
        cache = np.zeros((len(rows), rows.shape[1] * n_ctx // len(snapshot.tokens)), np.uint8)
        pairs.append((cache[:, : rows.shape[1]], rows))
    return pairs
