"""The numbers that the article published, and our run of the same experiment beside them."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

# "Prefill Once, Fan Out: KV Snapshot Sharing for Multi-Agent LLM Pipelines": GTX 1080, Qwen2.5-7B Q4_K_M, a document
# of 3,501 tokens, two agents. Milliseconds.
PUBLISHED: dict[str, Any] = {"end_to_end": (10_275, 5_272), "activation": (4_339, 83), "prefill_removed": 8_685}
PUBLISHED_RUNS = pd.DataFrame(
    {"strategy": ["naive", "swarmkv"], "depth": 3501, "n_agents": 2, "end_to_end_ms": PUBLISHED["end_to_end"]}
)


def as_published(report: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Our times in ms, (naive, swarmkv), counted as in PUBLISHED: end_to_end and activation; report: from bench.

    The article's activation is the document's prefill alone for the baseline, but memcpy, context, restore and branch
    decode for SwarmKV.
    """
    naive, ours = report["summary"]["naive"], report["summary"]["swarmkv"]
    return {
        "end_to_end": (naive["end_to_end_ms"], ours["end_to_end_ms"]),
        "activation": (naive["prefill_ms"], ours["activation_ms"] + ours["branch_ms"]),
    }


def article_table(report: Mapping[str, Any]) -> pd.DataFrame:
    """The article's times and ours: baseline, SwarmKV and the factor between them, published and measured, as text.

    One row counts the activation as the article does (``as_published``), and one as we do. ``report``: from bench, with
    naive and swarmkv.
    """
    naive, ours = report["summary"]["naive"], report["summary"]["swarmkv"]
    measured, other_agents = as_published(report), report["environment"]["settings"]["n_agents"] - 1
    nothing = ("-", "-", "-")

    def removed(published: float, agents: int) -> tuple[str, ...]:
        return f"{published:,} ms", "-", "-", f"{agents * naive['prefill_ms']:,.0f} ms", "-", "-"

    rows = {
        "end to end": _pair(PUBLISHED["end_to_end"]) + _pair(measured["end_to_end"]),
        "activation per agent, as the article counts": _pair(PUBLISHED["activation"]) + _pair(measured["activation"]),
        "activation per agent, as we count": nothing + _pair((naive["activation_ms"], ours["activation_ms"])),
        "TTFT, with the branch for both": nothing + _pair((naive["ttft_ms"], ours["ttft_ms"])),
        "prefill removed, for both agents, as published": removed(PUBLISHED["prefill_removed"], other_agents + 1),
        "prefill removed, for one agent: one still runs": removed(PUBLISHED["activation"][0], other_agents),
    }
    sides = [("published", "baseline"), ("published", "SwarmKV"), ("published", "factor"),
             ("measured", "naive"), ("measured", "swarmkv"), ("measured", "factor")]  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index", columns=pd.MultiIndex.from_tuples(sides))


def times(factor: float) -> str:
    """A factor with three digits: 1.90x, 52.3x, 151x."""
    return f"{factor:.{max(0, 2 - len(str(int(factor))) + 1)}f}x"


def _pair(ms: tuple[float, float]) -> tuple[str, str, str]:
    return f"{ms[0]:,.0f} ms", f"{ms[1]:,.0f} ms", times(ms[0] / ms[1])
