"""Verdict: the lab's strategies against the best peer, in numbers, and who is ahead."""

from collections.abc import Callable, Sequence

import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_studies.common.speedup import factor

IN_TURNS, AT_ONCE, PREFILL = "in turns", "all at once", "prefill"
_FEW_PERCENT = 1.05
# Job: the time it takes, and whether a program does it, by its rows.
JOBS: dict[str, tuple[str, Callable[[pd.DataFrame], bool]]] = {
    IN_TURNS: ("last_turn_ttft_ms", lambda rows: not rows.packed.any()),
    AT_ONCE: ("end_to_end_ms", lambda rows: True),
    PREFILL: ("prefill_ms", lambda rows: bool((rows.prefill_ms > 0).all())),  # a server with slots does not tell it
}


def verdict(runs: pd.DataFrame, ours: Sequence[str]) -> pd.DataFrame:
    """The fastest of ours against the fastest peer, with the most agents that were measured, a row per job.

    Index: "in turns", the last agent's time to its first token from its turn on; "all at once", from the first call to
    the last answer, where a peer that serves one agent at a time is a queue; "prefill", of the document. Columns ours,
    ours_ms, peer, peer_ms (medians); ratio, low, high (median and quartiles of peer over ours within a round: above 1
    ours is faster). Jobs that no peer does are left out.

    runs: of one comparison with peers at one depth. ours: names of the lab's strategies; naive competes for nothing.
    Raises SwarmKVError for runs of several depths, and where there are no peers.
    """
    if runs.depth.nunique() != 1:
        raise SwarmKVError(f"a verdict is of one depth, and these runs have {sorted(runs.depth.unique())}")
    most = runs[(runs.n_agents == runs.n_agents.max()) & (runs.strategy != BASELINE)]
    names = list(most.strategy.unique())
    mine, peers = [n for n in names if n in ours], [n for n in names if n not in ours]
    if not (mine and peers):
        raise SwarmKVError(f"a verdict needs strategies and peers, and these runs have {', '.join(names)}")
    rows = {}
    for job, (time, does) in JOBS.items():
        able = [name for name in names if does(most[most.strategy == name])]
        by_round = most.pivot_table(time, "repeat", "strategy")[able]
        us, them = (by_round[by_round.columns.intersection(side)] for side in (mine, peers))
        if us.empty or them.empty:
            continue
        name, peer = us.median().idxmin(), them.median().idxmin()
        own = us[name]
        if job == PREFILL:  # it is the same work in all of ours, so the fastest of them would be luck
            name, own = "lab", us.median(axis=1)
        low, ratio, high = (them[peer] / own).quantile([0.25, 0.5, 0.75])
        rows[job] = {"ours": name, "ours_ms": own.median(), "peer": peer, "peer_ms": them[peer].median(),
                          "ratio": ratio, "low": low, "high": high}  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def as_words(row: pd.Series) -> str:
    """Who is faster by how much: "a tie", "1.23x ahead" or "1.95x behind"; row: of ``verdict``.

    A tie: 1 is between the rounds' quartiles, or within 5 % of the median.
    """
    if row.low <= 1 <= row.high or 1 / _FEW_PERCENT <= row.ratio <= _FEW_PERCENT:
        return "a tie"
    return f"{factor(row.ratio)} ahead" if row.ratio > 1 else f"{factor(1 / row.ratio)} behind"
