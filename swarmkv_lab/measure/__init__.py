"""Measurements: benches, grids, tuning, and the notebooks' experiments. Their results are saved in data/."""
