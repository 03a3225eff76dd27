"""Joins: computing a document's beginning while its end is loaded, against computing and against loading alone."""

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from swarmkv_lab.llama.model import Model
from swarmkv_lab.progress import tqdm
from swarmkv_lab.snapshot.file import reading
from swarmkv_lab.snapshot.prefill import prefill
from swarmkv_studies.many_machines.join import join, load_pages
from swarmkv_studies.many_machines.pages import save_in_pages

_PIECE = 1 << 16


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
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        snapshot = prefill(model, tokens, n_batch=page, progress=False)
        path = Path(folder) / "document.kv.safetensors"
        save_in_pages(snapshot, path, page)
        todo = list(product(range(repeats), bytes_per_s))
        for repeat, rate in tqdm(todo, unit="bandwidth", disable=None if progress else True):
            ways = {
                "join_ms": partial(join, path, model, opened=throttled(rate)),
                "load_ms": partial(load_pages, path, model, opened=throttled(rate)),
                "compute_ms": partial(prefill, model, tokens, n_batch=page, progress=False),
            }
            row = {"repeat": repeat, "depth": len(tokens), "bytes": snapshot.nbytes, "bandwidth": rate}
            same = True
            for name, way in ways.items():
                start = time.perf_counter()
                found = way()
                row[name] = 1e3 * (time.perf_counter() - start)
                same &= bool(np.array_equal(found.data, snapshot.data))
            rows.append(row | {"same_bits": same})
    return pd.DataFrame(rows)


def throttled(bytes_per_s: float) -> Callable[[str | Path], AbstractContextManager[tuple[BinaryIO, int]]]:
    """Opens a local file that is read at so many bytes per second; yields it and its size, as ``reading`` does."""

    @contextmanager
    def opened(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
        with reading(path) as (file, size):
            yield io.BufferedReader(_Slow(file, bytes_per_s)), size

    return opened


class _Slow(io.RawIOBase):
    """A file whose reads wait until a link of this rate would have brought them."""

    def __init__(self, file: BinaryIO, rate: float) -> None:
        self._file, self._rate = file, rate
        self._due = time.perf_counter()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = int(self._file.readinto(memoryview(buffer)[:_PIECE]) or 0)  # type: ignore[attr-defined]
        self._due = max(self._due, time.perf_counter() - 0.05) + n / self._rate  # a link does not save up for later
        if (wait := self._due - time.perf_counter()) > 0.001:
            time.sleep(wait)
        return n
