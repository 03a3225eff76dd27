"""Measurements: benches, grids, tuning, and the studies behind the notebooks; what they return goes to data/."""
