"""Verdict: the lab's strategies against the best peer, in numbers and in words that follow them."""

from collections.abc import Sequence

import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.timeline import BASELINE
from swarmkv_studies.common.costmodel import packed_strategies

IN_TURNS, AT_ONCE, SERVED_AT_ONCE, PREFILL = "in turns", "all at once", "all at once, slots", "prefill"
_FEW_PERCENT = 1.05


def verdict(runs: pd.DataFrame, ours: Sequence[str]) -> pd.DataFrame:
    """The fastest of ours against the fastest peer, with the most agents that were measured, a row per question.

    Index: "in turns", the last agent's time to its first token from its turn on; "all at once", from the first call to
    the last answer, where a peer that serves one agent at a time is a queue; "all at once, slots", the same against
    peers that take all agents at once; "prefill", of the document. Columns ours, ours_ms, peer, peer_ms (medians),
    ratio (peer_ms over ours_ms: above 1 ours is faster) and words. Questions that no peer answers are left out.

    runs: of one comparison with peers at one depth. ours: names of the lab's strategies; naive competes for nothing.
    Raises SwarmKVError for runs of several depths, and where there are no peers.
    """
    if runs.depth.nunique() != 1:
        raise SwarmKVError(f"a verdict is of one depth, and these runs have {sorted(runs.depth.unique())}")
    most = runs[runs.n_agents == runs.n_agents.max()]
    median = most[most.strategy != BASELINE].groupby("strategy", sort=False).median(numeric_only=True)
    mine = median.index.isin(list(ours))
    if mine.all() or not mine.any():
        raise SwarmKVError(f"a verdict needs strategies and peers, and these runs have {', '.join(median.index)}")
    together = median.index.isin(packed_strategies(runs))
    questions = {
        IN_TURNS: median.last_ttft_ms[~together],
        AT_ONCE: median.end_to_end_ms,
        SERVED_AT_ONCE: median.end_to_end_ms[mine | together],
        PREFILL: median.prefill_ms[median.prefill_ms > 0],  # a server that all ask at once reports none of its own
    }
    rows = {}
    for question, ms in questions.items():
        us, them = (ms[ms.index.isin(list(ours)) == side] for side in (True, False))
        if len(us) and len(them):
            # the prefill is the same work in all of ours, so the fastest of them would be luck
            name, own = (us.idxmin(), us.min()) if question != PREFILL else ("lab", us.median())
            ratio = them.min() / own
            rows[question] = (
                name,
                own,
                them.idxmin(),
                them.min(),
                ratio,
                words(ratio, noise(runs, ours), them.idxmin()),
            )
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["ours", "ours_ms", "peer", "peer_ms", "ratio", "words"]
    )


def noise(runs: pd.DataFrame, ours: Sequence[str]) -> float:
    """The slowest over the fastest median prefill of our strategies, which are all the same work; at least 1.05.

    Two programs whose times differ by less than that cannot be told apart by these runs.
    """
    medians = runs[runs.strategy.isin(list(ours))].groupby(["strategy", "n_agents"]).prefill_ms.median()
    return max(_FEW_PERCENT, float(medians.max() / medians.min()))


def words(ratio: float, noise: float, peer: str) -> str:
    """Who is faster by how much, or a tie; ratio: the peer's time over ours."""
    if 1 / noise <= ratio <= noise:
        return f"a tie with {peer}"
    return f"{factor(ratio)} as fast as {peer}" if ratio > 1 else f"{peer} is {factor(1 / ratio)} as fast"


def standing(ratio: float, noise: float) -> str:
    """The same without a name: "a tie", "1.23x ahead" or "1.95x behind"."""
    if 1 / noise <= ratio <= noise:
        return "a tie"
    return f"{factor(ratio)} ahead" if ratio > 1 else f"{factor(1 / ratio)} behind"


def factor(ratio: float) -> str:
    """1.23x below 2, and 8.2x above: as many digits as mean something."""
    return f"{ratio:.2f}x" if ratio < 2 else f"{ratio:.1f}x"
