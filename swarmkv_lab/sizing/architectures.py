"""Architectures whose sizes follow from their headers by KVGeometry's formula: what a hollow model says, to the byte.

Any other has a window that llama.cpp knows and the header does not, a recurrent state, indexes, compressed cells, or
was not compared: its size is llama.cpp's to say (``snapshot_bytes`` of its file).
"""

PLAIN = {
    "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bloom", "chatglm", "codeshell", "command-r",
    "dbrx", "deci", "deepseek", "deepseek2", "dots1", "ernie4_5", "ernie4_5-moe", "exaone", "falcon", "gemma",
    "glm4", "glm4moe", "gpt2", "gptneox", "granite", "granitemoe", "grok", "grovemoe", "hunyuan-dense",
    "hunyuan-moe", "hy_v3", "internlm2", "jais", "jais2", "llama", "maincoder", "minicpm", "minicpm3",
    "minimax-m2", "mistral3", "mistral4", "mpt", "nanbeige", "nemotron", "olmo", "olmoe", "openelm", "orion",
    "pangu-embedded", "phi2", "phi3", "phimoe", "plamo", "qwen", "qwen2", "qwen2moe", "qwen3", "qwen3moe",
    "refact", "seed_oss", "smollm3", "stablelm", "starcoder", "starcoder2", "talkie", "xverse",
}  # fmt: skip

# Those of them whose header says whether a position is one number or several (M-RoPE).
MROPE_BY_FILE = {"glm4", "glm4moe"}

# architecture: (n, window). Every n-th layer attends to all tokens, the others to a sliding window. window: its tokens
# if the header names none; 0: no sliding window then. From load_arch_hparams in llama.cpp's src/models/*.cpp.
WINDOWED: dict[str, tuple[int, int]] = {
    "gemma2": (2, 4096),
    "gemma3": (6, 0),
    "gpt-oss": (2, 0),
    "cohere2": (4, 0),
    "olmo2": (4, 0),
}
