"""ContextSettings: what a Context is made with, checked, resolved, and turned into llama.cpp's parameters."""

import os
from dataclasses import dataclass, replace
from typing import Any

import llama_cpp

from swarmkv_lab.errors import INT32_MAX, SwarmKVError, whole_number
from swarmkv_lab.llama.api import default_threads
from swarmkv_lab.sizing.geometry import UBATCH, KVType, ggml_type, is_quantized, kv_types, pad

_UNROTATED = "LLAMA_ATTN_ROT_DISABLE"  # of llama.cpp: quantized keys and values are not rotated
MAX_SEQUENCES: int = llama_cpp.llama_max_parallel_sequences()
LOGIT_ROWS = 16
"""that a context has room for, or as many as it has sequences: with fewer llama.cpp ends the process. The same for all
strategies: with 1 row and with 16 memory is laid out otherwise, which alone made prefills 5 to 9 % slower (measured)"""
MAX_THREADS = 512  # ggml's GGML_MAX_N_THREADS; with more it writes past an array


@dataclass(frozen=True)
class ContextSettings:
    """The settings of a Context; see there for their meaning. They travel from a call's door to llama.cpp as they are.

    n_ctx: None until it is known how many tokens there will be (``sized``).
    """

    n_ctx: int | None = None
    n_seq_max: int = 1
    kv_type: KVType = "f16"
    flash_attn: bool | str = "auto"
    n_batch: int = 512
    swa_full: bool = False
    n_threads: int | None = None
    n_threads_batch: int | None = None

    def __post_init__(self) -> None:
        optional = {"n_ctx": INT32_MAX, "n_threads": MAX_THREADS, "n_threads_batch": MAX_THREADS}
        for name, most in {"n_batch": INT32_MAX, "n_seq_max": MAX_SEQUENCES, **optional}.items():
            value = getattr(self, name)
            if value is not None or name not in optional:
                whole_number(name, value, 1, most)
        if not isinstance(self.swa_full, bool):
            raise SwarmKVError(f"swa_full={self.swa_full!r}: it is True or False")
        if not isinstance(self.flash_attn, bool) and self.flash_attn != "auto":
            raise SwarmKVError(f"flash_attn={self.flash_attn!r}: it is 'auto', True or False")
        if self.flash_attn is False and is_quantized(self.kv_pair[1]):
            raise SwarmKVError(f"V as {self.kv_pair[1]} needs flash attention: pass flash_attn='auto' or True")

    def sized(self, n_ctx: int) -> "ContextSettings":
        """With so many cells, unless the caller has chosen a number."""
        return self if self.n_ctx is not None else replace(self, n_ctx=n_ctx)

    @property
    def kv_pair(self) -> tuple[str, str]:
        """The types of K and of V."""
        return kv_types(self.kv_type)

    @property
    def cells(self) -> int:
        """n_ctx, once it is known."""
        if self.n_ctx is None:
            raise SwarmKVError("n_ctx is not set: say how many tokens the context is to hold")
        return self.n_ctx

    @property
    def threads(self) -> int:
        """Threads of a decode of one token."""
        return self.n_threads or default_threads()

    @property
    def threads_batch(self) -> int:
        """Threads of a decode of several: a prefill, or agents in step."""
        return self.n_threads_batch or self.threads

    def layout(self, on_gpu: bool) -> dict[str, Any]:
        """Those that a cache's size depends on: what ``context_bytes`` takes."""
        names = ("kv_type", "n_seq_max", "swa_full", "n_batch")
        sizes = {name: getattr(self, name) for name in names}
        return {"n_ctx": self.cells, "flash_attn": self.uses_flash_attn(on_gpu), **sizes}

    def uses_flash_attn(self, on_gpu: bool) -> bool:
        """Whether a context with these decodes with it: what "auto" comes to."""
        return (is_quantized(self.kv_pair[1]) or on_gpu) if self.flash_attn == "auto" else bool(self.flash_attn)

    def params(self, on_gpu: bool) -> Any:
        """llama.cpp's parameters, a llama_context_params."""
        if os.environ.get(_UNROTATED) and any(map(is_quantized, self.kv_pair)):
            raise SwarmKVError(f"{_UNROTATED} is set, and quantized snapshots would fit no others: unset it")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = pad(self.cells)  # llama.cpp pads it too, but cuts n_batch to what it was before
        params.n_outputs_max = max(self.n_seq_max, LOGIT_ROWS)
        params.n_batch = self.n_batch
        params.n_ubatch = min(self.n_batch, UBATCH)
        params.n_seq_max = self.n_seq_max
        params.n_threads, params.n_threads_batch = self.threads, self.threads_batch
        params.type_k, params.type_v = map(ggml_type, self.kv_pair)
        params.flash_attn_type = int(self.uses_flash_attn(on_gpu))
        params.kv_unified = True  # sequences can share cells of one cache alone
        params.swa_full = self.swa_full
        params.offload_kqv = on_gpu
        return params
