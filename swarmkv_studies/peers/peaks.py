"""A program of its own: how fast this machine multiplies matrices and reads memory. ``roofline.peaks`` runs it.

A process of its own because a BLAS reads its number of threads when it is loaded, and because torch brings an OpenMP
runtime that would share llama.cpp's process. Arguments: threads, rows of a matrix, bytes of a large array.
It prints one JSON object.
"""

import json
import sys
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np


def main(n_threads: int, n_rows: int, n_bytes: int) -> dict[str, Any]:
    """The largest speeds of several tries: what a machine reaches, it can reach."""
    found: dict[str, Any] = {"n_threads": n_threads, "gflops": {"numpy float32": _numpy(n_rows)}}
    if find_spec("torch"):
        found["gflops"] |= _torch(n_threads, n_rows)
        found |= _gpu(n_bytes)
    return found | {"memory_gb_per_s": _memory(n_threads, n_bytes), "blas": _blas()}


def _numpy(n: int) -> float:
    rng = np.random.default_rng(0)
    a, b, out = rng.random((n, n), np.float32), rng.random((n, n), np.float32), np.empty((n, n), np.float32)
    return 2 * n**3 / _seconds(lambda: np.matmul(a, b, out=out)) / 1e9


def _torch(n_threads: int, n: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(n_threads)
    found = {}
    for kind in ("float32", "bfloat16"):
        a, b = (torch.rand(n, n).to(getattr(torch, kind)) for _ in range(2))
        with torch.inference_mode():
            found[f"torch {kind}"] = 2 * n**3 / _seconds(lambda a=a, b=b: torch.matmul(a, b)) / 1e9  # type: ignore[misc]
    return found


def _gpu(n_bytes: int) -> dict[str, Any]:
    """Of torch's GPU, if it has one: large products, copies in its memory (read and written), and to and from it."""
    import torch

    if not torch.cuda.is_available():
        return {}

    def seconds(call: Callable[[], Any]) -> float:
        return _seconds(lambda: (call(), torch.cuda.synchronize()))

    def gb_per_s(into: Any, source: Any) -> float:
        return n_bytes / seconds(lambda: into.copy_(source, non_blocking=True)) / 1e9

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    there, also_there = (torch.ones(n_bytes, dtype=torch.uint8, device="cuda") for _ in range(2))
    here = torch.ones(n_bytes, dtype=torch.uint8)
    pinned = here.pin_memory()
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_gflops": {"torch bfloat16": 2 * 8192**3 / seconds(lambda: torch.matmul(a, a)) / 1e9},
        "gpu_memory_gb_per_s": 2 * gb_per_s(also_there, there),
        "to_gpu_gb_per_s": {"pinned": gb_per_s(there, pinned), "pageable": gb_per_s(there, here)},
        "from_gpu_gb_per_s": {"pinned": gb_per_s(pinned, there), "pageable": gb_per_s(here, there)},
    }


def _memory(n_threads: int, n_bytes: int) -> float:
    """GB per second: the faster of reading an array, and of copying it (read and written)."""
    parts = np.array_split(np.ones(n_bytes // 4, np.float32), n_threads)
    copies = [np.zeros_like(part) for part in parts]
    with ThreadPoolExecutor(n_threads) as pool:
        read = _seconds(lambda: list(pool.map(np.max, parts)))
        copied = _seconds(lambda: list(pool.map(np.copyto, copies, parts)))
    return n_bytes / min(read, copied / 2) / 1e9


def _seconds(call: Callable[[], Any]) -> float:
    return min(timeit.repeat(call, number=1, repeat=5))


def _blas() -> str | None:
    """numpy's BLAS and its kernel, where threadpoolctl is there to tell."""
    if not find_spec("threadpoolctl"):
        return None
    from threadpoolctl import threadpool_info

    blas: dict[str, Any] = next((one for one in threadpool_info() if one["user_api"] == "blas"), {})
    return " ".join(filter(None, (blas.get("internal_api"), blas.get("architecture")))) or None


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
