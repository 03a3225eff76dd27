"""The article that the lab reproduces: what it published, and our run of the same experiment beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.timeline import BASELINE
from swarmkv_lab.files import DATA
from swarmkv_studies.common.clock import corrected
from swarmkv_studies.common.measurements import Measurements, measurements
from swarmkv_studies.common.summary import steady_rows

AUTHOR = "Anubhab Banerjee"
TITLE = "Prefill Once, Fan Out: KV Snapshot Sharing for Multi-Agent LLM Pipelines"
LINK = (
    "https://towardsdatascience.com/kv-cache-reuse-for-multi-agent-llm-inference-i-built-a-c-orchestrator-"
    "so-my-gpu-would-stop-reading-the-same-document-twice/"
)
CODE = "https://github.com/AnubhabBanerjee/swarmkv"
CITATION = f"{AUTHOR}: *[{TITLE}]({LINK})*, Towards Data Science, 9 June 2026. Its code: [{CODE}]({CODE})."
"""Markdown"""

# GTX 1080, Qwen2.5-7B Q4_K_M, a document of 3,501 tokens, two agents, the best of three trials. Milliseconds.
# activation: the second agent's.
PUBLISHED: dict[str, Any] = {"end_to_end": (10_275, 5_272), "activation": (4_339, 83), "prefill_removed": 8_685}
PUBLISHED_PREFILL = 3501 / (PUBLISHED["activation"][0] / 1e3)
"""tokens per second: the article counts the document's prefill alone as its baseline's activation"""
PUBLISHED_RUNS = pd.DataFrame(
    {"strategy": ["naive", "swarmkv"], "depth": 3501, "n_agents": 2, "end_to_end_ms": PUBLISHED["end_to_end"]}
)
OURS = "swarmkv"
PARTS = ("copy", "context", "restore", "share", "branch")
"""the phases of an agent's work until the first logits after its question, without a prefill of its own"""


def agent_rows(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A bench's agents, a row per agent of each steady run: columns strategy, repeat, turn (from 1), agent and times.

    activation_ms, branch_ms and ttft_ms are the agent's own, prefill_ms is its run's. All are corrected: an agent's
    times are scaled as its run's end-to-end time is.
    """
    runs = steady_rows(records)
    of_run = [name for name in runs if name in ("strategy", "repeat", "beat_ms") or name.startswith(("pre", "end_to"))]
    own = ["agent", "activation_ms", "branch_ms", "ttft_ms"]
    rows = [
        {**runs.loc[i, of_run], "turn": turn, **{name: agent[name] for name in own}}
        for i in runs.index
        for turn, agent in enumerate(records[i]["agents"], 1)
    ]
    return corrected(pd.DataFrame(rows))


def as_published(report: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Our times in ms, (naive, swarmkv), counted as in PUBLISHED: end_to_end and activation; report: from bench.

    The article's activation is its second agent's: the document's prefill alone for the baseline, but memory copy,
    context, restore and the decoding of the question for SwarmKV.
    """
    second = _agents(report).xs(2, level="turn")
    naive, ours = second.loc[BASELINE], second.loc[OURS]
    total = {name: report["summary"][name]["end_to_end_ms"] for name in (BASELINE, OURS)}
    return {
        "end_to_end": (total[BASELINE], total[OURS]),
        "activation": (naive.prefill_ms, ours.activation_ms + ours.branch_ms),
    }


def article_table(report: Mapping[str, Any]) -> pd.DataFrame:
    """The article's times and ours as text: baseline, SwarmKV, the factor between them, and the time saved in percent.

    The activation is counted as the article does (``as_published``), and as we do: until an agent's context holds the
    document, for both. Our times are corrected, except where a row says raw. ``report``: from bench, with naive and
    swarmkv. Raises SwarmKVError for a bench without a second agent.
    """
    medians, counted_so = _agents(report), as_published(report)
    second, mean = medians.xs(2, level="turn"), pd.DataFrame(report["summary"]).T
    raw = steady_rows(report["runs"]).groupby("strategy").end_to_end_ms.median()
    n_agents, prefill = report["environment"]["settings"]["n_agents"], report["summary"][BASELINE]["prefill_ms"]

    def both(frame: pd.DataFrame, metric: str) -> tuple[float, float]:
        return frame.loc[BASELINE, metric], frame.loc[OURS, metric]

    mean_so = (prefill, mean.activation_ms[OURS] + mean.branch_ms[OURS])
    rows: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        "end to end": (PUBLISHED["end_to_end"], counted_so["end_to_end"]),
        "end to end, raw": ((), (raw[BASELINE], raw[OURS])),
        "second agent's activation, as the article counts": (PUBLISHED["activation"], counted_so["activation"]),
        "mean of the agents, as the article counts": ((), mean_so),
        "second agent's activation, as we count": ((), both(second, "activation_ms")),
        "mean of the agents, as we count": ((), both(mean, "activation_ms")),
        "second agent's TTFT, with the question for both": ((), both(second, "ttft_ms")),
        "prefill removed, for both agents, as published": ([PUBLISHED["prefill_removed"]], [n_agents * prefill]),
        "prefill removed, for one agent: one still runs": (PUBLISHED["activation"][:1], [(n_agents - 1) * prefill]),
    }
    sides = [("published", "baseline"), ("published", "SwarmKV"), ("published", "factor"), ("published", "saved"),
             ("measured", "naive"), ("measured", "swarmkv"), ("measured", "factor"), ("measured", "saved")]  # fmt: skip
    cells = {name: _cells(published) + _cells(measured) for name, (published, measured) in rows.items()}
    return pd.DataFrame.from_dict(cells, orient="index", columns=pd.MultiIndex.from_tuples(sides))


def activation_by_agent(timeline: pd.DataFrame) -> pd.DataFrame:
    """What each of swarmkv's agents waits for: its copy, context and restore in raw ms, a row per agent.

    timeline: Run.timeline, or one of Measurements.timelines.
    """
    phases = ["copy", "context", "restore"]
    spans = timeline[timeline.phase.isin(phases) & (timeline.agent != "prefix")]
    ms = spans.assign(ms=spans.end_ms - spans.start_ms)
    return ms.pivot_table("ms", "agent", "phase", aggfunc="sum", sort=False)[phases]


def activation_parts(runs: pd.DataFrame) -> pd.DataFrame:
    """What an agent waits for until the first logits after its question: raw medians in ms, a row per strategy.

    runs: of a bench, a row per run. Columns: PARTS. Naive, which waits for its prefill, is left out.
    """
    others = runs[runs.strategy != BASELINE]
    medians = others.groupby("strategy", sort=False)[[f"{part}_ms" for part in PARTS]].median()
    return medians.rename(columns=lambda name: name.removesuffix("_ms"))


def on_gpus() -> dict[str, Measurements]:
    """What the maintainers measured on a GPU, by model (columns: data/README.md)."""
    return {
        folder.name: measurements(f"gpu/{folder.name}")
        for folder in sorted((DATA / "gpu").iterdir())
        if folder.is_dir()
    }


def gpu_parts(name: str = "qwen2.5-7b") -> tuple[pd.DataFrame, str]:
    """The parts of an agent's activation on the GPU (``activation_parts``) with this model, and a figure's caption."""
    measured = measurements(f"gpu/{name}")
    return activation_parts(steady_rows(measured.bench["runs"])), measured.caption


def gpu_table(here: Mapping[str, Any]) -> pd.DataFrame:
    """The article's experiment on GPUs: a row per model of ``on_gpus``, and one for this machine.

    Raw medians in ms, and speed-ups from them: the small decode by which times are corrected does not follow the speed
    of a GPU's large ones. here: a report from bench; if it is of no GPU, its row says that nothing was measured.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, report in {**{name: one.bench for name, one in on_gpus().items()}, "here": here}.items():
        gpu = report["environment"]["gpu"]
        if not gpu:
            rows[name] = {"GPU": "not measured: llama.cpp finds no GPU here"}
            continue
        frame = steady_rows(report["runs"])
        median = frame.groupby("strategy")[["prefill_ms", "activation_ms", "end_to_end_ms"]].median()
        rows[name] = {"GPU": gpu, "prefill, ms": median.prefill_ms[BASELINE]}
        for strategy in (OURS, "shared"):
            mine = median.loc[strategy]
            rows[name][f"{strategy}: activation, ms"] = mine.activation_ms
            rows[name][f"{strategy}: end to end"] = times(median.end_to_end_ms[BASELINE] / mine.end_to_end_ms)
            largest = frame.max_abs_logit_diff[frame.strategy == strategy].max()
            rows[name][f"{strategy}: naive's logits"] = "bit by bit" if largest == 0 else f"within {largest:.2g}"
    return pd.DataFrame.from_dict(rows, orient="index").round(1).astype(object).fillna("-")


def times(factor: float) -> str:
    """A factor with three digits: 1.90x, 52.3x, 151x."""
    return f"{factor:.{max(0, 2 - len(str(int(factor))) + 1)}f}x"


def saved(before: float, after: float) -> str:
    """The part of a time that is saved, as the article gives it: 48.69 %. A loss is negative."""
    return f"{100 * (1 - after / before):.2f} %"


def _agents(report: Mapping[str, Any]) -> pd.DataFrame:
    """Medians over the rounds, corrected, ms, by strategy and turn."""
    n_agents = report["environment"]["settings"]["n_agents"]
    if n_agents < 2:
        raise SwarmKVError(f"the article compares second agents, and this bench has {n_agents} agent: measure two")
    columns = ["prefill_ms", "activation_ms", "branch_ms", "ttft_ms"]
    return agent_rows(report["runs"]).groupby(["strategy", "turn"])[columns].median()


def _cells(ms: Sequence[float]) -> list[str]:
    """Up to two times, their factor and what is saved as four cells; a dash for what is not there."""
    texts = [f"{each:,.0f} ms" for each in ms]
    if len(ms) == 2:
        texts += [times(ms[0] / ms[1]), saved(*ms)]
    return texts + ["-"] * (4 - len(texts))
