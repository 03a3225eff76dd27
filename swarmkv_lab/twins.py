"""Twins: GGUFs with a big model's KV geometry and next to no weights, so that its cache can be measured anywhere."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from swarmkv_lab.sizing import KVGeometry

N_EMBD, N_FF, N_VOCAB = 32, 32, 256


def write_twin(path: Path, geometry: KVGeometry, *, sliding_window: int = 0, pattern: Sequence[bool] = ()) -> Path:
    """Write a GGUF of random weights whose KV cache has the given geometry; token ids are 0 to 255, no vocabulary.

    With ``sliding_window`` tokens, layers where ``pattern`` is true attend to that window only, as in Gemma 3.
    """
    arch = "gemma3" if sliding_window else "llama"
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, arch)
    writer.add_name(path.stem)
    writer.add_block_count(geometry.n_layer)
    writer.add_context_length(geometry.n_ctx_train)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_vocab_size(N_VOCAB)
    writer.add_head_count(geometry.n_head_kv)
    writer.add_head_count_kv(geometry.n_head_kv)
    writer.add_key_length(geometry.head_dim_k)
    writer.add_value_length(geometry.head_dim_v)
    writer.add_rope_dimension_count(geometry.head_dim_k)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    if sliding_window:
        writer.add_sliding_window(sliding_window)
        writer.add_array(f"{arch}.attention.sliding_window_pattern", list(map(bool, pattern)))

    def matrix(name: str, n_out: int, n_in: int) -> None:
        # Scaled so that activations and attention scores stay near 1: what a token sees then decides its logits.
        writer.add_tensor(f"{name}.weight", (rng.standard_normal((n_out, n_in)) / np.sqrt(n_in)).astype(np.float16))

    def norm(name: str, n: int) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(n, np.float32))

    keys, values = geometry.n_head_kv * geometry.head_dim_k, geometry.n_head_kv * geometry.head_dim_v
    matrix("token_embd", N_VOCAB, N_EMBD)
    matrix("output", N_VOCAB, N_EMBD)
    norm("output_norm", N_EMBD)
    for layer in (f"blk.{i}" for i in range(geometry.n_layer)):
        norm(f"{layer}.attn_norm", N_EMBD)
        matrix(f"{layer}.attn_q", keys, N_EMBD)
        matrix(f"{layer}.attn_k", keys, N_EMBD)
        matrix(f"{layer}.attn_v", values, N_EMBD)
        matrix(f"{layer}.attn_output", N_EMBD, values)
        norm(f"{layer}.ffn_norm", N_EMBD)
        matrix(f"{layer}.ffn_gate", N_FF, N_EMBD)
        matrix(f"{layer}.ffn_up", N_FF, N_EMBD)
        matrix(f"{layer}.ffn_down", N_EMBD, N_FF)
        if sliding_window:
            norm(f"{layer}.attn_q_norm", geometry.head_dim_k)
            norm(f"{layer}.attn_k_norm", geometry.head_dim_k)
            norm(f"{layer}.post_attention_norm", N_EMBD)
            norm(f"{layer}.post_ffw_norm", N_EMBD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
