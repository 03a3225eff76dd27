"""Figures: a DataFrame in, a matplotlib Figure out, one message each, said in the title."""

from swarmkv_lab.figures.bench import strategies, timeline
from swarmkv_lab.figures.drawings import broadcast
from swarmkv_lab.figures.sizing import agents_that_fit, bytes_per_token, fidelity, memory_against_agents
from swarmkv_lab.figures.style import save

__all__ = [
    "agents_that_fit",
    "broadcast",
    "bytes_per_token",
    "fidelity",
    "memory_against_agents",
    "save",
    "strategies",
    "timeline",
]
