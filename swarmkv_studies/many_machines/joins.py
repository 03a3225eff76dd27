"""Joins: computing a document's beginning while its end is loaded, against computing and against loading alone."""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.llama.model import Model
from swarmkv_lab.progress import tqdm
from swarmkv_lab.snapshot.prefill import prefill
from swarmkv_lab.snapshot.snapshot import KVSnapshot
from swarmkv_studies.many_machines.join import join, load_pages
from swarmkv_studies.many_machines.pages import save_in_pages
from swarmkv_studies.many_machines.throttle import throttled


def join_times(
    model: Model,
    tokens: np.ndarray,
    bytes_per_s: Sequence[float],
    *,
    page: int = 256,
    repeats: int = 2,
    progress: bool = True,
) -> pd.DataFrame:
    """Time three ways to a snapshot of the tokens at each bandwidth, in turns: compute, load, join.

    page: tokens of a page, and of a batch of the prefill. Returns a row per bandwidth and repeat: depth, bytes,
    bandwidth (bytes per second), compute_ms, load_ms, join_ms, and same_bits: whether all three gave the same state.
    An interrupt returns the rows measured so far.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        snapshot = prefill(model, tokens, n_batch=page, progress=False)
        path = Path(folder) / "document.kv.safetensors"
        save_in_pages(snapshot, path, page)
        todo = [(repeat, rate) for repeat in range(repeats) for rate in bytes_per_s]
        try:
            for repeat, rate in tqdm(todo, unit="bandwidth", disable=None if progress else True):
                ways: dict[str, Callable[[], KVSnapshot]] = {
                    "join_ms": partial(join, path, model, opened=throttled(rate)),
                    "load_ms": partial(load_pages, path, model, opened=throttled(rate)),
                    "compute_ms": partial(prefill, model, tokens, n_batch=page, progress=False),
                }
                row: dict[str, Any] = {"repeat": repeat, "depth": len(tokens), "bytes": snapshot.nbytes,
                                       "bandwidth": rate}  # fmt: skip
                same = True
                for name, way in ways.items():
                    start = time.perf_counter()
                    found = way()
                    row[name] = 1e3 * (time.perf_counter() - start)
                    same &= bool(np.array_equal(found.data, snapshot.data))
                rows.append(row | {"same_bits": same})
        except KeyboardInterrupt:
            if not rows:
                raise
    return pd.DataFrame(rows)
