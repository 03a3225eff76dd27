"""Analysis of measured runs: cost model, summaries, the article's table. Needs neither llama.cpp nor a model."""
