"""Rope: rotary position embedding in numpy, as llama.cpp applies it to keys; and llama.cpp's own shift of them."""

import math
from dataclasses import dataclass

import llama_cpp
import numpy as np

import swarmkv_lab as lab
from swarmkv_lab.errors import whole_number
from swarmkv_lab.sizing.gguf_header import read_gguf

_PLAIN, _HALVES = "plain", "halves"
_PAIRS = {0: _PLAIN, 2: _HALVES}  # llama.cpp's rope types: pairs (0,1), (2,3), ...; or (0,n/2), (1,n/2+1), ...
# Architectures whose keys llama.cpp turns by one plain RoPE in all layers. Of a tiny model of each, the logits after a
# shift were those of the other positions within 1e-6 of their spread; of those that it gets wrong they were 1e-4 off.
_VERIFIED = {"deepseek", "falcon", "gemma", "gptneox", "internlm2", "llama", "olmoe", "phi2", "qwen2", "qwen2moe"}
_VERIFIED |= {"qwen3", "qwen3moe", "stablelm"}


@dataclass(frozen=True)
class Rope:
    """Pairs of a vector's first ``n_rot`` elements turn by position / base**(2 i / n_rot)."""

    n_rot: int
    base: float
    pairs: str

    @classmethod
    def of(cls, model: lab.Model) -> "Rope":
        """A model's; SwarmKVError where llama.cpp does more than to turn pairs, or not in all layers."""
        arch, kind = model.architecture, model.kind
        reasons = {
            f"not verified for {arch}": arch not in _VERIFIED,
            f"its type is {kind.rope_type}": kind.rope_type not in _PAIRS,
            "positions are scaled": model.metadata.get(f"{arch}.rope.scaling.type", "none") != "none",
            "LongRoPE": kind.long_rope_from is not None,
            "each frequency has a factor": any(name.startswith("rope_freqs") for name in read_gguf(model.path).shapes),
        }
        if why := "; ".join(reason for reason, holds in reasons.items() if holds):
            raise lab.SwarmKVError(f"{model.name}: its RoPE is not plain ({why})")
        n_rot = int(model.metadata.get(f"{arch}.rope.dimension_count", model.geometry.head_dim_k))
        base = float(model.metadata.get(f"{arch}.rope.freq_base", 10_000))
        return cls(n_rot, base, _PAIRS[kind.rope_type])

    def turn(self, element: int) -> float:
        """Tokens in which this element of a vector, with the other of its pair, turns once; inf: it does not turn.

        Raises SwarmKVError for a negative element.
        """
        whole_number("element", element)
        if element >= self.n_rot:
            return math.inf
        i = element // 2 if self.pairs == _PLAIN else element % (self.n_rot // 2)
        return float(2 * math.pi * self.base ** (2 * i / self.n_rot))

    def rotate(self, vectors: np.ndarray, by: int | np.ndarray) -> np.ndarray:
        """Vectors (..., head_dim) turned on by so many positions, float64; ``by`` broadcasts with the rows (...)."""
        rows = np.broadcast_shapes(vectors.shape[:-1], np.shape(by))
        out = np.broadcast_to(vectors, (*rows, vectors.shape[-1])).astype(np.float64)
        i = np.arange(self.n_rot // 2)
        first, second = (2 * i, 2 * i + 1) if self.pairs == _PLAIN else (i, i + len(i))
        angle = np.asarray(by, np.float64)[..., None] * self.base ** (-2 * i / self.n_rot)
        x, y = out[..., first], out[..., second]
        out[..., first] = x * np.cos(angle) - y * np.sin(angle)
        out[..., second] = x * np.sin(angle) + y * np.cos(angle)
        return out


def shift(ctx: lab.Context, delta: int, start: int = 0) -> None:
    """Move the tokens of sequence 0 from position ``start`` on by delta positions (llama_memory_seq_add).

    It must share its cells with no other. The keys are rotated at the next decode, and stored again in the KV type;
    where they were is a gap then. Raises SwarmKVError as ``Rope.of``, and for keys that llama.cpp cannot rotate.
    """
    Rope.of(ctx.model)
    if (kv_type := ctx.settings.kv_pair[0]) not in ("f16", "f32"):  # the next decode would end the process
        raise lab.SwarmKVError(f"llama.cpp rotates stored keys of f16 and f32 only, and these are {kv_type}")
    with ctx.guard:
        whole_number("start", start, 0, ctx.n_past() - 1)
        whole_number("delta", delta, 0, ctx.model.n_ctx_train)
        llama_cpp.llama_memory_seq_add(llama_cpp.llama_get_memory(ctx.handle), 0, start, -1, delta)
