"""Memory: KV bytes of N agents over one document, copied or shared, and how many agents fit a budget."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import product
from typing import Any

import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.sizing.catalogue import catalogue, geometry, headers, snapshot_bytes
from swarmkv_lab.sizing.geometry import KVGeometry, KVType

LAYOUTS = ("copied", "shared")
TAIL = 256  # tokens of an agent's own: its question and answer
MOST_AGENTS = 255  # llama.cpp has 256 sequences per context, and the document takes one
# Of each kind some that people run in 2026; the article's model and the lab's.
DOZEN = (
    "smollm2-135m", "qwen2.5-7b", "llama-3.1-8b", "llama-2-7b", "glm-4.5", "kimi-k2", "gpt-oss-20b", "gemma-4-31b",
    "qwen3-next-80b-a3b", "qwen3.8-27b", "granite-4.0-h-tiny", "kimi-linear-48b-a3b", "nemotron-3-nano-30b-a3b",
)  # fmt: skip
Q4_K_M_BITS = 4.85  # bits per weight of that quantization, on average


def agents_bytes(geometry: KVGeometry, n_tokens: int, n_agents: int, *, layout: str, kv_type: KVType = "f16") -> int:
    """Bytes of KV cache of n_agents that read n_tokens and then add TAIL tokens each (predicted).

    layout: "copied", one context per agent; "shared", one context with the document's cells once and all tails.
    """
    if layout == "copied":
        return n_agents * geometry.cache_bytes(n_tokens + TAIL, kv_type)
    return geometry.cache_bytes(n_tokens + n_agents * TAIL, kv_type, n_seq_max=1 + n_agents)


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


def bytes_by_model(n_tokens: int, names: Sequence[str] = DOZEN) -> pd.DataFrame:
    """What models keep of a document of n_tokens (predicted): a row per name, bytes_per_token and kind.

    kind: MHA, GQA, MLA, "sliding window" or "hybrid". A state of fixed size counts too, divided by the tokens.
    """
    kinds = catalogue().attention.to_dict() | {name: _kind(header["keeps"]) for name, header in headers().items()}
    rows = {name: (snapshot_bytes(name, n_tokens) / n_tokens, kinds[name]) for name in names}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["bytes_per_token", "kind"])


def _kind(keeps: str) -> str:
    """The kind of a model of data/headers.toml, from its words."""
    if "state" in keeps or "convolution" in keeps:
        return "hybrid"
    return "MLA" if "latent" in keeps or "compressed" in keeps else "sliding window" if "others" in keeps else "GQA"


def agents_by_budget(names: Sequence[str], budgets_gb: Sequence[int], n_tokens: int) -> pd.DataFrame:
    """Agents that fit beside Q4_K_M weights (predicted): a row per model, budget (1e9 bytes) and layout."""
    if unknown := [name for name in names if name not in catalogue().index]:
        raise SwarmKVError(f"{unknown[0]!r} is not in the catalogue: {', '.join(catalogue().index)}")
    rows = []
    for name, gb, layout in product(names, budgets_gb, LAYOUTS):
        left = int(gb * 1e9) - weights_bytes(name)
        n = agents_that_fit(geometry(name), n_tokens, left, layout=layout)
        rows.append({"model": name, "budget_gb": gb, "layout": layout, "agents": n})
    return pd.DataFrame(rows)
