"""Architectures whose sizes follow from their headers by KVGeometry's formula: what a hollow model says, to the byte.

Any other has a recurrent state, indexes, compressed cells, or was not compared: its size is llama.cpp's to say
(``snapshot_bytes`` of its file).
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

# The same, once it is known which layers have a sliding window: a header says it or llama.cpp does.
WINDOWED = {"cohere2", "gemma2", "gemma3", "gpt-oss", "olmo2"}
