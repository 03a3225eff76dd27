"""DataFrames in, DataFrames out: cost model, summaries, the article's table. No llama.cpp and no model."""
