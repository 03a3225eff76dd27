"""Roofline: what a decode reaches of the machine's arithmetic and of its memory, and which of the two bounds it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from swarmkv_lab.errors import SwarmKVError

WORKS = ("prefill", "branch", "token")


def roofline(formats: pd.DataFrame, peaks: Mapping[str, Any]) -> pd.DataFrame:
    """The speeds behind the times of weight formats, a row per format.

    formats: from measure.formats.weight_formats; peaks: from measure.roofline.peaks. Columns format, is_source; for
    prefill, branch (a question) and token: ..._gflops, 10^9 operations per second; ..._flop_per_byte of weights and KV
    that it reads; ..._gb_per_s, 10^9 such bytes per second; ..._share, of the highest peak of arithmetic; and
    ..._memory_share, of the memory's speed. A share may exceed 1: caches are faster than memory, and arithmetic in
    whole numbers is faster than in floating point. Raises SwarmKVError where weight_formats counted nothing.
    """
    if "token_flop" not in formats:
        raise SwarmKVError("no operations are counted for this architecture, so there is no roofline of it")
    table = formats[["format", "is_source"]].copy()
    top = max(peaks["gflops"].values())
    for work in WORKS:
        ms, flop, n_bytes = (formats[f"{work}_{what}"] for what in ("ms", "flop", "bytes"))
        table[f"{work}_gflops"] = flop / ms / 1e6
        table[f"{work}_flop_per_byte"] = flop / n_bytes
        table[f"{work}_gb_per_s"] = n_bytes / ms / 1e6
        table[f"{work}_share"] = table[f"{work}_gflops"] / top
        table[f"{work}_memory_share"] = table[f"{work}_gb_per_s"] / peaks["memory_gb_per_s"]
    return table
