"""Limits: a restore cannot be faster than a copy of its bytes in memory."""

import timeit
from collections.abc import Sequence
from typing import Any

import numpy as np

from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.snapshot import KVSnapshot


def restore_against_memcpy(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    rounds: int = 9,
    settings: ContextSettings = ContextSettings(),  # noqa: B008 it is frozen
) -> dict[str, Any]:
    """Time a restore and a copy of the same bytes between warm buffers, in turns: medians in ms.

    memcpy_ms: copied as one block, where llama.cpp's cache is many pieces: a layer's keys, or without flash attention
    one element of a layer's values for all tokens. ratio: restore_ms over memcpy_ms.
    """
    with model.open_context(settings.sized(len(tokens))) as ctx:
        ctx.decode(tokens)
        snapshot = KVSnapshot.capture(ctx, tokens)
        target = snapshot.data.copy()
        calls = (lambda: snapshot.restore(ctx), lambda: np.copyto(target, snapshot.data))
        seconds = [[timeit.timeit(call, number=1) for call in calls] for _ in range(rounds + 1)]
    restore, memcpy = 1e3 * np.median(seconds[1:], axis=0)  # the first round is a warm-up
    times = {"restore_ms": float(restore), "memcpy_ms": float(memcpy)}
    return {"bytes": snapshot.nbytes, **times, "ratio": float(restore / memcpy)}
