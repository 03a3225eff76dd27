"""A program of its own: a hollow model, which has a real header and no weights, and what llama.cpp says of its cache.

Decoding on it computes nothing, but llama.cpp's bookkeeping is complete: states have the bytes that the real model's
would have. In a process of its own a header that llama.cpp aborts on ends nobody's kernel.
Standard input: a line of JSON, the settings, then the header's bytes. Standard output: a line of JSON.
"""

import ctypes
import json
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

import llama_cpp
from llama_cpp._ctypes_extensions import load_shared_library
from llama_cpp._ggml import libggml_base_path

# The copy of ggml that llama.cpp itself uses: a wheel holds several of the same library, and they share no variables.
_ggml = load_shared_library("ggml-base", libggml_base_path) if os.name == "nt" else llama_cpp.llama_cpp._lib
_CALLS, _ALLOC = 6, 1  # functions of a ggml_backend_buffer_type, and which of them allocates a buffer
_BUFFER_CALLS, _CLEAR = 11, 9  # those of a ggml_backend_buffer, and which of them fills it
# Of more than the machine has; Python before 3.13 has no name for that flag.
_RESERVE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000} if sys.platform == "linux" else {}
_BATCH = 512  # tokens, llama.cpp's default
_kept: list[Any] = []  # what llama.cpp holds bare pointers to


def main(settings: bytes, header: bytes) -> tuple[list[int], int]:
    """Sizes of states at ``depths``, and the window, in a context of ``params``, which llama.cpp names."""
    asked = json.loads(settings)
    _lazy_memory()
    model = _model(header, asked.get("overrides", {}))
    if llama_cpp.llama_model_has_encoder(model) or not llama_cpp.llama_model_has_decoder(model):
        raise SystemExit("it is not a decoder-only model: it has no prefix to share")
    params = llama_cpp.llama_context_default_params()
    for name, value in asked["params"].items():
        setattr(params, name, value)
    params.n_batch = params.n_ubatch = _BATCH
    params.offload_kqv, params.n_threads, params.n_threads_batch = False, 1, 1
    params.cb_eval = _keep(llama_cpp.ggml_backend_sched_eval_callback(lambda node, ask, data: bool(ask)))
    context = llama_cpp.llama_init_from_model(model, params) or sys.exit("llama.cpp made no context")
    if not llama_cpp.llama_get_memory(context):
        raise SystemExit("its architecture keeps no memory of what it has read: it has no state to size")
    window = llama_cpp.llama_model_n_swa(model)
    # As Context writes states: of one sequence llama.cpp leaves out what a window has passed, and of all it does not.
    keeps_state = llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
    name = ctypes.create_string_buffer(64)
    llama_cpp.llama_model_meta_val_str(model, b"general.architecture", name, len(name))
    all_of_it = name.value == b"deepseek4" and params.n_seq_max == 1
    sizes, tokens, n_past = [], (ctypes.c_int32 * _BATCH)(), 0
    for depth in asked["depths"]:
        while n_past < depth:
            n = min(depth - n_past, len(tokens))
            if code := llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, n)):
                raise SystemExit(f"llama.cpp's decode of tokens {n_past:,} to {n_past + n:,} returned {code}")
            n_past += n
        whole = all_of_it or (params.swa_full and not keeps_state and 0 < window < depth)
        sizes.append(llama_cpp.llama_state_seq_get_size(context, -1 if whole else 0))
    return sizes, window


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


def _lazy_memory() -> None:
    """Let buffers be memory that is reserved, and no more, unless it is touched.

    A cache is cleared when it is made: that is left out, since fresh pages are zero.
    """
    of_pointer = _ggml.ggml_backend_cpu_buffer_from_ptr
    of_pointer.restype, of_pointer.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]
    clear = _pointer(lambda buffer, value: None, None, ctypes.c_void_p, ctypes.c_uint8)

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


def _log(level: int, text: bytes, _data: Any) -> None:
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        print(end=text.decode("utf-8", "replace"), file=sys.stderr, flush=True)


def _pointer(function: Callable[..., Any], *types: Any) -> Any:
    return ctypes.cast(_keep(ctypes.CFUNCTYPE(*types)(function)), ctypes.c_void_p)


def _keep(what: Any) -> Any:
    _kept.append(what)
    return what


if __name__ == "__main__":
    llama_cpp.llama_log_set(_keep(llama_cpp.llama_log_callback(_log)), ctypes.c_void_p(0))
    print(json.dumps(main(sys.stdin.buffer.readline(), sys.stdin.buffer.read())), flush=True)
    os._exit(0)  # nothing here is llama.cpp's to free
