"""Shipping: over which links a document's snapshot arrives before another machine would have computed it again."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.sizing.catalogue import geometry
from swarmkv_lab.sizing.geometry import KVType


def break_even_bandwidth(model: Any, n_tokens: int, tokens_per_s: float, kv_type: KVType = "f16") -> float:
    """S/T, bytes per second: over a faster link a snapshot arrives before a prefill would end.

    S: bytes of the snapshot. T: seconds of the prefill; latency and restore are not counted. The more bytes per token
    a model keeps and the faster it prefills, the faster the link must be. model: a catalogue name, a GGUF's path, a
    Model or a KVGeometry; errors as ``geometry``, and SwarmKVError for a speed that is not above 0.
    """
    if not tokens_per_s > 0:
        raise SwarmKVError(f"tokens_per_s={tokens_per_s!r:.40}: it must be above 0, such as 10_000 for a GPU")
    n_tokens = whole_number("n_tokens", n_tokens, 1)
    return geometry(model).snapshot_bytes(n_tokens, kv_type) * tokens_per_s / n_tokens


def break_even_table(prefills: Mapping[str, float], depths: Sequence[int]) -> pd.DataFrame:
    """Break-even bandwidths by depth: columns model, depth, bytes_per_s; prefills: tokens per second by model."""
    rows = [(model, depth, break_even_bandwidth(model, depth, speed))
            for model, speed in prefills.items() for depth in depths]  # fmt: skip
    return pd.DataFrame(rows, columns=["model", "depth", "bytes_per_s"])


def join_bound(compute_s: Any, load_s: Any) -> Any:
    """t_c*t_l/(t_c + t_l): the head of a document is computed while its tail is loaded, until the two meet. Arrays too.

    Both go on at an even speed (Jin and others, "Compute Or Load KV Cache? Why Not Both?", ICML 2025). The head costs
    less than its share of a prefill, since it attends to fewer tokens: a measured time can be a little shorter.
    """
    return compute_s * load_s / (compute_s + load_s)
