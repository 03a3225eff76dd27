"""bench: all strategies on one document at one depth, as one report: environment, runs, summary."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.analysis.costmodel import bound
from swarmkv_lab.fanout.fan_out import Prompts
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import STRATEGIES, Strategy
from swarmkv_lab.llama import Model
from swarmkv_lab.measure.grid import measure, record, rounds
from swarmkv_lab.measure.limits import restore_against_memcpy
from swarmkv_lab.measure.provenance import environment

STEADY = 1.1  # the prefill is the same work for all strategies: so much apart within a round, the machine was disturbed
TIMES = [f"{what}_ms" for what in (
    "prefill", "activation", "branch", "ttft", "last_ttft", "last_first_token", "generate", "end_to_end"
)]  # fmt: skip


def bench(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    *,
    depth: int,
    n_agents: int,
    strategies: Sequence[str | Strategy],
    repeats: int = 3,
    spare: int = 0,
    max_tokens: int = 16,
    agents: Prompts | None = None,
    **settings: Any,
) -> tuple[dict[str, Any], list[Run]]:
    """The report, ready for JSON, and the runs that its medians are of.

    spare: rounds that may be measured again. Then one (every strategy once) whose prefills are more than STEADY apart
    stays in the report, but out of the medians, unless no round is better. A KeyboardInterrupt ends it early, not
    empty.
    """
    records, runs = [], []
    env = environment(model, depth=depth, n_agents=n_agents, repeats=repeats, max_tokens=max_tokens, **settings)
    restore, steady = None, 0
    try:
        for this in rounds([depth], [n_agents], repeats + spare):
            if steady == repeats:
                break
            turn = []
            measured = measure(model, tokens, [this], strategies, agents=agents, max_tokens=max_tokens, **settings)
            for _, run, exactness in measured:
                rows = run.agents.merge(exactness, on="agent") if len(exactness) else run.agents
                turn.append({**record(this, run, exactness), "steady": True, "agents": rows.to_dict("records")})
                records.append(turn[-1])
                runs.append(run)
            if spare and not _is_steady(runs[-len(turn) :]):
                for row in turn:
                    row["steady"] = False
            steady += turn[-1]["steady"]
        restore = restore_against_memcpy(model, tokens[:depth], **settings)
    except KeyboardInterrupt:
        if not records:
            raise
    kept = [run for run, row in zip(runs, records, strict=True) if row["steady"]] or runs
    return {"environment": env, "restore": restore, "runs": records, "summary": summarize(records)}, kept


def _is_steady(runs: Sequence[Run]) -> bool:
    spans = pd.concat([run.timeline for run in runs if run.strategy in STRATEGIES])  # a peer's may be of more work
    prefills = (spans.end_ms - spans.start_ms)[spans.phase == "prefill"]
    return bool(prefills.max() <= STEADY * prefills.min())


def steady_rows(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The runs that the medians are of, a row each: those of the steady rounds, when there is one."""
    frame = pd.DataFrame(records).drop(columns="agents")
    return frame[frame.steady] if frame.steady.any() else frame


def summarize(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By strategy: medians, spreads (min, max), speed-ups over naive from the medians, and exactness.

    end_to_end_bound is costmodel.bound of naive's medians. Of the steady rounds, when there is one.
    """
    frame = steady_rows(records)
    medians = frame.groupby("strategy", sort=False)[TIMES].median()
    naive = medians.loc["naive"] if "naive" in medians.index else None
    summary = {}
    for strategy, median in medians.iterrows():
        runs = frame[frame.strategy == strategy]
        row: dict[str, Any] = {"repeats": len(runs), **median.to_dict()}
        row["end_to_end_spread_ms"] = [float(runs.end_to_end_ms.min()), float(runs.end_to_end_ms.max())]
        for metric in ("activation", "ttft", "end_to_end"):
            speedup = None if naive is None else float(naive[f"{metric}_ms"] / median[f"{metric}_ms"])
            row[f"{metric}_speedup"] = speedup
        row["end_to_end_bound"] = None if naive is None else float(bound(naive, int(runs.n_agents.iloc[0])))
        row["kv_bytes"], row["copied_bytes"] = int(runs.kv_bytes.max()), int(runs.copied_bytes.max())
        if naive is not None:
            row["max_abs_logit_diff"] = float(runs.max_abs_logit_diff.max())
            row["kl"] = float(runs.kl.max())
            row["same_tokens"] = bool(runs.same_tokens.all())
        summary[strategy] = row
    return summary


def table(report: dict[str, Any]) -> str:
    """The report's summary as text for a terminal."""
    summary = pd.DataFrame(report["summary"]).T
    columns = {
        "prefill_ms": ("prefill ms", "{:,.0f}"),
        "activation_ms": ("activation ms", "{:,.2f}"),
        "ttft_ms": ("TTFT ms", "{:,.1f}"),
        "end_to_end_ms": ("end to end ms", "{:,.0f}"),
        "activation_speedup": ("activation x", "{:,.0f}"),
        "ttft_speedup": ("TTFT x", "{:,.1f}"),
        "end_to_end_speedup": ("end to end x", "{:.2f}"),
        "kv_bytes": ("KV MB", "{:,.1f}"),
        "max_abs_logit_diff": ("max |dlogit|", "{:.3g}"),
        "same_tokens": ("same tokens", "{}"),
    }
    summary["kv_bytes"] = summary.kv_bytes / 1e6
    shown = pd.DataFrame(
        {
            title: [_cell(form, value) for value in summary[key]]
            for key, (title, form) in columns.items()
            if key in summary
        },
        index=summary.index,
    )
    env, restore = report["environment"], report["restore"]
    spread = ", ".join(f"{name} {low:,.0f}-{high:,.0f}" for name, (low, high) in summary.end_to_end_spread_ms.items())
    limit = summary.end_to_end_bound.iloc[0]
    lines = [
        f"measured: {env['model']}, {env['processor']}, {env['n_threads']} threads, {env['llama_cpp']}",
        f"{env['settings']['depth']:,} tokens, {env['settings']['n_agents']} agents, "
        f"medians of {int(summary.repeats.min())} interleaved runs{_disturbed(report)}; per-agent times are means over "
        "the agents",
        "",
        shown.to_string(),
        "",
        f"end to end, min-max ms: {spread}",
        f"end-to-end bound N(P+B)/(P+N*B) for branches one after another: {_cell('{:.2f}x', limit)}",
    ]
    if restore is not None:  # an interrupt leaves it out
        lines.append(
            f"restore {restore['restore_ms']:.1f} ms, warm memcpy of the same {restore['bytes']:,} bytes "
            f"{restore['memcpy_ms']:.1f} ms: ratio {restore['ratio']:.2f}"
        )
    return "\n".join(lines)


def _disturbed(report: dict[str, Any]) -> str:
    """How many rounds the medians leave out."""
    others = {row["repeat"] for row in report["runs"] if not row["steady"]}
    if not others:
        return ""
    if all(not row["steady"] for row in report["runs"]):
        return f" (the machine's speed changed during each of the {len(others)} rounds: measure again on a quieter one)"
    return f" ({len(others)} more, during which the machine's speed changed, left out)"


def _cell(form: str, value: Any) -> str:
    return "-" if value is None or pd.isna(value) else form.format(value)
