"""Peers measured: the lab's strategies and its peers on the same prompts, in one sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.fanout.documents import load_agents
from swarmkv_lab.fanout.fan_out import Prompts, named_prompts
from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_lab.llama.model import Model
from swarmkv_studies.common.sweep import sweep
from swarmkv_studies.peers.prompts import shared_prefix
from swarmkv_studies.peers.strategies import opened


def compare_peers(
    model: Model,
    document: np.ndarray,
    *,
    depth: int,
    n_agents: Sequence[int],
    peers: Sequence[str],
    agents: Prompts | None = None,
    strategies: Sequence[str] = tuple(STRATEGIES),
    max_tokens: int = 16,
    repeats: int = 1,
    path: str | Path | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Sweep strategies and peers at one depth (tokens); columns, path and errors as in sweep.

    Tokens that all prompts begin with count as part of the document, because peers that look for a common prefix reuse
    them too. So every strategy and peer decodes the same tokens per agent.
    """
    prompts = named_prompts(model, load_agents("dossier") if agents is None else agents)
    alike, branches = shared_prefix(np.empty(0, np.int32), prompts)
    prefix = np.concatenate([document[: depth - len(alike)], alike])
    n_ctx = depth + max(map(len, branches.values())) + max_tokens
    with opened(peers, model, n_ctx, **settings) as ready:
        return sweep(
            model, prefix, depths=[depth], n_agents=n_agents, strategies=[*strategies, *ready.values()],
            agents=branches, repeats=repeats, max_tokens=max_tokens, path=path, **settings,
        )  # fmt: skip
