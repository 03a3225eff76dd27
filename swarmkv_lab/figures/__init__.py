"""Figures: each function takes a DataFrame and returns a matplotlib Figure, whose title says its message."""

from swarmkv_lab.figures.answers import exactness
from swarmkv_lab.figures.bench import activation, article, first_touch, lanes, published_parts, strategies, timeline
from swarmkv_lab.figures.clock import steadiness
from swarmkv_lab.figures.cluster import workers_timeline
from swarmkv_lab.figures.drawings import broadcast, size_by_steps, snapshot_layout
from swarmkv_lab.figures.forks import best_of, fork_bytes
from swarmkv_lab.figures.formats import roofline, weight_formats
from swarmkv_lab.figures.grid import (
    break_even,
    memory_held,
    packing,
    predicted_against_measured,
    speedup_against_agents,
    speedup_map,
)
from swarmkv_lab.figures.guards import guards, outcomes, waiting
from swarmkv_lab.figures.latency import METRICS, latency, latency_against_agents, latency_against_depth
from swarmkv_lab.figures.money import cached_reads, kept_reads
from swarmkv_lab.figures.peers import peers, verdict, yardsticks
from swarmkv_lab.figures.pipeline import first_answers, graph, pipeline_timeline
from swarmkv_lab.figures.positions import keys_and_values, position_error, rotation
from swarmkv_lab.figures.shipping import arrivals_against_machines, codecs, join_race, ship_or_recompute
from swarmkv_lab.figures.sizing import agents_that_fit, bytes_per_token, fidelity, memory_against_agents
from swarmkv_lab.figures.study import study
from swarmkv_lab.figures.style import save
