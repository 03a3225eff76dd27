"""weigh: a model's KV cache on the scales, or its twin's: bytes predicted and measured, and what moving them takes."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from swarmkv_lab.catalogue import geometry
from swarmkv_lab.llama import Model
from swarmkv_lab.models import load_model
from swarmkv_lab.sizing import KVGeometry, KVType
from swarmkv_lab.snapshot import KVSnapshot
from swarmkv_lab.twins import twin


def weigh(
    source: str | Path | Model | KVGeometry,
    n_tokens: int,
    kv_type: KVType = "f16",
    *,
    progress: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Fill a cache with n_tokens and ask llama.cpp: a record of bytes and of times in ms (warm, measured).

    A GGUF or a Model is measured itself, a catalogue name or a geometry by its twin. Raises ContextBudgetError, with
    the bytes that are needed, when the machine's memory is too small.
    """
    shape = geometry(source)
    with ExitStack() as stack:
        model = source
        if not isinstance(source, Model):
            own = not isinstance(source, KVGeometry) and str(source).endswith(".gguf")
            model = stack.enter_context(load_model(source if own else twin(shape)))
        ctx = stack.enter_context(model.context(max(n_tokens, 1), n_seq_max=2, kv_type=kv_type, **settings))
        tokens = np.random.default_rng(0).integers(0, model.n_vocab, n_tokens, dtype=np.int32)
        ctx.decode(tokens, progress=progress)
        snapshot = KVSnapshot.capture(ctx, tokens)
        measured = ctx.state_bytes()
        return {
            "tokens": n_tokens,
            "predicted_bytes": shape.snapshot_bytes(n_tokens, kv_type),
            "measured_bytes": measured,
            "difference": measured - shape.snapshot_bytes(n_tokens, kv_type),
            "capture_ms": _ms(lambda: KVSnapshot.capture(ctx, tokens)),
            "restore_ms": _ms(lambda: snapshot.restore(ctx)),
            "share_ms": _ms(lambda: ctx.share(0, 1)),
        }


def _ms(call: Callable[[], Any], rounds: int = 5) -> float:
    """The median of a few calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times))
