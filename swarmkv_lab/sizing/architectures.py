"""What GGUF headers do not say: which layers have a sliding window, and which models have no plain KV cache.

Taken from the code of llama.cpp.
"""

# architecture: (n, window). Every n-th layer attends to all tokens, the others to a sliding window. window: its tokens
# if the header names none; 0: no sliding window then. From load_arch_hparams in llama.cpp's src/models/*.cpp.
WINDOWED: dict[str, tuple[int, int]] = {
    "gemma2": (2, 4096),
    "gemma3": (6, 0),
    "gpt-oss": (2, 0),
    "cohere2": (4, 0),
    "olmo2": (4, 0),
}

# What such models do, and their architectures.
_NOT_SIZED = {
    "keep a recurrent state, whose size does not follow from the number of tokens": """
        mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7""",
    "mix attention with a recurrent state, whose size does not follow from the number of tokens": """
        jamba falcon-h1 plamo2 granitehybrid lfm2 lfm2moe nemotron_h nemotron_h_moe qwen3next kimi-linear bailingmoe3
        kimi-k3 glm5-next qwen35 qwen35moe qwen4exp minimax-01""",
    "have a cache of their own kind in llama.cpp, whose size this lab cannot predict": """
        deepseek4 minimax-m3 glm-dsa deepseek32 hy_v4 dots3note dflash gemma3n gemma4 gemma4-assistant cohere2moe
        exaone4 exaone-moe afmoe smallthinker plamo3 mellum mimo2 laguna maple muse-glimmer spark2_5 step35
        granite_swa llama4""",
    "store two more coordinates per cell, so this lab cannot predict their size": """
        qwen2vl qwen3vl qwen3vlmoe paddleocr hunyuan_vl qwen3tts""",
}
NOT_SIZED: dict[str, str] = {arch: why for why, names in _NOT_SIZED.items() for arch in names.split()}
