"""A program of its own: a hollow model, which has a real header and no weights, and what llama.cpp says of its cache.

Decoding on it computes nothing, but llama.cpp's bookkeeping is complete: a cache and states have the bytes that the
real model's would have. In a process of its own a header that llama.cpp aborts on ends nobody's kernel.
Standard input: a line of JSON, what is asked, then the header's bytes. Standard output: a line of JSON.
"""

import ctypes
import json
import mmap
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # wherever whoever runs this found the package

import llama_cpp
from llama_cpp._ctypes_extensions import load_shared_library
from llama_cpp._ggml import libggml_base_path

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.kind import written_whole
from swarmkv_lab.llama.settings import ContextSettings

# The copy of ggml that llama.cpp itself uses: a wheel holds several of the same library, and they share no variables.
_ggml = load_shared_library("ggml-base", libggml_base_path) if os.name == "nt" else llama_cpp.llama_cpp._lib
_CALLS, _ALLOC = 6, 1  # functions of a ggml_backend_buffer_type, and which of them allocates a buffer
_BUFFER_CALLS, _CLEAR = 11, 9  # those of a ggml_backend_buffer, and which of them fills it
# Of more than the machine has; Python before 3.13 has no name for that flag.
_RESERVE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000} if sys.platform == "linux" else {}
_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_kept: list[Any] = []  # what llama.cpp holds bare pointers to
_logged: list[bytes] = []  # what llama.cpp logs


def main(asked: bytes, header: bytes) -> dict[str, Any]:
    """What ``sizing.hollow.hollow`` returns, of a context with ``settings`` and states of ``depths`` tokens."""
    question = json.loads(asked)
    settings, depths = ContextSettings(**question["settings"]), question["depths"]
    llama_cpp.llama_log_set(_keep(llama_cpp.llama_log_callback(_log)), ctypes.c_void_p(0))
    cleared = _lazy_memory()
    model = _model(header, question["overrides"])
    if llama_cpp.llama_model_has_encoder(model) or not llama_cpp.llama_model_has_decoder(model):
        raise SystemExit("it is not a decoder-only model: it has no prefix to share")
    params = settings.params(on_gpu=False)
    params.n_threads, params.n_threads_batch = 1, 1
    params.cb_eval = _keep(llama_cpp.ggml_backend_sched_eval_callback(lambda node, ask, data: bool(ask)))
    context = llama_cpp.llama_init_from_model(model, params) or sys.exit("llama.cpp made no context")
    if not (memory := llama_cpp.llama_get_memory(context)):
        raise SystemExit("its architecture keeps no memory of what it has read: it has no state to size")
    cleared.clear()
    llama_cpp.llama_memory_clear(memory, True)  # that is all of a cache's buffers, and nothing else
    n_bytes, window = sum(cleared), llama_cpp.llama_model_n_swa(model)
    keeps_state = llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
    name = ctypes.create_string_buffer(64)
    llama_cpp.llama_model_meta_val_str(model, b"general.architecture", name, len(name))
    sizes, tokens, n_past = [], (ctypes.c_int32 * params.n_batch)(), 0
    for depth in depths:
        while n_past < depth:
            n = min(depth - n_past, len(tokens))
            if code := llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, n)):
                raise SystemExit(f"llama.cpp's decode of tokens {n_past:,} to {n_past + n:,} returned {code}")
            n_past += n
        whole = written_whole(name.value.decode(), keeps_state, window, depth, settings.swa_full)
        sizes.append(llama_cpp.llama_state_seq_get_size(context, -1 if whole else 0))
    return {"context_bytes": n_bytes, "state_bytes": sizes, "window": window, "windowed": _windowed()}


def _windowed() -> list[int]:
    """Layers with a sliding window: those that llama.cpp leaves out of the cache that it makes first."""
    first, second, _ = b"".join(_logged).partition(b"creating     SWA KV cache")
    return [int(layer) for layer in re.findall(rb"layer +(\d+): filtered", first)] if second else []


def _model(header: bytes, overrides: dict[str, int]) -> Any:
    """The model of a header. llama.cpp makes all tensors that the architecture knows, and nobody fills them."""
    read = _ggml.gguf_init_from_buffer
    read.restype, read.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_size_t, _Init]
    metadata = read(header, len(header), _Init(True, None)) or sys.exit("llama.cpp cannot read the header")
    params = llama_cpp.llama_model_default_params()
    pairs = (llama_cpp.llama_model_kv_override * (len(overrides) + 1))()  # the last one, empty, ends the list
    for pair, (key, value) in zip(pairs, overrides.items(), strict=False):
        pair.tag, pair.key, pair.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, key.encode(), value
    params.kv_overrides, params.load_mtp = pairs, True  # of layers for drafts it makes tensors too, but no cache
    params.n_gpu_layers, params.devices = 0, ctypes.addressof(_keep((ctypes.c_void_p * 1)()))
    fill = _keep(llama_cpp.llama_model_set_tensor_data_t(lambda tensor, data: None))
    return llama_cpp.llama_model_init_from_user(metadata, fill, None, params) or sys.exit("llama.cpp made no model")


class _Init(ctypes.Structure):
    """gguf_init_params."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _lazy_memory() -> list[int]:
    """Let buffers be memory that is reserved, and no more, unless it is touched; the bytes of those that are cleared.

    A cache is cleared when it is made: that is left out, since fresh pages are zero.
    """
    of_pointer, size_of = _ggml.ggml_backend_cpu_buffer_from_ptr, _ggml.ggml_backend_buffer_get_size
    of_pointer.restype, of_pointer.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]
    size_of.restype, size_of.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    cleared: list[int] = []
    clear = _pointer(lambda buffer, _: cleared.append(size_of(buffer)), None, ctypes.c_void_p, ctypes.c_uint8)

    def alloc(_kind: int, size: int) -> int | None:
        try:
            pages = _keep(mmap.mmap(-1, size + mmap.PAGESIZE, **_RESERVE))
        except (OSError, ValueError, OverflowError) as error:
            print(f"{size:,} bytes could not be reserved: {error}", file=sys.stderr)
            return None
        buffer = int(of_pointer(ctypes.addressof(ctypes.c_char.from_buffer(pages)), size))
        (ctypes.c_void_p * _BUFFER_CALLS).from_address(buffer)[_CLEAR] = clear
        return buffer

    _ggml.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    kind = (ctypes.c_void_p * _CALLS).from_address(_ggml.ggml_backend_cpu_buffer_type())
    kind[_ALLOC] = _pointer(alloc, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    return cleared


def _log(level: int, text: bytes, _data: Any) -> None:
    if level == _ERROR:
        print(end=text.decode("utf-8", "replace"), file=sys.stderr, flush=True)
    _logged.append(text)


def _pointer(function: Callable[..., Any], *types: Any) -> Any:
    return ctypes.cast(_keep(ctypes.CFUNCTYPE(*types)(function)), ctypes.c_void_p)


def _keep(what: Any) -> Any:
    _kept.append(what)
    return what


if __name__ == "__main__":
    try:
        print(json.dumps(main(sys.stdin.buffer.readline(), sys.stdin.buffer.read())), flush=True)
    except SwarmKVError as error:
        sys.exit(str(error))
    os._exit(0)  # nothing here is llama.cpp's to free
