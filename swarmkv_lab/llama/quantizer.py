"""A program of its own: llama.cpp's quantizer, which prints what it logs. ``loading`` runs it and reads that.

In a process of its own a long quantization can be stopped, and a file that llama.cpp aborts on ends nobody's kernel.
Arguments: source, target, threads, and key=value pairs for the target's metadata.
"""

import ctypes
import os
import sys

import llama_cpp


def main(source: str, target: str, n_threads: str, *pairs: str) -> int:
    """Write the target, in Q8_0, and return llama.cpp's return code."""
    log = llama_cpp.llama_log_callback(lambda level, text, data: print(end=text.decode("utf-8", "replace"), flush=True))
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, int(n_threads)
    params.allow_requantize = True
    overrides = (llama_cpp.llama_model_kv_override * (len(pairs) + 1))()  # the last one, empty, ends the list
    for override, pair in zip(overrides, pairs, strict=False):
        key, _, value = pair.partition("=")
        override.tag, override.key = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, key.encode()
        override.value.val_str = value.encode()
    params.kv_overrides = overrides
    return int(llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)))


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]  # on Windows it is cp1252
    sys.exit(main(*sys.argv[1:]))
