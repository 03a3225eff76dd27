"""06: a graph of agents."""
