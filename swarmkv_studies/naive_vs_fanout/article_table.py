"""The article that the lab reproduces: what it published, and our run of the same experiment beside it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_lab.files import DATA
from swarmkv_studies.common.measurements import Measurements, measurements
from swarmkv_studies.common.speedup import speedups, times, with_spread

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


def measured(report: Mapping[str, Any]) -> pd.DataFrame:
    """Our results, counted as in PUBLISHED: a row for each, end_to_end and activation; report: from bench.

    Columns naive and swarmkv (median times in ms), and those of common.speedup for the factor within a round. The
    article's activation is its second agent's: the document's prefill alone for the baseline, but memory copy,
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
    rows = {}
    for metric, time in {"end_to_end": "end_to_end_ms", "activation": "second_ms"}.items():
        ms, gain = runs.groupby("strategy")[time].median(), speedups(runs, time, ["strategy"]).loc[OURS]
        rows[metric] = pd.concat([ms[[BASELINE, OURS]], gain])
    return pd.DataFrame(rows).T


def _second_ms(runs: pd.DataFrame) -> list[float]:
    """The second agent's activation and its question, as the article counts."""
    return [agents[1]["activation_ms"] + agents[1]["branch_ms"] for agents in runs.agents]


def article_table(report: Mapping[str, Any]) -> pd.DataFrame:
    """The article's two results and ours as text: baseline, SwarmKV, and the factor, ours with its quartiles.

    report: from bench. Raises SwarmKVError as ``measured``.
    """
    ours, cells = measured(report), {}
    for metric, name in {"end_to_end": "end to end, two agents", "activation": "second agent's activation"}.items():
        row, said = ours.loc[metric], PUBLISHED[metric]
        here = [*(f"{row[strategy]:,.0f} ms" for strategy in (BASELINE, OURS)), with_spread(row)]
        cells[name] = [*(f"{ms:,} ms" for ms in said), times(said[0] / said[1]), *here]
    head = [("published", "baseline"), ("published", "SwarmKV"), ("published", "factor")]
    head += [("measured", "naive"), ("measured", "swarmkv"), ("measured", "factor")]
    return pd.DataFrame.from_dict(cells, orient="index", columns=pd.MultiIndex.from_tuples(head))


def on_gpus() -> dict[str, Measurements]:
    """What the maintainers measured on a GPU, by model (columns: data/README.md)."""
    folders = sorted(path.parent.name for path in (DATA / "gpu").glob("*/bench.json"))
    return {name: measurements(f"gpu/{name}") for name in folders}


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
