"""Shipping: over which links a document's snapshot arrives before another machine would have computed it again."""

import pickle
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import swarmkv_lab as lab
from swarmkv_lab.errors import whole_number
from swarmkv_lab.sizing.geometry import KVType


def break_even_bandwidth(model: Any, n_tokens: int, tokens_per_s: float, kv_type: KVType = "f16") -> float:
    """S/T, bytes per second: over a faster link a snapshot arrives before a prefill would end.

    S: bytes of the snapshot. T: seconds of the prefill; latency and restore are not counted. The more bytes per token
    a model keeps and the faster it prefills, the faster the link must be. model: a catalogue name, a GGUF's path, a
    Model or a KVGeometry; errors as ``geometry``, and SwarmKVError for a speed that is not above 0.
    """
    if not tokens_per_s > 0:
        raise lab.SwarmKVError(f"tokens_per_s={tokens_per_s!r:.40}: it must be above 0, such as 10_000 for a GPU")
    n_tokens = whole_number("n_tokens", n_tokens, 1)
    return lab.geometry(model).snapshot_bytes(n_tokens, kv_type) * tokens_per_s / n_tokens


def break_even_table(prefills: Mapping[str, float], depths: Sequence[int]) -> pd.DataFrame:
    """Break-even bandwidths by depth: columns model, depth, bytes_per_s; prefills: tokens per second by model."""
    rows = [(model, depth, break_even_bandwidth(model, depth, speed))
            for model, speed in prefills.items() for depth in depths]  # fmt: skip
    return pd.DataFrame(rows, columns=["model", "depth", "bytes_per_s"])


def ship_times(
    model: lab.Model, tokens: np.ndarray, bytes_per_s: Sequence[float], *, repeats: int = 2, progress: bool = True
) -> pd.DataFrame:
    """Time two ways to a snapshot of the tokens, in turns: compute it, or load it over a link of each bandwidth.

    Returns a row per bandwidth and repeat: repeat, depth, bytes, bandwidth (bytes per second), load_ms, compute_ms, and
    same_bits: whether both gave the same state.
    """
    compute = partial(lab.prefill, model, tokens, progress=False)
    snapshot = compute()
    data, rows, todo = pickle.dumps(snapshot), [], list(product(range(repeats), bytes_per_s))
    for repeat, rate in tqdm(todo, unit="bandwidth", disable=not progress or None):
        row = {"repeat": repeat, "depth": len(tokens), "bytes": snapshot.nbytes, "bandwidth": rate}
        ways = {"load_ms": partial(_arrived, data, rate), "compute_ms": compute}
        same = True
        for name, way in ways.items():
            start = time.perf_counter()
            found = way()
            row[name] = 1e3 * (time.perf_counter() - start)
            same &= bool(np.array_equal(found.data, snapshot.data))
        rows.append(row | {"same_bits": same})
    return pd.DataFrame(rows)


def _arrived(data: bytes, rate: float) -> lab.KVSnapshot:
    """A pickled snapshot after the time that a link of so many bytes per second takes; its checksums are compared."""
    time.sleep(len(data) / rate)
    snapshot: lab.KVSnapshot = pickle.loads(data)
    return snapshot
