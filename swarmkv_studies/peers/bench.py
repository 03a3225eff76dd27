"""Peers measured: the lab's strategies and its peers on the same prompts, in one sweep."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import swarmkv_lab as lab
from swarmkv_lab.fanout.fan_out import Prompts, named_prompts
from swarmkv_studies.common.sweep import sweep
from swarmkv_studies.peers.strategies import opened


def compare_peers(
    model: lab.Model,
    document: np.ndarray,
    *,
    depth: int,
    n_agents: Sequence[int],
    peers: Sequence[str],
    agents: Prompts | None = None,
    strategies: Sequence[str] = tuple(lab.STRATEGIES),
    max_tokens: int = 16,
    repeats: int = 1,
    path: str | Path | None = None,
) -> pd.DataFrame:
    """Sweep strategies and peers at one depth (tokens); columns, path and errors as in sweep.

    Tokens that all prompts begin with count as part of the document, because peers that look for a common prefix reuse
    them too. So every strategy and peer decodes the same tokens per agent.
    """
    prompts = named_prompts(model, lab.load_agents("dossier") if agents is None else agents)
    alike, branches = without_beginning(prompts)
    prefix = np.concatenate([document[: depth - len(alike)], alike])
    n_ctx = depth + max(map(len, branches.values())) + max_tokens
    with opened(peers, model, n_ctx) as ready:
        return sweep(
            model, prefix, depths=[depth], n_agents=n_agents, strategies=[*strategies, *ready.values()],
            agents=branches, repeats=repeats, max_tokens=max_tokens, path=path,
        )  # fmt: skip


def without_beginning(prompts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What all prompts begin with, such as a chat template's first tokens; and the prompts without it.

    Every prompt keeps at least one token: a branch's logits come from a decode of its own.
    """
    shortest = min(map(len, prompts.values())) - 1
    rows = np.stack([row[:shortest] for row in prompts.values()])
    alike = int((rows == rows[0]).all(axis=0).cumprod().sum())
    return rows[0][:alike], {name: row[alike:] for name, row in prompts.items()}
