"""KVGeometry: how many bytes of KV a token, a snapshot and a context take, without decoding anything."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from swarmkv_lab.errors import SwarmKVError

if TYPE_CHECKING:
    from swarmkv_lab.llama import Model

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
KVType = str | tuple[str, str]


def kv_types(kv_type: KVType) -> tuple[str, str]:
    """(key type, value type) from one name for both or a pair."""
    pair = (kv_type, kv_type) if isinstance(kv_type, str) else tuple(kv_type)
    for name in pair:
        if name not in KV_TYPES:
            raise SwarmKVError(f"KV type {name!r} is not one of {', '.join(KV_TYPES)}")
    if len(pair) != 2:
        raise SwarmKVError(f"kv_type is one name or (key type, value type), got {kv_type!r}")
    return pair


def ggml_type(kv_type: str) -> GGMLQuantizationType:
    """ggml's number for a KV type."""
    return GGMLQuantizationType[kv_type.upper()]


def row_bytes(n_elements: int, kv_type: str) -> int:
    """Bytes of one row of K or V."""
    block, size = GGML_QUANT_SIZES[ggml_type(kv_type)]
    if n_elements % block:
        raise SwarmKVError(f"a row of {n_elements} elements does not divide into {kv_type} blocks of {block}")
    return n_elements // block * size


def pad(n: int, to: int = 256) -> int:
    """n rounded up: llama.cpp makes contexts in steps of 256 cells."""
    return -(-n // to) * to


@dataclass(frozen=True)
class KVGeometry:
    """The shape of a model's KV cache: all that its size depends on."""

    n_layer: int
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    n_ctx_train: int

    @classmethod
    def of(cls, model: "Model") -> "KVGeometry":
        """The geometry of a loaded model, from its metadata."""
        arch = model.metadata["general.architecture"]
        n_head = int(model.metadata.get(f"{arch}.attention.head_count", 0))
        head_dim = int(model.metadata[f"{arch}.embedding_length"]) // max(n_head, 1)
        return cls(
            n_layer=model.n_layer,
            n_head_kv=model.n_head_kv,
            head_dim_k=int(model.metadata.get(f"{arch}.attention.key_length", head_dim)),
            head_dim_v=int(model.metadata.get(f"{arch}.attention.value_length", head_dim)),
            n_ctx_train=model.n_ctx_train,
        )

    def bytes_per_token(self, kv_type: KVType = "f16") -> int:
        """Bytes of K and V that one token adds, all layers together."""
        key, value = kv_types(kv_type)
        return self.n_layer * (
            row_bytes(self.n_head_kv * self.head_dim_k, key) + row_bytes(self.n_head_kv * self.head_dim_v, value)
        )

    def snapshot_bytes(self, n_tokens: int, kv_type: KVType = "f16") -> int:
        """What llama_state_seq_get_size answers after n_tokens: header, a cell record a token, K and V rows."""
        return 24 + 12 * n_tokens + 24 * self.n_layer + n_tokens * self.bytes_per_token(kv_type)

    def cache_bytes(self, n_ctx: int, kv_type: KVType = "f16", n_stream: int = 1) -> int:
        """Bytes of K and V that a context of n_ctx cells allocates, in n_stream separate caches of equal size."""
        return n_stream * pad(-(-n_ctx // n_stream)) * self.bytes_per_token(kv_type)
