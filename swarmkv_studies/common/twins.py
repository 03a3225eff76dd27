"""Twins: GGUFs with a big model's KV geometry and very few weights, so that its cache can be measured anywhere.

Full-size twins have all of a model's sizes and random weights: its speed without its words.
"""

import hashlib
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

import swarmkv_lab as lab
from swarmkv_lab.files import cache_folder, replacing
from swarmkv_lab.sizing.catalogue import geometry as geometry_of


class Sizes(NamedTuple):
    """What a model's weights depend on beside its KV geometry; by default next to nothing."""

    n_embd: int = 32
    n_ff: int = 32
    n_vocab: int = 256
    n_head: int = 0
    """query heads; 0: as many as KV heads"""
    tied: bool = False
    """whether the token embedding is the output matrix too"""


_SMALL = Sizes()
# From the config.json of each model's page, as the catalogue.
FULL_SIZES = {
    "smollm2-135m": Sizes(576, 1536, 49_152, 9, tied=True),
    "qwen2.5-0.5b": Sizes(896, 4864, 151_936, 14, tied=True),
    "qwen2.5-7b": Sizes(3584, 18_944, 152_064, 28),
}
_BLOCK = np.dtype([("scale", "<f2"), ("weights", np.int8, 32)])  # of Q8_0
_PERIOD = 1_000_003  # blocks that are drawn; a prime, so that no row begins where one before it began


def twin(geometry: lab.KVGeometry) -> Path:
    """The path of a GGUF with this KV geometry, written into the cache folder on first use.

    Snapshot sizes and the times of capture, restore and share are those of the big model; prefill times are not. Token
    ids are 0 to 255; there is no vocabulary. Raises SwarmKVError for geometries that no twin can have.
    """
    name = f"twin-{hashlib.sha256(repr(geometry).encode()).hexdigest()[:16]}.gguf"
    return _cached(name, geometry, Writer)


def full_size_twin(name: str) -> Path:
    """The path of a GGUF in Q8_0 with the sizes of a model of the catalogue, written into the cache folder once.

    Its snapshots and all of its times are the model's, if that is in Q8_0 too; what it answers means nothing. It knows
    token ids only. qwen2.5-7b takes 8.1 GB. Raises SwarmKVError for a name that is not in FULL_SIZES.
    """
    if name not in FULL_SIZES:
        raise lab.SwarmKVError(f"no full-size twin of {name!r}: the sizes are known of {', '.join(FULL_SIZES)}")
    return _cached(f"{name}-twin.Q8_0.gguf", geometry_of(name), FullSize, FULL_SIZES[name])


def _cached(name: str, geometry: lab.KVGeometry, writer: "type[Writer]", sizes: Sizes = _SMALL) -> Path:
    """A file of the cache folder, which is written unless its header says what the geometry says."""
    path = cache_folder("twins") / name
    with suppress(lab.SwarmKVError):  # it is missing or damaged
        if lab.KVGeometry.from_gguf(path) == geometry:
            return path
    with replacing(path) as fresh:
        writer(Path(fresh.name), geometry, sizes).write()
    return path


def write_twin(path: Path, geometry: lab.KVGeometry) -> Path:
    """Write the twin of a geometry to a path, and return the path. Raises SwarmKVError as ``twin``."""
    Writer(path, geometry).write()
    return path


class Writer:
    """Writes one GGUF, in an architecture that has the geometry's kind of cache in llama.cpp."""

    def __init__(self, path: Path, geometry: lab.KVGeometry, sizes: Sizes = _SMALL) -> None:
        if len(set(geometry.heads)) > 1:
            raise lab.SwarmKVError("a twin needs the same number of KV heads in every layer")
        if geometry.head_dim_k % 2:
            raise lab.SwarmKVError(
                f"a head of {geometry.head_dim_k} dimensions has no twin: RoPE rotates pairs of dimensions"
            )
        self.geometry = geometry
        self.sizes = sizes
        self.n_head_kv = geometry.heads[0]
        self.n_head = sizes.n_head or self.n_head_kv
        self.rng = np.random.default_rng(0)
        alike = geometry.head_dim_k == geometry.head_dim_v
        if geometry.window and not alike:
            raise lab.SwarmKVError("a twin with sliding windows needs keys and values of the same size")
        self.arch = "gemma3" if geometry.window else "llama" if alike else "deepseek2"
        self.gguf = GGUFWriter(path, self.arch)

    def write(self) -> None:
        """Write the file."""
        self.metadata()
        n_embd, n_ff, n_vocab, *_ = self.sizes
        self.matrix("token_embd", n_vocab, n_embd)
        if not self.sizes.tied:
            self.matrix("output", n_vocab, n_embd)
        self.norm("output_norm", n_embd)
        for layer in (f"blk.{i}" for i in range(self.geometry.n_layer)):
            self.norm(f"{layer}.attn_norm", n_embd)
            self.latent_attention(layer) if self.arch == "deepseek2" else self.attention(layer)
            self.norm(f"{layer}.ffn_norm", n_embd)
            self.matrix(f"{layer}.ffn_gate", n_ff, n_embd)
            self.matrix(f"{layer}.ffn_up", n_ff, n_embd)
            self.matrix(f"{layer}.ffn_down", n_embd, n_ff)
        with closing(self.gguf):
            self.gguf.write_header_to_file()
            self.gguf.write_kv_data_to_file()
            self.gguf.write_tensors_to_file()

    def metadata(self) -> None:
        """What llama.cpp reads before the tensors."""
        gguf, geometry = self.gguf, self.geometry
        gguf.add_block_count(geometry.n_layer)
        gguf.add_context_length(geometry.n_ctx_train)
        gguf.add_embedding_length(self.sizes.n_embd)
        gguf.add_feed_forward_length(self.sizes.n_ff)
        gguf.add_vocab_size(self.sizes.n_vocab)
        gguf.add_head_count(self.n_head)
        gguf.add_head_count_kv(self.n_head_kv)
        gguf.add_key_length(geometry.head_dim_k)
        gguf.add_value_length(geometry.head_dim_v or self.latent)
        gguf.add_layer_norm_rms_eps(1e-5)
        gguf.add_tokenizer_model("no_vocab")
        gguf.add_rope_dimension_count(self.n_rot if self.arch == "deepseek2" else geometry.head_dim_k)
        if self.arch == "gemma3":
            gguf.add_sliding_window(geometry.window)
            gguf.add_array("gemma3.attention.sliding_window_pattern", list(geometry.swa))
        if self.arch == "deepseek2":
            gguf.add_leading_dense_block_count(geometry.n_layer)  # no experts
            gguf.add_expert_feed_forward_length(self.sizes.n_ff)
            gguf.add_expert_shared_count(0)
            gguf.add_q_lora_rank(0)
            gguf.add_kv_lora_rank(self.latent)
            if not geometry.head_dim_v:
                gguf.add_key_length_mla(self.n_rot + self.n_nope)
                gguf.add_value_length_mla(self.n_nope)

    @property
    def n_rot(self) -> int:
        """Rotated dimensions of a latent-attention key."""
        return next((n for n in (64, 32) if n <= self.geometry.head_dim_k // 2), self.geometry.head_dim_k // 4 * 2)

    @property
    def n_nope(self) -> int:
        """Dimensions of a decompressed key that are not rotated."""
        return self.geometry.head_dim_k - self.n_rot if self.geometry.head_dim_v else 16

    @property
    def latent(self) -> int:
        """Size of the compressed vector. With MLA the cache holds it and the rotated dimensions."""
        return 16 if self.geometry.head_dim_v else self.geometry.head_dim_k - self.n_rot

    def attention(self, layer: str) -> None:
        """The matrices of a layer whose cache holds keys and values."""
        n_embd, dim_k, dim_v = self.sizes.n_embd, self.geometry.head_dim_k, self.geometry.head_dim_v
        self.matrix(f"{layer}.attn_q", self.n_head * dim_k, n_embd)
        self.matrix(f"{layer}.attn_k", self.n_head_kv * dim_k, n_embd)
        self.matrix(f"{layer}.attn_v", self.n_head_kv * dim_v, n_embd)
        self.matrix(f"{layer}.attn_output", n_embd, self.n_head * dim_v)
        if self.arch == "gemma3":
            self.norm(f"{layer}.attn_q_norm", self.geometry.head_dim_k)
            self.norm(f"{layer}.attn_k_norm", self.geometry.head_dim_k)
            self.norm(f"{layer}.post_attention_norm", n_embd)
            self.norm(f"{layer}.post_ffw_norm", n_embd)

    def latent_attention(self, layer: str) -> None:
        """Those of a layer whose cache holds latent vectors, or keys wider than values."""
        n_embd, value = self.sizes.n_embd, self.geometry.head_dim_v or self.n_nope
        self.matrix(f"{layer}.attn_q", self.n_head * (self.n_nope + self.n_rot), n_embd)
        self.matrix(f"{layer}.attn_kv_a_mqa", self.latent + self.n_rot, n_embd)
        self.norm(f"{layer}.attn_kv_a_norm", self.latent)
        if self.geometry.head_dim_v:
            self.matrix(f"{layer}.attn_kv_b", self.n_head * (self.n_nope + value), self.latent)
        else:
            self.matrix(f"{layer}.attn_k_b", self.latent, self.n_nope, self.n_head)
            self.matrix(f"{layer}.attn_v_b", value, self.latent, self.n_head)
        self.matrix(f"{layer}.attn_output", n_embd, self.n_head * value)

    def matrix(self, name: str, n_out: int, n_in: int, *heads: int) -> None:
        """Random weights, float16."""
        # Scaled so that activations and attention scores stay near 1; so the logits depend on the earlier tokens.
        weights = self.rng.standard_normal((*heads, n_out, n_in), np.float32) / np.float32(np.sqrt(n_in))
        self.gguf.add_tensor(f"{name}.weight", weights.astype(np.float16))

    def norm(self, name: str, n: int) -> None:
        """A norm that changes no scale."""
        self.gguf.add_tensor(f"{name}.weight", np.ones(n, np.float32))


class FullSize(Writer):
    """Gigabytes in seconds: each matrix is a piece, where chance says, of a long ribbon of random blocks."""

    def __init__(self, path: Path, geometry: lab.KVGeometry, sizes: Sizes) -> None:
        super().__init__(path, geometry, sizes)
        self._ribbons: dict[int, np.ndarray] = {}

    def matrix(self, name: str, n_out: int, n_in: int, *heads: int) -> None:
        """A piece of the ribbon, Q8_0."""
        n_blocks = n_out * n_in // 32
        start = int(self.rng.integers(_PERIOD))
        rows = self._ribbon(n_in, _PERIOD + n_blocks)[start : start + n_blocks].view(np.uint8).reshape(n_out, -1)
        self.gguf.add_tensor(f"{name}.weight", rows, raw_dtype=GGMLQuantizationType.Q8_0)

    def _ribbon(self, n_in: int, n_blocks: int) -> np.ndarray:
        """At least so many blocks of weights of variance 1 / n_in, as a twin's are; the same ones again and again."""
        if n_in not in self._ribbons:
            self._ribbons[n_in] = drawn = np.empty(_PERIOD, _BLOCK)
            drawn["weights"] = weights = self.rng.integers(-127, 128, (_PERIOD, 32), np.int8)
            drawn["scale"] = 1 / (weights[:1000].std() * np.sqrt(n_in))
        if len(self._ribbons[n_in]) < n_blocks:
            self._ribbons[n_in] = np.resize(self._ribbons[n_in][:_PERIOD], n_blocks)
        return self._ribbons[n_in]
