"""measure_kv: the bytes of a KV cache, predicted and measured, and the times to capture, restore and share it."""

import timeit
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import swarmkv_lab as lab
from swarmkv_lab.sizing.catalogue import is_file
from swarmkv_lab.sizing.geometry import KVType
from swarmkv_studies.common.twins import twin


def measure_kv(
    source: str | Path | lab.Model | lab.KVGeometry,
    n_tokens: int,
    kv_type: KVType = "f16",
    *,
    progress: bool = False,
    n_gpu_layers: int = -1,
    **settings: Any,
) -> dict[str, Any]:
    """Fill a KV cache with n_tokens random tokens and measure it: a record of bytes, and of median times in ms.

    source: a GGUF or a Model is measured itself; for a catalogue name or a geometry its twin is measured. n_gpu_layers:
    of what is loaded here. settings: as in Context. Raises ContextBudgetError, with the bytes that are needed, if the
    machine's memory is too small.
    """
    predicted = lab.snapshot_bytes(source, n_tokens, kv_type, n_seq_max=2, swa_full=settings.get("swa_full", False))
    with ExitStack() as stack:
        if isinstance(source, lab.Model):
            model = source
        else:
            by_twin = isinstance(source, lab.KVGeometry) or not is_file(source)
            path = twin(lab.geometry(source)) if by_twin else Path(str(source))
            model = stack.enter_context(lab.load_model(path, n_gpu_layers=n_gpu_layers))
        ctx = stack.enter_context(model.context(n_tokens, n_seq_max=2, kv_type=kv_type, **settings))
        tokens = np.random.default_rng(0).integers(0, model.n_vocab, n_tokens, dtype=np.int32)
        ctx.decode(tokens, progress=progress)
        snapshot = lab.KVSnapshot.capture(ctx, tokens)
        measured = ctx.state_bytes()
        return {
            "tokens": n_tokens,
            "predicted_bytes": predicted,
            "measured_bytes": measured,
            "difference": measured - predicted,
            "capture_ms": _ms(lambda: lab.KVSnapshot.capture(ctx, tokens)),
            "restore_ms": _ms(lambda: snapshot.restore(ctx)),
            "share_ms": _ms(lambda: ctx.share(0, 1)),
        }


def _ms(call: Callable[[], Any]) -> float:
    """The median time of 5 calls, ms."""
    return float(np.median(timeit.repeat(call, number=1, repeat=5))) * 1e3
