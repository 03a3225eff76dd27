"""What a Context is made with: checked, resolved, and turned into llama.cpp's parameters."""

from dataclasses import dataclass

import llama_cpp

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.api import default_threads
from swarmkv_lab.sizing.geometry import UBATCH, KVGeometry, KVType, ggml_type, kv_types, pad

_MAX_SEQUENCES = llama_cpp.llama_max_parallel_sequences()
_MAX_TOKENS = 2**31 - 1  # positions are int32


@dataclass(frozen=True)
class ContextSettings:
    """The settings of a Context; see there for their meaning."""

    n_ctx: int
    n_seq_max: int = 1
    kv_type: KVType = "f16"
    flash_attn: bool | str = "auto"
    kv_unified: bool = True
    n_batch: int = 512
    swa_full: bool = False
    n_threads: int | None = None
    n_threads_batch: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("n_ctx", _MAX_TOKENS), ("n_batch", _MAX_TOKENS), ("n_seq_max", _MAX_SEQUENCES)):
            if not 1 <= getattr(self, name) <= most:
                raise SwarmKVError(f"{name}={getattr(self, name)}: it must be from 1 to {most:,}")
        for name in ("n_threads", "n_threads_batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise SwarmKVError(f"{name}={getattr(self, name)}: it must be at least 1")
        if self.flash_attn not in ("auto", True, False):
            raise SwarmKVError(f"flash_attn={self.flash_attn!r}: it is 'auto', True or False")
        if self.flash_attn is False and self.v_quantized:
            raise SwarmKVError(f"V as {self.kv_pair[1]} needs flash attention: pass flash_attn='auto' or True")

    @property
    def kv_pair(self) -> tuple[str, str]:
        """The types of K and of V."""
        return kv_types(self.kv_type)

    @property
    def v_quantized(self) -> bool:
        """Whether V is stored in blocks, which only flash attention can read."""
        return self.kv_pair[1] not in ("f32", "f16", "bf16")

    @property
    def n_stream(self) -> int:
        """Separate caches: one for all sequences, or one a sequence."""
        return 1 if self.kv_unified else self.n_seq_max

    @property
    def threads(self) -> int:
        """Threads of a decode of one token."""
        return self.n_threads or default_threads()

    @property
    def threads_batch(self) -> int:
        """Threads of a decode of several: a prefill, or agents in step."""
        return self.n_threads_batch or self.threads

    def cache_bytes(self, geometry: KVGeometry, flash_attn: bool) -> int:
        """Bytes of K and V that llama.cpp will allocate."""
        return geometry.cache_bytes(
            self.n_ctx,
            self.kv_type,
            n_seq_max=self.n_seq_max,
            unified=self.kv_unified,
            n_batch=self.n_batch,
            swa_full=self.swa_full,
            flash_attn=flash_attn,
        )

    def uses_flash_attn(self, on_gpu: bool) -> bool:
        """What "auto" comes to."""
        return (self.v_quantized or on_gpu) if self.flash_attn == "auto" else bool(self.flash_attn)

    def params(self, on_gpu: bool) -> llama_cpp.llama_context_params:
        """llama.cpp's parameters."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = pad(self.n_ctx)  # llama.cpp pads it too, but cuts n_batch to what it was before
        params.n_outputs_max = self.n_seq_max  # a row of logits a sequence; fewer than n_seq_max abort the process
        params.n_batch = self.n_batch
        params.n_ubatch = min(self.n_batch, UBATCH)
        params.n_seq_max = self.n_seq_max
        params.n_threads, params.n_threads_batch = self.threads, self.threads_batch
        params.type_k, params.type_v = map(ggml_type, self.kv_pair)
        params.flash_attn_type = int(self.uses_flash_attn(on_gpu))
        params.kv_unified = self.kv_unified
        params.swa_full = self.swa_full
        params.offload_kqv = on_gpu
        return params
