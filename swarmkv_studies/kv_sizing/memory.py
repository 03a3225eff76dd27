"""Memory: KV bytes of N agents over one document, copied or shared, and how many agents fit a budget."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.sizing.catalogue import catalogue, geometry
from swarmkv_lab.sizing.geometry import KVGeometry, KVType

LAYOUTS = ("copied", "shared")
TAIL = 256  # tokens of an agent's own, where nothing else is said: its question and answer
MOST_AGENTS = 255  # llama.cpp has 256 sequences per context, and the document takes one
Q4_K_M_BITS = 4.85  # bits per weight of that quantization, on average


def agents_bytes(
    geometry: KVGeometry, n_tokens: int, n_agents: int, *, layout: str, tail: int = TAIL, kv_type: KVType = "f16"
) -> int:
    """Bytes of KV cache of n_agents that read n_tokens and then add ``tail`` tokens each (predicted).

    layout: "copied", one context per agent; "shared", one context with the document's cells once and all tails.
    """
    if layout == "copied":
        return n_agents * geometry.cache_bytes(n_tokens + tail, kv_type)
    return geometry.cache_bytes(n_tokens + n_agents * tail, kv_type, n_seq_max=1 + n_agents)


def agents_that_fit(geometry: KVGeometry, n_tokens: int, budget: int, **how: Any) -> int:
    """The most agents, up to MOST_AGENTS, whose KV cache fits ``budget`` bytes; arguments as in agents_bytes."""
    return bisect_right(range(1, MOST_AGENTS + 1), budget, key=lambda n: agents_bytes(geometry, n_tokens, n, **how))


def memory_by_agents(geometry: KVGeometry, most: int, **how: Any) -> pd.DataFrame:
    """KV bytes of 1 to ``most`` agents (predicted): columns agents, copied, shared; arguments as in agents_bytes."""
    agents = range(1, most + 1)
    columns = {layout: [agents_bytes(geometry, n_agents=n, layout=layout, **how) for n in agents] for layout in LAYOUTS}
    return pd.DataFrame({"agents": agents, **columns})


def weights_bytes(name: str) -> int:
    """Bytes of the weights of a model of the catalogue in Q4_K_M (predicted, from its number of parameters)."""
    return int(catalogue().billions[name] * 1e9 * Q4_K_M_BITS / 8)


def catalogue_bytes(n_tokens: int, kv_type: KVType = "f16") -> pd.DataFrame:
    """The catalogue and bytes_per_token (predicted): of a snapshot of n_tokens, so that sliding windows count."""
    frame = catalogue()
    sizes = [geometry(name).snapshot_bytes(n_tokens, kv_type) for name in frame.index]
    return frame.assign(bytes_per_token=np.array(sizes) / n_tokens)


def agents_by_budget(
    names: Sequence[str], budgets_gb: Sequence[int], n_tokens: int, *, tail: int = TAIL, kv_type: KVType = "f16"
) -> pd.DataFrame:
    """Agents that fit beside Q4_K_M weights (predicted): a row per model, budget (1e9 bytes) and layout."""
    if unknown := [name for name in names if name not in catalogue().index]:
        raise SwarmKVError(f"{unknown[0]!r} is not in the catalogue: {', '.join(catalogue().index)}")
    rows = []
    for name, gb, layout in product(names, budgets_gb, LAYOUTS):
        left = int(gb * 1e9) - weights_bytes(name)
        n = agents_that_fit(geometry(name), n_tokens, left, layout=layout, tail=tail, kv_type=kv_type)
        rows.append({"model": name, "budget_gb": gb, "layout": layout, "agents": n})
    return pd.DataFrame(rows)
