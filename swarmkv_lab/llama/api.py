"""The library itself: its version, log, devices and threads, its return codes, and batches in numpy's memory."""

import atexit
import ctypes
import logging
import os
import re
import subprocess
import sys
from collections import deque
from functools import cache
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
import psutil
from llama_cpp._ctypes_extensions import load_shared_library
from llama_cpp._ggml import libggml, libggml_base_path

from swarmkv_lab.errors import ContextBudgetError
from swarmkv_lab.llama.guard import LlamaGuard, inside

LLAMA_CPP_VERSION = f"llama-cpp-python {llama_cpp.__version__}, llama.cpp {llama_cpp.llama_version().decode()}"
STATE_VERSION = llama_cpp.LLAMA_STATE_SEQ_VERSION
DECODE_CODES = {
    1: "no free cells in the KV cache: raise n_ctx, remove a sequence, or, with sliding windows, pass swa_full=True",
    2: "the decode was aborted",
    -1: "the batch was refused as invalid",
    -2: "memory for the batch could not be allocated",
    -3: "the computation failed",
}
_GPU, _INTEGRATED = 1, 2
_ggml_base = load_shared_library("ggml-base", libggml_base_path)  # Windows finds a function only in its own library

with LlamaGuard():
    llama_cpp.llama_backend_init()
# weakref.finalize frees models and contexts at exit too; this handler is older than theirs, so it runs after them.
atexit.register(llama_cpp.llama_backend_free)


@cache
def build() -> str:
    """The library's version and what it was compiled for: its instruction set and devices decide the last bits."""
    with LlamaGuard():
        return f"{LLAMA_CPP_VERSION}, {llama_cpp.llama_print_system_info().decode().strip()}"


class Device(NamedTuple):
    """A device that llama.cpp can compute on, as ggml describes it."""

    name: str  # such as CPU, CUDA0, Vulkan0, MTL0
    description: str
    kind: int  # ggml's number: 0 CPU, 1 GPU, 2 integrated GPU, 3 accelerator of the CPU's work
    backend: str  # such as CPU, CUDA, MTL (Metal), BLAS

    @property
    def in_main_memory(self) -> bool:
        """Whether what lies on it lies in the machine's memory. ggml calls Apple's GPUs plain GPUs, and they do too."""
        return self.kind != _GPU or self.backend == "MTL"


def devices() -> list[Device]:
    """Every device that llama.cpp was compiled for and has found here; it knows that, not the operating system."""

    def ask(function: str, about: Any = None, result: Any = ctypes.c_void_p, library: Any = _ggml_base) -> Any:
        call = getattr(library, f"ggml_backend_{function}")
        call.argtypes, call.restype = [] if about is None else [ctypes.c_size_t], result
        answer = call() if about is None else call(about)
        return answer.decode("utf-8", "replace") if result is ctypes.c_char_p else answer

    found = []
    for i in range(ask("dev_count", result=ctypes.c_size_t, library=libggml)):
        device = ask("dev_get", i, library=libggml)
        backend = ask("reg_name", ask("dev_backend_reg", device), ctypes.c_char_p)
        name, description = (ask(f"dev_{what}", device, ctypes.c_char_p) for what in ("name", "description"))
        found.append(Device(name, description, ask("dev_type", device, ctypes.c_int), backend))
    return found


def gpus() -> list[Device]:
    """The devices that llama.cpp offloads layers to: all GPUs, or else the first integrated one; [] on a CPU build."""
    found = devices()
    integrated = [device for device in found if device.kind == _INTEGRATED]
    return [device for device in found if device.kind == _GPU] or integrated[:1]


def default_threads() -> int:
    """Physical cores that this process may use: hyperthreads do not speed up the matrix products of a decode.

    On a Mac only the fast ones: all threads of a decode wait for the slowest.
    """
    limited = hasattr(psutil.Process, "cpu_affinity")  # macOS gives a process no cores of its own
    usable = len(psutil.Process().cpu_affinity()) if limited else os.cpu_count() or 1
    physical = _fast_cores() or psutil.cpu_count(logical=False) or usable
    return max(1, min(physical, usable))


@cache
def _fast_cores() -> int | None:
    """The performance cores of a Mac; None for another machine, or an older Mac, whose cores are all alike."""
    if sys.platform != "darwin":
        return None
    asked = ["/usr/sbin/sysctl", "-n", "hw.perflevel0.physicalcpu"]
    said = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return int(said) if said.isdecimal() else None


def require_memory(n_bytes: int, what: str) -> None:
    """Refuse an allocation that the machine cannot hold: llama.cpp would touch every page until the kernel dies."""
    available = psutil.virtual_memory().available
    if n_bytes > available:
        about = f"{what} needs {n_bytes:,} bytes and {available:,} are available"
        raise ContextBudgetError(f"{about}: use fewer tokens, fewer sequences or a smaller KV type")


def pointer(array: np.ndarray, ctype: type) -> Any:
    """A ctypes pointer to an array's first element. The caller keeps the array alive."""
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctype))


def batch_of(token: np.ndarray, pos: np.ndarray, seq: np.ndarray, ends: np.ndarray) -> llama_cpp.llama_batch:
    """The input of one llama_decode: token ids, positions and sequences, int32 (n,); logits are asked for at ends."""
    n_seq, wants_logits = np.ones_like(seq), np.zeros(len(seq), np.int8)  # every row belongs to one sequence
    wants_logits[ends] = 1
    # llama_batch.seq_id is an array of pointers, one a row; row i's points at seq[i].
    seq_pointers = seq.ctypes.data + np.arange(len(seq), dtype=np.uintp) * seq.itemsize
    batch = llama_cpp.llama_batch(
        n_tokens=len(token),
        token=pointer(token, ctypes.c_int32),
        pos=pointer(pos, ctypes.c_int32),
        n_seq_id=pointer(n_seq, ctypes.c_int32),
        seq_id=pointer(seq_pointers, ctypes.POINTER(ctypes.c_int32)),
        logits=pointer(wants_logits, ctypes.c_int8),
    )
    batch.arrays = token, pos, seq, n_seq, wants_logits, seq_pointers  # they live as long as what points into them
    return batch


# -- the log: what our own calls cause goes to Python's logging, the rest to whoever listened before us

_ERROR = 4  # GGML_LOG_LEVEL_ERROR

log = logging.getLogger("swarmkv_lab.llama_cpp")
log.addHandler(logging.NullHandler())
_last_errors: deque[str] = deque(maxlen=3)
_CACHE = re.compile(r"(?:KV|RS|state) buffer size = +([0-9.]+) MiB")
_cache_mib: deque[float] = deque(maxlen=64)
# llama.cpp has one callback for the whole process, and llama_cpp.Llama(verbose=True) prints by it.
_before, _before_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
llama_cpp.llama_log_get(ctypes.byref(_before), ctypes.byref(_before_data))


def _on_log(level: int, text: bytes, _data: Any) -> None:
    """Our own lines at level DEBUG; errors among them also end up in our messages."""
    if not inside():
        if _before:
            _before(level, text, _before_data)
        return
    line = text.decode("utf-8", "replace").rstrip()
    if level == _ERROR and line:
        _last_errors.append(line)
    if found := _CACHE.search(line):
        _cache_mib.append(float(found[1]))
    log.debug(line)


_callback = llama_cpp.llama_log_callback(_on_log)  # kept: llama.cpp holds a bare pointer
llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))


def logged_errors() -> str:
    """What llama.cpp logged as errors since the last call, as a suffix for a message."""
    lines = "; ".join(_last_errors)
    _last_errors.clear()
    return f" (llama.cpp: {lines})" if lines else ""


def logged_cache_bytes() -> int:
    """Bytes of caches and running states that llama.cpp logged since the last call; it says them to 0.01 MiB."""
    mib = sum(_cache_mib)
    _cache_mib.clear()
    return round(mib * (1 << 20))
