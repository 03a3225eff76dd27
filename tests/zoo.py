"""Tiny models of the main kinds that llama.cpp runs: real architectures with random weights, without a vocabulary.

``write(kind, path)`` makes one in milliseconds. Token ids are 0 to 255; no kind was trained for fewer than 256 tokens.
"""

import functools
import operator
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

E, F, V = 64, 96, 256  # embedding, feed-forward, vocabulary
H, D = 2, 32  # query heads, and their dimensions, a block of quantized caches; one KV head
WINDOW = 32
N_CTX = 4096

Tensors = Mapping[str, tuple[int, ...]]  # by name, shapes as in numpy: (out, in). No suffix: ".weight"
TOP: Tensors = {"output_norm": (E,), "output": (V, E)}


def norms(*names: str, bias: bool = False) -> Tensors:
    return {f"{name}{end}": (E,) for name in names for end in (("", ".bias") if bias else ("",))}


DENSE: Tensors = {"ffn_gate": (F, E), "ffn_up": (F, E), "ffn_down": (E, F)}
ATTENTION: Tensors = {"attn_q": (H * D, E), "attn_k": (D, E), "attn_v": (D, E), "attn_output": (E, H * D)}
QK_NORMS: Tensors = {"attn_q_norm": (D,), "attn_k_norm": (D,)}
TWO_NORMS = norms("attn_norm", "ffn_norm")
LLAMA = TWO_NORMS | ATTENTION | DENSE

# Layers with a recurrent state instead of a cache
S, CONV = 16, 4  # state, convolution
MAMBA_KEYS = {"inner_size": 2 * E, "state_size": S, "time_step_rank": 4, "group_count": 1, "conv_kernel": CONV}
MAMBA: Tensors = {
    **norms("attn_norm"),
    "ssm_in": (4 * E + 2 * S + 4, E),
    "ssm_conv1d": (2 * E + 2 * S, CONV),
    "ssm_conv1d.bias": (2 * E + 2 * S,),
    "ssm_dt.bias": (4,),
    "ssm_a": (4, 1),
    "ssm_d": (4, 1),
    "ssm_norm": (1, 2 * E),
    "ssm_out": (E, 2 * E),
}
DELTA_KEYS = {"inner_size": 2 * S, "state_size": S, "time_step_rank": 2, "group_count": 1, "conv_kernel": CONV}
DELTA: Tensors = {
    "attn_qkv": (4 * S, E),
    "attn_gate": (2 * S, E),
    "ssm_conv1d": (4 * S, CONV),
    "ssm_dt.bias": (2,),
    "ssm_a": (2,),
    "ssm_beta": (2, E),
    "ssm_alpha": (2, E),
    "ssm_norm": (S,),
    "ssm_out": (E, 2 * S),
}
SHORTCONV: Tensors = {"shortconv.conv": (E, 3), "shortconv.in_proj": (3 * E, E), "shortconv.out_proj": (E, E)}

# Layers whose cache holds a latent vector and a rotated part of the key
LATENT, ROPE = 32, 32
MLA_KEYS = {
    "attention.kv_lora_rank": LATENT,
    "attention.key_length": LATENT + ROPE,
    "attention.value_length": LATENT,
    "attention.key_length_mla": D + ROPE,
    "attention.value_length_mla": D,
    "rope.dimension_count": ROPE,
    "expert_feed_forward_length": F,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
}
LATENT_KV: Tensors = {
    "attn_kv_a_mqa": (LATENT + ROPE, E),
    "attn_kv_a_norm": (LATENT,),
    "attn_k_b": (H, LATENT, D),
    "attn_v_b": (H, D, LATENT),
    "attn_output": (E, H * D),
}
LATENT_Q: Tensors = {"attn_q_a": (LATENT, E), "attn_q_a_norm": (LATENT,), "attn_q_b": (H * (D + ROPE), LATENT)}
INDEXER: Tensors = {  # llama.cpp turns its keys by matrices of 64 x 64
    "indexer.k_norm": (64,),
    "indexer.k_norm.bias": (64,),
    "indexer.proj": (2, E),
    "indexer.attn_k": (64, E),
    "indexer.attn_q_b": (2 * 64, LATENT),
}


def experts(*, shared: bool = False, bias: bool = False) -> Tensors:
    weights = {"ffn_gate_exps": (2, F, E), "ffn_up_exps": (2, F, E), "ffn_down_exps": (2, E, F), "ffn_gate_inp": (2, E)}
    biases = {f"{name}.bias": shape[:-1] for name, shape in weights.items()} if bias else {}
    return weights | biases | ({f"{name}_shexp": shape for name, shape in DENSE.items()} if shared else {})


def ssm(keys: Mapping[str, int]) -> dict[str, int]:
    return {f"ssm.{name}": value for name, value in keys.items()}


@dataclass(frozen=True)
class Kind:
    """keys: without the architecture's name in front. outside: tensors that belong to no layer."""

    arch: str
    layers: list[Tensors]
    keys: dict[str, object] = field(default_factory=dict)
    outside: Tensors = field(default_factory=lambda: TOP)
    family: str = "plain"
    """plain, windowed, hybrid, recurrent; encoder and diffusion have no memory"""


HEADS_OF_SOME = {"attention.head_count_kv": [0, 1]}
EXPERTS = {"expert_count": 2, "expert_used_count": 2, "expert_feed_forward_length": F}
SWA = {"attention.sliding_window": WINDOW}
GPT2 = norms("attn_norm", "ffn_norm", bias=True) | {
    "attn_qkv": (E + 2 * D, E),
    "attn_qkv.bias": (E + 2 * D,),
    "attn_output": (E, E),
    "attn_output.bias": (E,),
    "ffn_up": (F, E),
    "ffn_up.bias": (F,),
    "ffn_down": (E, F),
    "ffn_down.bias": (E,),
}
BERT = norms("attn_output_norm", "layer_output_norm", bias=True) | ATTENTION | {"ffn_up": (F, E), "ffn_down": (E, F)}
GEMMA4 = norms("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm") | QK_NORMS | ATTENTION | DENSE
GEMMA4 |= {"inp_gate": (D, E), "proj": (E, D), "post_norm": (E,)}
GPT_OSS = norms("attn_norm", "post_attention_norm") | ATTENTION | experts(bias=True)
GPT_OSS |= {"attn_sinks": (H,), "attn_output.bias": (E,)}
QWEN35 = norms("attn_norm", "post_attention_norm") | DENSE
PHI3 = TWO_NORMS | {"attn_qkv": (E + 2 * D, E), "attn_output": (E, E), "ffn_up": (2 * F, E), "ffn_down": (E, F)}
LFM2 = Kind(
    "lfm2",
    [TWO_NORMS | SHORTCONV | DENSE, LLAMA | QK_NORMS],
    HEADS_OF_SOME | {"shortconv.l_cache": 3},
    {"token_embd_norm": (E,), "output": (V, E)},
    "hybrid",
)

KINDS: dict[str, Kind] = {
    "llama": Kind("llama", [LLAMA] * 2),
    "yarn": Kind(
        "llama",
        [LLAMA] * 2,
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": N_CTX // 4},
    ),
    "longrope": Kind(  # the short factors up to n_ctx=512, and the long ones above
        "phi3",
        [PHI3] * 2,
        {"rope.scaling.original_context_length": 512, "rope.scaling.attn_factor": 1.1},
        TOP | {"rope_factors_short": (D // 2,), "rope_factors_long": (D // 2,)},
    ),
    "nope": Kind("smollm3", [LLAMA] * 4),  # the fourth layer rotates nothing
    "absolute": Kind(
        "gpt2", [GPT2] * 2, {"context_length": 256}, TOP | {"output_norm.bias": (E,), "position_embd": (256, E)}
    ),
    "mrope": Kind("qwen2vl", [LLAMA] * 2, {"rope.dimension_sections": [4, 4, 8, 0]}),
    "gpt-oss": Kind("gpt-oss", [GPT_OSS] * 2, SWA | EXPERTS, family="windowed"),
    "gemma4": Kind(
        "gemma4",
        [GEMMA4] * 4,
        {
            **SWA,
            "attention.sliding_window_pattern": [True, True, False, True],
            "attention.key_length_swa": D,
            "attention.value_length_swa": D,
            "embedding_length_per_layer_input": D,
            "rope.freq_base_swa": 10000.0,
        },
        TOP
        | {"per_layer_token_embd": (V, 4 * D), "per_layer_model_proj": (4 * D, E), "per_layer_proj_norm": (D,)}
        | {"rope_freqs": (D // 2,)},
        "windowed",
    ),
    "llama4": Kind(  # chunks of 8,192 in three of four layers
        "llama4",
        [TWO_NORMS | ATTENTION | experts(shared=True)] * 4,
        EXPERTS | {"interleave_moe_layer_step": 1, "context_length": 4 * N_CTX},
        family="windowed",
    ),
    "qwen35": Kind(
        "qwen35",
        [QWEN35 | DELTA, QWEN35 | QK_NORMS | ATTENTION | {"attn_q": (2 * H * D, E)}],
        {**ssm(DELTA_KEYS), "full_attention_interval": 2, "rope.dimension_sections": [4, 4, 8, 0]},
        family="hybrid",
    ),
    "lfm2": LFM2,
    "lfm2-window": replace(LFM2, keys=LFM2.keys | SWA),
    "granitehybrid": Kind(
        "granitehybrid", [MAMBA | norms("ffn_norm") | DENSE, LLAMA], HEADS_OF_SOME | ssm(MAMBA_KEYS), family="hybrid"
    ),
    "mamba2": Kind("mamba2", [MAMBA] * 2, ssm(MAMBA_KEYS), family="recurrent"),
    "deepseek2": Kind(
        "deepseek2",
        [TWO_NORMS | {"attn_q": (H * (D + ROPE), E)} | LATENT_KV | DENSE] * 2,
        MLA_KEYS | {"attention.q_lora_rank": 0, "leading_dense_block_count": 2},
    ),
    "deepseek32": Kind(  # of the earlier tokens an indexer picks 64
        "deepseek32",
        [TWO_NORMS | LATENT_Q | LATENT_KV | INDEXER | DENSE] * 2,
        MLA_KEYS
        | {"attention.q_lora_rank": LATENT, "leading_dense_block_count": 2}
        | {"attention.indexer.head_count": 2, "attention.indexer.key_length": 64, "attention.indexer.top_k": 64},
    ),
    "bert": Kind(
        "bert",
        [BERT] * 2,
        {"context_length": 256, "tokenizer.ggml.token_type_count": 2},
        {"token_embd_norm": (E,), "token_embd_norm.bias": (E,), "token_types": (2, E), "position_embd": (256, E)},
        "encoder",
    ),
    "dream": Kind("dream", [LLAMA] * 2, family="diffusion"),
}


def write(kind: str, path: Path, seed: int = 0) -> Path:
    """Write one of KINDS to a path, and return the path. The same seed gives the same weights."""
    made = KINDS[kind]
    keys = {
        "block_count": len(made.layers),
        "context_length": N_CTX,
        "embedding_length": E,
        "feed_forward_length": F,
        "vocab_size": V,
        "attention.head_count": H,
        "attention.head_count_kv": 1,
        "attention.key_length": D,
        "attention.value_length": D,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "rope.dimension_count": D,
        "tokenizer.ggml.model": "no_vocab",
    } | dict(made.keys)
    layers = [{f"blk.{i}.{name}": shape for name, shape in layer.items()} for i, layer in enumerate(made.layers)]
    tensors = functools.reduce(operator.or_, layers, {"token_embd": (V, E)} | dict(made.outside))
    rng = np.random.default_rng(seed)
    with closing(GGUFWriter(path, made.arch)) as gguf:
        for key, value in keys.items():
            whole = key if key.startswith("tokenizer.") else f"{made.arch}.{key}"
            adders = {bool: gguf.add_bool, int: gguf.add_uint32, float: gguf.add_float32, str: gguf.add_string}
            adders.get(type(value), gguf.add_array)(whole, value)
        for name, shape in tensors.items():
            whole = name if name.endswith((".bias", "ssm_a", "ssm_d")) else f"{name}.weight"
            gguf.add_tensor(whole, weights(name, shape, rng))
        gguf.write_header_to_file()
        gguf.write_kv_data_to_file()
        gguf.write_tensors_to_file()
    return path


def weights(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """float32: norms that change no scale, states that decay, factors from 1 up; the rest keeps activations near 1."""
    drawn = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("ssm_a"):
        return -np.abs(drawn)
    if "rope_f" in name:
        return np.float32(1) + np.abs(drawn)
    if name.endswith("norm"):
        return np.ones(shape, np.float32)
    return drawn / np.float32(np.sqrt(shape[-1]))
