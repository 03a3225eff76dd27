"""07: threads inside llama.cpp."""
