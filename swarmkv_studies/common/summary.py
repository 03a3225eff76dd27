"""Summaries of measured runs: medians and speed-ups of a bench, a comparison with peers, and a pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.timeline import BASELINE
from swarmkv_studies.common.clock import corrected
from swarmkv_studies.common.costmodel import bound, packed_strategies

TIMES = [f"{what}_ms" for what in (
    "prefill", "activation", "branch", "ttft", "last_ttft", "last_first_token", "generate", "end_to_end"
)]  # fmt: skip
OURS = "swarmkv_lab"


def steady_rows(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The runs behind a bench's medians, a row per run: those of the steady rounds, or all if no round is steady."""
    frame = pd.DataFrame(records).drop(columns="agents")
    return frame[frame.steady] if frame.steady.any() else frame


def summarize(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Summarize a bench by strategy: median times in ms, spread [min, max], speed-ups over naive, bytes, exactness.

    Uses the rows of ``steady_rows``, their times ``corrected``; raw_end_to_end_speedup is of the times as they were.
    end_to_end_bound is costmodel.bound of naive's medians.
    """
    raw = steady_rows(records)
    raw_total = raw.groupby("strategy").end_to_end_ms.median()
    frame = corrected(raw)
    medians = frame.groupby("strategy", sort=False)[TIMES].median()
    naive = medians.loc[BASELINE] if BASELINE in medians.index else None
    summary = {}
    for strategy, median in medians.iterrows():
        runs = frame[frame.strategy == strategy]
        row: dict[str, Any] = {"repeats": len(runs), **median.to_dict()}
        row["end_to_end_spread_ms"] = [float(runs.end_to_end_ms.min()), float(runs.end_to_end_ms.max())]
        for metric in ("activation", "ttft", "end_to_end"):
            row[f"{metric}_speedup"] = None if naive is None else float(naive[f"{metric}_ms"] / median[f"{metric}_ms"])
        row["raw_end_to_end_speedup"] = None if naive is None else float(raw_total[BASELINE] / raw_total[strategy])
        row["end_to_end_bound"] = None if naive is None else float(bound(naive, int(runs.n_agents.iloc[0])))
        row["packed"] = bool(runs.packed.any())
        row["kv_bytes"], row["copied_bytes"] = int(runs.kv_bytes.max()), int(runs.copied_bytes.max())
        if naive is not None:
            row["max_abs_logit_diff"] = float(runs.max_abs_logit_diff.max())
            row["kl"] = float(runs.kl.max())
            row["same_tokens"] = bool(runs.same_tokens.all())
        summary[str(strategy)] = row
    return summary


def above_bound(summary: Mapping[str, Mapping[str, Any]], raw: bool = True) -> list[str]:
    """A sentence for each speed-up above its bound, to the digits shown, which only noise can be; summary: a bench's.

    Strategies that pack agents into one batch are left out: the bound is not theirs. raw: look at the raw ones too.
    """
    kinds = {"end_to_end_speedup": "measured"} | ({"raw_end_to_end_speedup": "measured, raw"} if raw else {})
    return [
        f"{name}: {row[kind]:.2f}x {how}; the bound is {row['end_to_end_bound']:.2f}x: the difference is noise"
        for name, row in summary.items()
        for kind, how in kinds.items()
        if not row.get("packed") and row[kind] and round(row[kind], 2) > round(row["end_to_end_bound"], 2)
    ]


def share_of_bound(runs: pd.DataFrame, strategy: str = "shared", rounds: int = 2) -> pd.DataFrame:
    """The end-to-end speed-up over its bound, as measured and corrected: a row per depth, number of agents and bench.

    runs: of a sweep with naive. A bench is so many rounds in a row, of which the medians count, as in ``bench``.
    Columns depth, n_agents, bench, raw, corrected: 1 is the bound, N(P+B)/(P+N B).
    """
    key = ["depth", "n_agents", "bench"]
    shares = {}
    for name, frame in {"raw": runs, "corrected": corrected(runs)}.items():
        medians = frame.assign(bench=frame.repeat // rounds).groupby(["strategy", *key])[TIMES].median()
        naive, total = medians.loc[BASELINE], medians.loc[strategy].end_to_end_ms
        n_agents = naive.index.get_level_values("n_agents").to_series(index=naive.index)
        shares[name] = naive.end_to_end_ms / total / bound(naive, n_agents)
    return pd.DataFrame(shares).dropna().reset_index()


def bench_text(report: dict[str, Any]) -> str:
    """A bench's summary as text for a terminal."""
    summary = pd.DataFrame(report["summary"]).T
    columns = {
        "prefill_ms": ("prefill ms", "{:,.0f}"),
        "activation_ms": ("activation ms", "{:,.2f}"),
        "ttft_ms": ("TTFT ms", "{:,.1f}"),
        "end_to_end_ms": ("end to end ms", "{:,.0f}"),
        "activation_speedup": ("activation x", "{:,.0f}"),
        "ttft_speedup": ("TTFT x", "{:,.1f}"),
        "end_to_end_speedup": ("end to end x", "{:.2f}"),
        "raw_end_to_end_speedup": ("raw", "{:.2f}"),
        "kv_bytes": ("KV MB", "{:,.1f}"),
        "max_abs_logit_diff": ("max |dlogit|", "{:.3g}"),
        "same_tokens": ("same tokens", "{}"),
    }
    summary["kv_bytes"] = summary.kv_bytes / 1e6
    shown = pd.DataFrame(index=summary.index)
    for key, (title, form) in columns.items():
        if key in summary:
            shown[title] = summary[key].map(form.format, na_action="ignore").fillna("-")
    env, restore = report["environment"], report["restore"]
    spread = ", ".join(f"{name} {low:,.0f}-{high:,.0f}" for name, (low, high) in summary.end_to_end_spread_ms.items())
    limit = summary.end_to_end_bound.iloc[0]
    lines = [
        f"measured: {env['model']}, {env['processor']}, {env['n_threads']} threads, {env['llama_cpp']}",
        f"{env['settings']['depth']:,} tokens, {env['settings']['n_agents']} agents, "
        f"medians of {int(summary.repeats.min())} interleaved runs{_disturbed(report)}; per-agent times are means over "
        "the agents; times are corrected for the machine's changing speed, except in the column raw",
        "",
        shown.to_string(),
        "",
        f"end to end, min-max ms: {spread}",
        "upper limit of the end-to-end speed-up if branches run one after another, N(P+B)/(P+N*B): "
        + ("-" if pd.isna(limit) else f"{limit:.2f}x"),
    ]
    if restore is not None:  # after an interrupt it is missing
        lines.append(
            f"restore {restore['restore_ms']:.1f} ms, warm memcpy of the same {restore['bytes']:,} bytes "
            f"{restore['memcpy_ms']:.1f} ms: ratio {restore['ratio']:.2f}"
        )
    return "\n".join(lines)


def _disturbed(report: dict[str, Any]) -> str:
    """A note on the rounds that the medians leave out."""
    others = {row["repeat"] for row in report["runs"] if not row["steady"]}
    if not others:
        return ""
    if all(not row["steady"] for row in report["runs"]):
        return f" (the machine's speed changed during each of the {len(others)} rounds: measure again on a quieter one)"
    return f" ({len(others)} more, left out because the machine's speed changed during them)"


def peers_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians of a comparison at one depth, a row per strategy: last agent's first token, end to end, KV memory.

    "last TTFT from its turn" is for agents that come one after another (empty for strategies that answer all at once).
    "from the first call" is for agents that all come at once: the time until every agent has its first token. "as
    naive" is the share of runs in which all answers have naive's tokens.
    """
    most = frame.n_agents.max()
    times = frame.pivot_table(
        ["last_ttft_ms", "last_first_token_ms", "end_to_end_ms"], "strategy", "n_agents", aggfunc="median", sort=False
    )
    from_turn = times["last_ttft_ms"].astype(object)
    from_turn.loc[packed_strategies(frame)] = None
    held = frame[frame.n_agents == most].groupby("strategy", sort=False).kv_bytes.max() / 1e6
    alike = frame.groupby("strategy", sort=False).same_tokens.mean()
    parts = {
        "last TTFT from its turn, ms": from_turn,
        "from the first call, ms": times["last_first_token_ms"],
        "end to end, ms": times["end_to_end_ms"],
        f"{most} agents": pd.DataFrame({"KV MB": held, "as naive": alike}),
    }
    return pd.concat(parts, axis=1).reindex(frame.strategy.unique())


def race_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The numbers of a race as text, a column per strategy; runs: a row of Outcome.metrics per strategy.

    "corrected": as the machine at its median speed would have taken. The last row says how long the prefill took
    against the shortest one of the race: it is the same work each time, so its spread is the noise of the times above.
    """
    runs, right = runs.set_index("strategy"), corrected(runs).set_index("strategy")
    times = {"activation": "activation_ms", "first token (TTFT)": "ttft_ms", "end to end": "end_to_end_ms"}
    rows = {"prefill, ms": runs.prefill_ms} | {f"{name}, ms": runs[column] for name, column in times.items()}
    rows |= {"end to end, corrected, ms": right.end_to_end_ms}
    text = {name: row.map(lambda ms: f"{ms:,.1f}" if ms < 10 else f"{ms:,.0f}") for name, row in rows.items()}
    for name, column in (("KV memory held, bytes", "kv_bytes"), ("copied, bytes", "copied_bytes")):
        text[name] = runs[column].map("{:,.0f}".format)
    for name, of in (("as timed", runs), ("corrected", right)):
        text[f"prefill against the shortest, {name}"] = (of.prefill_ms / of.prefill_ms.min()).map("{:.2f}".format)
    return pd.DataFrame(text).T


def yardstick_ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians by work and number of agents: tokens per second of both programs (ours, theirs) and ours / theirs.

    frame: from measure.yardsticks. Within a repeat both programs ran directly after each other, mostly at the same
    processor clock, so the ratio is taken within each repeat.
    """
    frame = frame.assign(whose=np.where(frame.program == OURS, "ours", "theirs"))
    rates = frame.pivot_table("tokens_per_s", ["work", "n_agents", "repeat"], "whose", sort=False)
    return rates.assign(ratio=rates.ours / rates.theirs).groupby(level=["work", "n_agents"], sort=False).median()


def pipeline_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians over the rounds, a row per variant: times in seconds, shares, and the tokens that all agents answered.

    read_before_first: share of the prefill done before the first answer. over_critical: end-to-end time over the
    critical path, minus 1. speedup and same_tokens: against naive. rows: from measure.pipeline_bench.compare_pipeline.
    Raises SwarmKVError if rows is empty.
    """
    if rows.empty:
        raise SwarmKVError("nothing was measured: pass the rows of compare_pipeline")
    runs = rows.groupby(["variant", "repeat"], sort=False).agg(
        first_s=("first_token_at_ms", "min"),
        prefill_s=("prefill_ms", "first"),
        end_to_end_s=("end_to_end_ms", "first"),
        critical_s=("critical_path_ms", "first"),
        read_before_first=("prefill_before_first", "first"),
        answer_tokens=("answer_tokens", "sum"),
    )
    seconds = [name for name in runs if name.endswith("_s")]
    runs[seconds] /= 1e3
    runs["over_critical"] = runs.end_to_end_s / runs.critical_s - 1
    if BASELINE in rows.variant.to_numpy():
        naive = runs.end_to_end_s.xs(BASELINE, level="variant")
        runs["speedup"] = naive.reindex(runs.index, level="repeat") / runs.end_to_end_s
        runs["same_tokens"] = rows.same_tokens.astype(float).groupby([rows.variant, rows.repeat]).mean()
    return runs.groupby("variant", sort=False).median()
