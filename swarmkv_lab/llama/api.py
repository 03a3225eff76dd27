"""The library itself: its version, its threads, its return codes, and pointers into numpy's memory."""

import atexit
import ctypes
import os
from collections.abc import Callable
from typing import Any

import llama_cpp
import numpy as np
import psutil

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError
from swarmkv_lab.llama.guard import LlamaGuard
from swarmkv_lab.llama.log import interruptible as interruptible
from swarmkv_lab.llama.log import take_errors as take_errors

LLAMA_CPP_VERSION = f"llama-cpp-python {llama_cpp.__version__}, llama.cpp {llama_cpp.llama_version().decode()}"
STATE_VERSION = llama_cpp.LLAMA_STATE_SEQ_VERSION
DECODE_CODES = {
    1: "no free cells in the KV cache: raise n_ctx, remove a sequence, or, with sliding windows, pass swa_full=True",
    2: "the decode was aborted",
    -1: "the batch was refused as invalid",
    -2: "memory for the batch could not be allocated",
    -3: "the computation failed",
}

with LlamaGuard():
    llama_cpp.llama_backend_init()
# weakref.finalize frees models and contexts at exit too; this handler is older than theirs, so it runs after them.
atexit.register(llama_cpp.llama_backend_free)


def default_threads() -> int:
    """Physical cores that this process may use: hyperthreads do not speed up the matrix products of a decode."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable))


def require_memory(n_bytes: int, what: str) -> None:
    """Refuse an allocation that the machine cannot hold: llama.cpp would touch every page until the kernel dies."""
    available = psutil.virtual_memory().available
    if n_bytes > available:
        raise ContextBudgetError(
            f"{what} needs {n_bytes:,} bytes and {available:,} are available: "
            "use fewer tokens, fewer sequences or a smaller KV type"
        )


def pointer(array: np.ndarray, ctype: type) -> Any:
    """A ctypes pointer to an array's first element. The caller keeps the array alive."""
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctype))


def text_of(call: Callable[..., int], handle: int, index: int) -> str:
    """The text that one of llama.cpp's fill-this-buffer calls gives, however long it is."""
    size = 512
    while True:
        text = ctypes.create_string_buffer(size)
        n = call(handle, index, text, size)
        if n < 0:
            raise SwarmKVError(f"llama.cpp has no metadata entry {index}")
        if n < size:
            return text.value.decode("utf-8", "replace")
        size = n + 1
