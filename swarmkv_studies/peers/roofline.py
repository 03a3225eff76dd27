"""Roofline: what a decode reaches of this machine's arithmetic and memory, and how fast those are."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pandas as pd

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.llama.api import default_threads
from swarmkv_studies.peers import peaks as program

# Each BLAS and each OpenMP runtime reads one of these when it is loaded.
_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "OMP_NUM_THREADS",
)


def peaks(n_threads: int | None = None, *, n_rows: int = 1536, n_bytes: int = 1 << 28) -> dict[str, Any]:
    """How fast this machine multiplies square matrices of n_rows, and reads or copies n_bytes; ready for JSON.

    n_threads: by default as many as llama.cpp's. Keys: n_threads; gflops, 10^9 operations per second by kind ("numpy
    float32", and with torch installed "torch float32" and "torch bfloat16"); memory_gb_per_s, 10^9 bytes; blas, numpy's
    BLAS and the kernel that it chose, None without threadpoolctl. Where torch finds a GPU also gpu, its name;
    gpu_gflops; gpu_memory_gb_per_s; and to_gpu_gb_per_s and from_gpu_gb_per_s from and to the host's memory, by its
    kind. It is what numpy and torch reach in this environment, not what the processor could: OPENBLAS_CORETYPE, for
    one, can make numpy slow. llama.cpp multiplies quantized weights in whole numbers, which can be faster than every
    kind here. Raises SwarmKVError if it cannot be measured.
    """
    n_threads = default_threads() if n_threads is None else whole_number("n_threads", n_threads, 1, 512)
    sizes = (n_threads, whole_number("n_rows", n_rows, 1, 1 << 15), whole_number("n_bytes", n_bytes, 4 * n_threads))
    command = [sys.executable, "-P", program.__file__, *map(str, sizes)]
    env = os.environ | dict.fromkeys(_VARIABLES, str(n_threads))
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SwarmKVError(f"the machine's peaks could not be measured (ended with {done.returncode}): {said}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


WORKS = ("prefill", "branch", "token")


def roofline(formats: pd.DataFrame, limits: Mapping[str, Any]) -> pd.DataFrame:
    """The speeds behind the times of weight formats, a row per format.

    formats: from weight_formats; limits: from peaks. Columns format, is_source; for
    prefill, branch (a question) and token: ..._gflops, 10^9 operations per second; ..._flop_per_byte of weights and KV
    that it reads; ..._gb_per_s, 10^9 such bytes per second; ..._share, of the highest peak of arithmetic; and
    ..._memory_share, of the memory's speed. A share may exceed 1: caches are faster than memory, and arithmetic in
    whole numbers is faster than in floating point. Raises SwarmKVError where weight_formats counted nothing.
    """
    if "token_flop" not in formats:
        raise SwarmKVError("no operations are counted for this architecture, so there is no roofline of it")
    table = formats[["format", "is_source"]].copy()
    top = max(limits["gflops"].values())
    for work in WORKS:
        ms, flop, n_bytes = (formats[f"{work}_{what}"] for what in ("ms", "flop", "bytes"))
        table[f"{work}_gflops"] = flop / ms / 1e6
        table[f"{work}_flop_per_byte"] = flop / n_bytes
        table[f"{work}_gb_per_s"] = n_bytes / ms / 1e6
        table[f"{work}_share"] = table[f"{work}_gflops"] / top
        table[f"{work}_memory_share"] = table[f"{work}_gb_per_s"] / limits["memory_gb_per_s"]
    return table
