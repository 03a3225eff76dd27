"""Sizes of today's models, which keep more kinds of state than a KV cache: a hollow model says them."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from swarmkv_lab.progress import tqdm
from swarmkv_lab.sizing.catalogue import headers, snapshot_bytes
from swarmkv_lab.sizing.geometry import KVType


def todays_sizes(depths: Sequence[int], kv_type: KVType = "f16") -> pd.DataFrame:
    """Snapshot bytes, in MB of 10^6 bytes, of the models in data/headers.toml (predicted): a column per depth, tokens.

    And ``keeps``: of what. Sorted by the last column.
    """
    rows: dict[str, dict[str | int, Any]] = {name: {"keeps": header["keeps"]} for name, header in headers().items()}
    for name in tqdm(rows, desc="hollow models", unit="model", leave=False):
        rows[name] |= {depth: snapshot_bytes(name, depth, kv_type) / 1e6 for depth in depths}
    return pd.DataFrame.from_dict(rows, orient="index").sort_values(depths[-1])
