"""Comparison: the lab's strategies and its peers on the same prompts, in one sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.fanout.documents import load_agents
from swarmkv_lab.fanout.fan_out import Prompts, named_prompts, shared_prefix
from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_lab.llama import Model
from swarmkv_lab.measure.grid import sweep
from swarmkv_lab.peers import opened

AT_ONCE = ("batched", "server_cold", "server_unified", "server_primed")
"""They answer all agents at the same time; with the others an agent's turn comes when the one before has its answer."""


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
    """A sweep of strategies and peers at one depth, which counts what all prompts begin with alike as the document's.

    Peers that look for a common prefix find that too; so everyone decodes the same tokens for an agent.
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


def peers_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A comparison at one depth, medians, by strategy: the last agent's first token, end to end, KV memory, answers.

    The last agent's first token is counted from its turn (agents that come one after another; none for AT_ONCE), and
    from the first call (agents that all come at once). The last column is the share of runs in which all answers have
    naive's tokens.
    """
    most = frame.n_agents.max()
    times = frame.pivot_table(
        ["last_ttft_ms", "last_first_token_ms", "end_to_end_ms"], "strategy", "n_agents", aggfunc="median", sort=False
    )
    from_turn = times["last_ttft_ms"].astype(object)
    from_turn.loc[[name for name in AT_ONCE if name in from_turn.index]] = None
    by_strategy = frame.groupby("strategy", sort=False)
    return pd.concat(
        {
            "last TTFT from its turn, ms": from_turn,
            "from the first call, ms": times["last_first_token_ms"],
            "end to end, ms": times["end_to_end_ms"],
            f"{most} agents": pd.DataFrame(
                {
                    "KV MB": frame[frame.n_agents == most].groupby("strategy", sort=False).kv_bytes.max() / 1e6,
                    "as naive": by_strategy.same_tokens.mean(),
                }
            ),
        },
        axis=1,
    ).reindex(frame.strategy.unique())
