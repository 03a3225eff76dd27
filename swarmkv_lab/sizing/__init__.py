"""How big is it? KV geometry, GGUF headers, the catalogue, and twins: numbers, without llama.cpp."""
