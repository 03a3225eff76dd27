"""The article that the lab reproduces: what it published, and our run of the same experiment beside it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_lab.files import DATA
from swarmkv_studies.common.measurements import Measurements, measurements
from swarmkv_studies.common.speedup import QUARTILES, speedups, with_spread

AUTHOR = "Anubhab Banerjee"
TITLE = "Prefill Once, Fan Out: KV Snapshot Sharing for Multi-Agent LLM Pipelines"
LINK = (
    "https://towardsdatascience.com/kv-cache-reuse-for-multi-agent-llm-inference-i-built-a-c-orchestrator-"
    "so-my-gpu-would-stop-reading-the-same-document-twice/"
)
CODE = "https://github.com/AnubhabBanerjee/swarmkv"
CITATION = f"{AUTHOR}: *[{TITLE}]({LINK})*, Towards Data Science, 9 June 2026. Its code: [{CODE}]({CODE})."
"""Markdown"""

# GTX 1080, Qwen2.5-7B Q4_K_M, a document of 3,501 tokens, two agents that decode a question and write no answer.
# Milliseconds; activation: the second agent's. "Best of 3 trials" (README.md, "Measured results"), of an earlier commit
# than the code below (examples/example-run-results/REPRODUCE.md, "Captured results"). Lines are commit a0f4f48's.
PUBLISHED = {"end_to_end": (10_275, 5_272), "activation": (4_339, 83)}
PUBLISHED_PREFILL = 3501 / (PUBLISHED["activation"][0] / 1e3)
"""tokens per second: the article counts the document's prefill alone as its baseline's activation
(benchmarks/swarmkv_benchmark.cpp:127 and 355)"""
OURS = "swarmkv"


class Pair(NamedTuple):
    """A time of the baseline and of SwarmKV, ms, and how many times as long the first one is."""

    naive: float
    ours: float
    factor: pd.Series
    """low, median, high, rounds (common.speedup)"""


def published() -> dict[str, Pair]:
    """The article's two results: end_to_end and activation. Of its three trials only the best is known in numbers."""

    def pair(naive: float, ours: float) -> Pair:
        return Pair(naive, ours, pd.Series(dict.fromkeys(QUARTILES, naive / ours) | {"rounds": 1}))

    return {metric: pair(*two) for metric, two in PUBLISHED.items()}


def measured(report: Mapping[str, Any]) -> dict[str, Pair]:
    """Our two results, counted as in ``published``: median times, and the factor within a round; report: from bench.

    The article's activation is its second agent's: the document's prefill alone for the baseline, but memory copy,
    context, restore and the decoding of the question for SwarmKV (src/nodes/analytical_node.cpp:103-279). Raises
    SwarmKVError for a bench without a second agent, or without one of the two strategies.
    """
    runs = pd.DataFrame(report["runs"])
    n_agents, names = runs.n_agents.min(), set(runs.strategy)
    if n_agents < 2 or not {BASELINE, OURS} <= names:
        raise SwarmKVError(
            f"the article compares the second agents of {BASELINE} and {OURS}, and this bench has {n_agents} agents, "
            f"strategies {', '.join(sorted(names))}: measure two agents with both"
        )
    runs["second_ms"] = runs.prefill_ms.where(runs.strategy == BASELINE, _second_ms(runs))
    pairs = {}
    for metric, time in {"end_to_end": "end_to_end_ms", "activation": "second_ms"}.items():
        ms = runs.groupby("strategy")[time].median()
        pairs[metric] = Pair(ms[BASELINE], ms[OURS], speedups(runs, time, ["strategy"]).loc[OURS])
    return pairs


def _second_ms(runs: pd.DataFrame) -> list[float]:
    """The second agent's activation and its question, as the article counts."""
    return [agents[1]["activation_ms"] + agents[1]["branch_ms"] for agents in runs.agents]


def article_table(report: Mapping[str, Any]) -> pd.DataFrame:
    """The article's two results and ours as text: baseline, SwarmKV, and the factor, ours with its quartiles.

    report: from bench. Raises SwarmKVError as ``measured``.
    """
    said, ours = published(), measured(report)
    names = {"end_to_end": "end to end, two agents", "activation": "second agent's activation"}
    head = [("published", "baseline"), ("published", "SwarmKV"), ("published", "factor")]
    head += [("measured", "naive"), ("measured", "swarmkv"), ("measured", "factor")]
    cells = {name: [*_cells(said[metric]), *_cells(ours[metric])] for metric, name in names.items()}
    return pd.DataFrame.from_dict(cells, orient="index", columns=pd.MultiIndex.from_tuples(head))


def on_gpus() -> dict[str, Measurements]:
    """What the maintainers measured on a GPU, by model (columns: data/README.md)."""
    return {
        folder.name: measurements(f"gpu/{folder.name}")
        for folder in sorted((DATA / "gpu").iterdir())
        if folder.is_dir()
    }


def gpu_table(here: Mapping[str, Any]) -> pd.DataFrame:
    """The article's experiment on GPUs: a row per model of ``on_gpus``, and one for this machine.

    Median times in ms, and speed-ups. here: a report from bench; if it is of no GPU, its row says that nothing was
    measured.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, report in {**{name: one.bench for name, one in on_gpus().items()}, "here": here}.items():
        gpu = report["environment"]["gpu"]
        if not gpu:
            rows[name] = {"GPU": "not measured: llama.cpp finds no GPU here"}
            continue
        summary, runs = report["summary"], pd.DataFrame(report["runs"])
        gains = speedups(runs, by=["strategy"])
        second = pd.Series(_second_ms(runs)).groupby(runs.strategy).median()
        rows[name] = {"GPU": gpu, "prefill, ms": summary[BASELINE]["prefill_ms"]}
        for strategy in (OURS, "shared"):
            rows[name][f"{strategy}: second agent's activation, ms"] = second[strategy]
            rows[name][f"{strategy}: end to end"] = with_spread(gains.loc[strategy])
            largest = summary[strategy]["max_abs_logit_diff"]
            rows[name][f"{strategy}: naive's logits"] = "bit by bit" if largest == 0 else f"within {largest:.2g}"
    return pd.DataFrame.from_dict(rows, orient="index").round(1).astype(object).fillna("-")


def _cells(pair: Pair) -> list[str]:
    return [f"{pair.naive:,.0f} ms", f"{pair.ours:,.0f} ms", with_spread(pair.factor)]
