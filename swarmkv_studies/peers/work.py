"""Work: the arithmetic and the memory traffic of one decode, counted from the shapes of a GGUF's tensors."""

from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from swarmkv_lab.errors import whole_number
from swarmkv_lab.sizing.geometry import UBATCH, KVGeometry, KVType
from swarmkv_lab.sizing.gguf_header import Tensor, read_gguf

_LOOKED_UP = ("token_embd.weight", "position_embd.weight", "token_types.weight")  # a row per token, and no product


class Work(NamedTuple):
    """What one decode has to do."""

    flop: int
    """floating-point operations; a multiply-add is two"""
    n_bytes: int
    """bytes of weights and of KV cache that it reads"""


def decode_work(path: str | Path, n_tokens: int, n_past: int = 0, kv_type: KVType = "f16") -> Work:
    """The work of decoding n_tokens after n_past others, with logits after the last one, as llama.cpp does it.

    FLOP, exact: 2 * elements of each matrix per token that passes it. All tokens pass the layers' matrices, and of the
    experts as many as a token uses. Only the last token passes the output matrix and the feed-forward matrices of the
    last layer. Attention adds, in each layer, 2 * n_head * (head_dim_k + head_dim_v) per key that a token sees: those
    of all tokens before it and its own, or of the window. Norms, RoPE, softmax and the dequantization are not counted,
    nor the products that a causal mask removes afterwards.

    Bytes: all weights once per micro-batch of 512 tokens, and the KV cache as it is at the end of that batch.
    Raises SwarmKVError for architectures whose cache sizing does not know, and for numbers that are not whole.
    """
    whole_number("n_tokens", n_tokens, 1)
    whole_number("n_past", n_past)
    header, tensors = read_gguf(path)
    geometry = KVGeometry.from_header(header, Path(path).name)
    experts = _Experts.of(header)
    last = f"blk.{geometry.n_layer - 1}.ffn_"
    products = _products(tensors)
    flop = sum(
        2 * experts.used(name, prod(tensor.shape), 1) * (1 if name.startswith((last, "output")) else n_tokens)
        for name, tensor in products.items()
    )
    flop += _attention_flop(header, geometry, n_tokens, n_past)
    n_bytes = 0
    for start in range(0, n_tokens, UBATCH):
        size = min(UBATCH, n_tokens - start)
        n_bytes += sum(experts.used(name, tensor.n_bytes, size) for name, tensor in products.items())
        n_bytes += geometry.snapshot_bytes(n_past + start + size, kv_type)
    return Work(flop, n_bytes)


class _Experts(NamedTuple):
    n: int
    n_used: int
    """per token"""

    @classmethod
    def of(cls, header: dict[str, Any]) -> "_Experts":
        arch = header.get("general.architecture")
        return cls(header.get(f"{arch}.expert_count", 0), header.get(f"{arch}.expert_used_count", 0))

    def used(self, name: str, amount: int, n_tokens: int) -> int:
        """Of a tensor's elements or bytes, those that n_tokens use if no two of them use the same expert."""
        return amount * min(self.n, self.n_used * n_tokens) // self.n if "_exps." in name and self.n else amount


def _products(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The matrices that are multiplied. Where there is no output matrix, it is the token embedding's, which is tied."""
    products = {name: t for name, t in tensors.items() if len(t.shape) > 1 and name not in _LOOKED_UP}
    if "output.weight" not in products and _LOOKED_UP[0] in tensors:
        products["output.weight"] = tensors[_LOOKED_UP[0]]
    return products


def _attention_flop(header: dict[str, Any], geometry: KVGeometry, n_tokens: int, n_past: int) -> int:
    arch = header.get("general.architecture")
    heads = header[f"{arch}.attention.head_count"]
    heads = heads if isinstance(heads, list) else [heads] * geometry.n_layer
    # MLA attends to the latent vectors: the values' part of a key has kv_lora_rank dimensions.
    value_dim = geometry.head_dim_v or header[f"{arch}.attention.kv_lora_rank"]
    per_key = 2 * (geometry.head_dim_k + value_dim)
    seen = range(n_past + 1, n_past + n_tokens + 1)
    everything, windowed = sum(seen), sum(min(n, geometry.window) for n in seen)
    swa = geometry.swa or [False] * geometry.n_layer
    return sum(
        per_key * n_head * (windowed if has_window else everything)
        for n_head, has_window in zip(heads, swa, strict=False)
    )
