"""Limits: a restore cannot be faster than a copy of its bytes in memory, nor a load than reading its file."""

import tempfile
import timeit
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from swarmkv_lab.errors import whole_number
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.snapshot import KVSnapshot
from swarmkv_lab.snapshot.state import SequenceState

resource: Any = import_module("resource") if find_spec("resource") else None  # Windows has none


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


def load_against_read(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    rounds: int = 9,
    settings: ContextSettings = ContextSettings(),  # noqa: B008 it is frozen
) -> dict[str, Any]:
    """Time loading and restoring a saved snapshot, and reading its file into warm memory, in turns: medians in ms.

    The file is in the page cache. ratio: load_ms (with its checks, into fresh memory) and restore_ms over read_ms.
    """
    with model.open_context(settings.sized(len(tokens))) as ctx, tempfile.TemporaryDirectory() as folder:
        ctx.decode(tokens)
        snapshot = KVSnapshot.capture(ctx, tokens)
        path = Path(folder) / "doc.kv.safetensors"
        snapshot.save(path)
        warm = memoryview(bytearray(path.stat().st_size))

        def read() -> None:
            with path.open("rb") as file:
                file.readinto(warm)

        load, restore, plain = _medians_ms(
            rounds, lambda: KVSnapshot.load(path, model), lambda: snapshot.restore(ctx), read
        )
    times = {"load_ms": load, "restore_ms": restore, "read_ms": plain}
    return {"bytes": snapshot.nbytes, **times, "ratio": (load + restore) / plain}


def fresh_memory(n_bytes: int, rounds: int = 5) -> dict[str, Any]:
    """The time to copy n_bytes into memory that is new, and into memory that is not, and the page faults of each copy.

    first_ms: into new memory, the first time; again_ms: into new memory again, median; warm_ms: into memory that was
    written before, median. ..._faults: how often the system had to provide memory during such a copy, median; None
    where it does not say so (Windows). On a virtual machine the first time is the longest: its host provides the pages
    only then, and the system gives the same pages out again afterwards.
    """
    source = np.ones(whole_number("n_bytes", n_bytes, 1), np.uint8)

    def measured(copy: Callable[[], Any]) -> tuple[float, int]:
        before = _page_faults()
        return 1e3 * timeit.timeit(copy, number=1), _page_faults() - before

    copies = {"first": [measured(source.copy)], "again": [measured(source.copy) for _ in range(rounds)]}
    target = source.copy()
    copies["warm"] = [measured(lambda: np.copyto(target, source)) for _ in range(rounds)]
    medians = {name: np.median(pairs, axis=0).tolist() for name, pairs in copies.items()}
    faults = {f"{name}_faults": int(n) if resource else None for name, (_, n) in medians.items()}
    return {"bytes": n_bytes} | {f"{name}_ms": ms for name, (ms, _) in medians.items()} | faults


def _page_faults() -> int:
    """Of this process since its start; 0 where the system does not say."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0


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
