"""KVGeometry: predicts the KV bytes per token, per snapshot and per context, before anything is decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from swarmkv_lab.errors import ModelNotFoundError, SwarmKVError, not_one_of, whole_number
from swarmkv_lab.sizing.gguf_header import read_header
from swarmkv_lab.sizing.hollow import hollow

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
KVType = str | tuple[str, str]
UBATCH = 512  # tokens computed together, llama.cpp's default; a sliding-window cache has room for one such batch more
_MOST = 1 << 24  # limit for every number in a header; the largest of them is the context length
_MOST_TOKENS = 1 << 40  # beyond all machines, and still exact in a float
MOST_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS
# Architectures whose sizes follow from their headers by this formula: what a hollow model says, to the byte. Any other
# has a recurrent state, indexes, compressed cells, or was not compared: snapshot_bytes of its file asks llama.cpp.
_PLAIN = {
    "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bloom", "chatglm", "codeshell", "command-r",
    "dbrx", "deci", "deepseek", "deepseek2", "dots1", "ernie4_5", "ernie4_5-moe", "exaone", "falcon", "gemma",
    "glm4", "glm4moe", "gpt2", "gptneox", "granite", "granitemoe", "grok", "grovemoe", "hunyuan-dense",
    "hunyuan-moe", "hy_v3", "internlm2", "jais", "jais2", "llama", "maincoder", "minicpm", "minicpm3",
    "minimax-m2", "mistral3", "mistral4", "mpt", "nanbeige", "nemotron", "olmo", "olmoe", "openelm", "orion",
    "pangu-embedded", "phi2", "phi3", "phimoe", "plamo", "qwen", "qwen2", "qwen2moe", "qwen3", "qwen3moe",
    "refact", "seed_oss", "smollm3", "stablelm", "starcoder", "starcoder2", "talkie", "xverse",
}  # fmt: skip
_WINDOWED = {"cohere2", "gemma2", "gemma3", "gpt-oss", "olmo2"}  # once their windows are known
MROPE = "its cells may hold positions of several numbers (M-RoPE), and the formula is of one"


def kv_types(kv_type: KVType) -> tuple[str, str]:
    """(key type, value type), from one name for both or from a pair. Raises SwarmKVError for unknown types."""
    pair = (kv_type, kv_type) if isinstance(kv_type, str) else kv_type
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise SwarmKVError(f"kv_type is one name or (key type, value type), got {kv_type!r}")
    for name in pair:
        if name not in KV_TYPES:
            raise SwarmKVError(f"KV type {not_one_of(name, KV_TYPES)}")
    return pair[0], pair[1]


def is_quantized(kv_type: str) -> bool:
    """Whether a KV type stores elements in blocks that share a scale."""
    return kv_type not in ("f32", "f16", "bf16")


def ggml_type(kv_type: str) -> GGMLQuantizationType:
    """ggml's number for a KV type."""
    return GGMLQuantizationType[kv_type.upper()]


def row_bytes(n_elements: int, kv_type: str) -> int:
    """Bytes of one row of K or V. Raises SwarmKVError if it does not divide into the type's blocks."""
    block, size = GGML_QUANT_SIZES[ggml_type(kv_type)]
    if n_elements % block:
        raise SwarmKVError(f"a row of {n_elements} elements does not divide into {kv_type} blocks of {block}")
    return int(n_elements // block * size)


def pad(n: int) -> int:
    """n rounded up: llama.cpp allocates caches in steps of 256 cells."""
    return -(-n // 256) * 256


@dataclass(frozen=True)
class KVGeometry:
    """The shape of a model's KV cache: everything that its size depends on. Raises SwarmKVError for impossible shapes.

    n_head_kv: KV heads, one number or one per layer. head_dim_v: 0 if values are not stored but read from the keys
    (MLA: a key is the latent vector and the RoPE part). window: tokens that a sliding-window layer keeps. swa: for each
    layer, whether it has a sliding window.
    """

    n_layer: int
    n_head_kv: int | tuple[int, ...]
    head_dim_k: int
    head_dim_v: int
    n_ctx_train: int
    window: int = 0
    swa: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        numbers = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("n_head_kv", "swa")}
        heads = self.n_head_kv if isinstance(self.n_head_kv, tuple) else (self.n_head_kv,)
        for name, number in [*numbers.items(), *(("n_head_kv", n) for n in heads)]:
            if isinstance(number, bool) or not isinstance(number, int) or number > _MOST:
                raise SwarmKVError(f"{name}={number!r}: it is a whole number of at most {_MOST:,}")
        if not 1 <= self.n_layer <= MOST_LAYERS:
            raise SwarmKVError(f"n_layer={self.n_layer:,}: it must be at least 1 and at most {MOST_LAYERS:,}")
        for name, value in (("n_head_kv", self.heads), ("swa", self.swa)):
            if len(value) != self.n_layer and (name == "n_head_kv" or value or self.window):
                raise SwarmKVError(f"{name} has {len(value)} entries for {self.n_layer} layers")
        if min(self.head_dim_k, self.n_ctx_train, *self.heads) < 1 or min(self.head_dim_v, self.window) < 0:
            raise SwarmKVError(f"{self}: layers, heads, dimensions and the trained context must be at least 1")

    # -- constructors

    @classmethod
    def from_gguf(cls, path: str | Path) -> "KVGeometry":
        """The geometry in a GGUF's header; no weights are read. Raises as read_header and from_header.

        Also SwarmKVError where a cell may have a position of several numbers: a loaded model says whether it has.
        """
        header = read_header(path)
        if f"{header.get('general.architecture')}.rope.dimension_sections" in header:
            raise SwarmKVError(f"{path}: {MROPE}; snapshot_bytes of the file needs no formula")
        return cls.from_header(header, path)

    @classmethod
    def from_header(cls, header: Mapping[str, Any], path: str | Path) -> "KVGeometry":
        """The geometry in the header that read_header gives of a path. Windows llama.cpp may have to tell.

        Raises SwarmKVError for a header to which the formula is not known to apply, and ModelNotFoundError for one with
        missing or impossible values.
        """
        arch = str(header.get("general.architecture", ""))
        if arch and arch not in _PLAIN | _WINDOWED:
            raise SwarmKVError(
                f"{path}: no formula is known for {arch:.40} models; snapshot_bytes of the file needs none"
            )

        def number(key: str, default: Any = None, least: int = 1, most: int = _MOST) -> int:
            value = header.get(f"{arch}.{key}", default)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ModelNotFoundError(f"{path}: {arch}.{key} is {value!r}, expected {least} to {most:,}")
            return value

        n_block = number("block_count", most=MOST_LAYERS)
        n_layer = n_block - min(number("nextn_predict_layers", 0, least=0), n_block - 1)  # drafts have no cache here
        queries = header.get(f"{arch}.attention.head_count")
        heads = header.get(f"{arch}.attention.head_count_kv", queries)
        per_layer = tuple(heads) if isinstance(heads, list) else (heads,) * n_block
        head_dim = None
        if f"{arch}.attention.key_length" not in header:
            most = max(queries, default=0) if isinstance(queries, list) else number("attention.head_count")
            head_dim = number("embedding_length") // max(most, 1)
        latent = header.get(f"{arch}.attention.key_length_mla")
        window, swa = _windows(header, arch, path, n_layer) if arch in _WINDOWED else (0, ())
        try:
            return cls(
                n_layer=n_layer,
                n_head_kv=per_layer[0] if len(set(per_layer)) == 1 else per_layer[:n_layer],
                head_dim_k=number("attention.key_length", head_dim),
                head_dim_v=0 if latent else number("attention.value_length", head_dim),
                n_ctx_train=number("context_length"),
                window=window,
                swa=swa,
            )
        except SwarmKVError as error:
            raise ModelNotFoundError(f"{path}: {error}") from error

    # -- sizes

    @property
    def heads(self) -> tuple[int, ...]:
        """KV heads of each layer."""
        return self.n_head_kv if isinstance(self.n_head_kv, tuple) else (self.n_head_kv,) * self.n_layer

    def bytes_per_token(self, kv_type: KVType = "f16") -> int:
        """Bytes of K and V per token, in all layers together (in sliding-window layers, while in the window)."""
        return sum(self._rows(range(self.n_layer), kv_type))

    def snapshot_bytes(self, n_tokens: int, kv_type: KVType = "f16", *, swa_full: bool = False) -> int:
        """Bytes of a snapshot of n_tokens: what Context.state_bytes returns for such a sequence.

        8 bytes of magic and sequence id. Then, once for the full layers and once for the sliding-window layers: the
        numbers of streams (1) and cells, 12 bytes per cell (position and sequence), a header, and for K and V of each
        layer a header and a row per cell. swa_full: as in Context; sliding-window layers then have a row for every
        token.
        """
        whole_number("n_tokens", n_tokens, 0, _MOST_TOKENS)
        total = 8
        for layers, cells in self.caches(n_tokens, swa_full=swa_full):
            total += 8
            if cells:
                tensors = len(layers) * (2 if self.head_dim_v else 1)
                total += 8 + 12 * tensors + cells * (12 + sum(self._rows(layers, kv_type)))
        return total

    def cache_bytes(
        self,
        n_ctx: int,
        kv_type: KVType = "f16",
        *,
        n_seq_max: int = 1,
        n_batch: int = UBATCH,
        swa_full: bool = False,
        flash_attn: bool = True,
    ) -> int:
        """Bytes of K and V that llama.cpp allocates for a context of n_ctx cells; arguments as in Context.

        Sliding-window layers get cells for each sequence's window and for one batch. Without flash attention V is
        stored transposed, and in every layer as wide as in the widest.
        """
        for name, number in {"n_ctx": n_ctx, "n_seq_max": n_seq_max, "n_batch": n_batch}.items():
            whole_number(name, number, 1, _MOST_TOKENS)
        size = pad(n_ctx)
        windowed = pad(min(size, self.window * n_seq_max + min(size, n_batch, UBATCH)))
        total = 0
        for (layers, _), cells in zip(self.caches(), (size, size if swa_full else windowed), strict=False):
            keys, values = self._rows(layers, kv_type)
            if not flash_attn:
                values = len(layers) * row_bytes(max(self.heads) * self.head_dim_v, kv_types(kv_type)[1])
            total += cells * (keys + values)
        return total

    def _rows(self, layers: Sequence[int], kv_type: KVType) -> tuple[int, int]:
        """Bytes per token of the K rows and of the V rows in these layers."""
        key, value = kv_types(kv_type)
        by_layer = self.heads
        heads = [by_layer[layer] for layer in layers]
        keys = sum(row_bytes(n * self.head_dim_k, key) for n in heads)
        return keys, sum(row_bytes(n * self.head_dim_v, value) for n in heads)

    def caches(self, n_tokens: int = 1, *, swa_full: bool = False) -> list[tuple[list[int], int]]:
        """(layers, cells) of each llama.cpp cache: the full one and, with sliding windows, the windowed one."""
        layers = range(self.n_layer)
        if not self.window:
            return [(list(layers), n_tokens)]
        full = [layer for layer in layers if not self.swa[layer]]
        kept = n_tokens if swa_full else min(n_tokens, self.window)
        return [(full, n_tokens), ([layer for layer in layers if self.swa[layer]], kept)]


def _windows(header: Mapping[str, Any], arch: str, path: str | Path, n_layer: int) -> tuple[int, tuple[bool, ...]]:
    """(tokens of the sliding window, whether each layer has it): as the header says, or else llama.cpp."""
    window, swa = (header.get(f"{arch}.attention.sliding_window{end}") for end in ("", "_pattern"))
    if not isinstance(window, int) or not isinstance(swa, list):
        if read_header(path) != header:
            raise ModelNotFoundError(f"{path} is another file than it was: load it again")
        said = hollow(path)
        window, swa = said.window, [layer in said.windowed for layer in range(n_layer)]
    return window, tuple(map(bool, swa[:n_layer])) if window else ()


def every_nth_full(n_layer: int, n: int) -> tuple[bool, ...]:
    """For each layer, whether it has a sliding window: n - 1 layers have one, then one layer attends to all tokens."""
    return tuple(layer % n < n - 1 for layer in range(n_layer))
