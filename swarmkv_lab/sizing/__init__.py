"""The size of KV caches: KV geometry, GGUF headers, the model catalogue, and twins. Needs no llama.cpp."""
