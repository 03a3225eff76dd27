"""04: how the gain grows with depth and agents."""
