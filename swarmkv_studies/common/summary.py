"""Summaries of measured runs as tables: a bench, a comparison with peers, a race, and a pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from swarmkv_lab.cli.program import table
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_studies.common.costmodel import ideal, packed_strategies
from swarmkv_studies.common.speedup import speedups, with_spread

_UNEVEN = 1.25
"""rounds whose times of the same work differ by more say that the machine was busy"""


def summarize(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A bench by strategy, ready for JSON: median times in ms, speed-up, bytes and exactness (None: not compared).

    end_to_end_speedup is the median of the rounds' ratios to naive, end_to_end_quartiles their quartiles
    (common.speedup). end_to_end_ideal is the median of costmodel.ideal of naive's rounds.
    """
    frame = pd.DataFrame(records).astype({"max_abs_logit_diff": float})
    groups, naive = frame.groupby("strategy", sort=False), frame[frame.strategy == BASELINE]
    gains = speedups(frame, by=["strategy"])
    summary = groups[[name for name in frame if name.endswith("_ms")]].median()
    summary = summary.assign(
        rounds=groups.size(),
        end_to_end_speedup=gains["median"],
        end_to_end_quartiles=pd.Series([*zip(gains.low, gains.high, strict=True)], gains.index, dtype=object),
        end_to_end_ideal=ideal(naive, naive.n_agents).median(),
        kv_bytes=groups.kv_bytes.max(),
        max_abs_logit_diff=groups.max_abs_logit_diff.max(),
        same_tokens=groups.same_tokens.all() if len(naive) else None,
    )
    return summary.astype(object).where(summary.notna(), None).to_dict("index")


def busy(report: Mapping[str, Any]) -> str:
    """One line if the machine was busy while a bench measured, by its load or by its rounds; otherwise nothing."""
    env, runs = report["environment"], pd.DataFrame(report["runs"])
    ends = runs.groupby("strategy").end_to_end_ms.agg(["min", "max"])
    uneven, load, cores = (ends["max"] / ends["min"]).max(), env.get("load", 0.0), env["cores"] or 1
    signs = []
    if load > cores:
        signs.append(f"at the start {load:.1f} programs wanted its {cores} cores")
    if uneven > _UNEVEN:
        signs.append(f"the same work took up to {uneven:.2f} times as long in one round as in another")
    return f"The machine was busy: {', and '.join(signs)}." if signs else ""


def bench_text(report: Mapping[str, Any]) -> str:
    """A bench as text for a terminal: one table of its strategies, and what a reader sees in it. report: from bench."""
    runs = pd.DataFrame(report["runs"])
    gains, env = speedups(runs, by=["strategy"]), report["environment"]
    rows = {
        name: {
            "TTFT": f"{row['ttft_ms']:,.0f} ms",
            "end to end": f"{row['end_to_end_ms']:,.0f} ms",
            "times as early": with_spread(gains.loc[name]) if name in gains.index and name != BASELINE else "-",
            "KV memory": f"{row['kv_bytes'] / 1e6:,.0f} MB",
            "beside naive's": _exactness(row),
        }
        for name, row in report["summary"].items()
    }
    asked, n_rounds = env["settings"], runs.repeat.nunique()
    lines = [
        f"{env['model']}, {env['processor']}, {env['n_threads']} threads: {asked['depth']:,} tokens, "
        f"{asked['n_agents']} agents, {n_rounds} round{'s' * (n_rounds > 1)} in which the strategies took turns",
        "",
        table(pd.DataFrame.from_dict(rows, orient="index").rename_axis("strategy")),
        "",
        "Medians. TTFT: from the call to the median agent's first token. Times as early: naive's end over the "
        "strategy's in the same round, in brackets the quartiles over the rounds.",
        busy(report),
    ]
    return "\n".join(lines).rstrip()


def _exactness(row: Mapping[str, Any]) -> str:
    if row["same_tokens"] is None:
        return "-"
    tokens = "same tokens" if row["same_tokens"] else "other tokens"
    if row["max_abs_logit_diff"] is None:  # a peer's
        return tokens
    return "same bits" if row["max_abs_logit_diff"] == 0 else f"logits within {row['max_abs_logit_diff']:.2g}, {tokens}"


def peers_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians of a comparison at one depth, a row per strategy: last agent's first token, end to end, KV memory.

    "last TTFT from its turn" is for agents that come one after another (empty for strategies that answer all at once).
    "from the call" is for agents that all come at once: the time until every agent has its first token. "as naive" is
    the share of runs in which all answers have naive's tokens.
    """
    most = frame.n_agents.max()
    columns = ["last_turn_ttft_ms", "last_ttft_ms", "end_to_end_ms"]
    times = frame.pivot_table(columns, "strategy", "n_agents", aggfunc="median", sort=False)
    from_turn = times["last_turn_ttft_ms"].astype(object)
    from_turn.loc[packed_strategies(frame)] = None
    held = frame[frame.n_agents == most].groupby("strategy", sort=False).kv_bytes.max() / 1e6
    alike = frame.groupby("strategy", sort=False).same_tokens.mean()
    parts = {
        "last TTFT from its turn, ms": from_turn,
        "last TTFT from the call, ms": times["last_ttft_ms"],
        "end to end, ms": times["end_to_end_ms"],
        f"{most} agents": pd.DataFrame({"KV MB": held, "as naive": alike}),
    }
    return pd.concat(parts, axis=1).reindex(frame.strategy.unique())


def race_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The numbers of a race as text, a column per strategy; runs: a row of Outcome.metrics per strategy.

    TTFT is from the call. The last row says how long the prefill took against the shortest one of the race: it is the
    same work each time, so its spread is the noise of the times above.
    """
    runs = runs.set_index("strategy")
    ms = {
        "prefill": runs.prefill_ms,
        "first agent's TTFT": runs.first_ttft_ms,
        "last agent's TTFT": runs.last_ttft_ms,
        "end to end": runs.end_to_end_ms,
        "an agent's own work": runs.branch_ms + runs.sample_ms + runs.generate_ms,
    }
    counts = {
        "tokens computed": runs.computed_tokens,
        "KV memory held, bytes": runs.kv_bytes,
        "copied, bytes": runs.copied_bytes,
    }
    text = {f"{name}, ms": each.map(lambda t: f"{t:,.1f}" if t < 10 else f"{t:,.0f}") for name, each in ms.items()}
    text |= {name: each.map("{:,.0f}".format) for name, each in counts.items()}
    text["prefill against the shortest"] = (runs.prefill_ms / runs.prefill_ms.min()).map("{:.2f}".format)
    return pd.DataFrame(text).T


def pipeline_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians over the rounds, a row per variant: times in seconds, shares, and the tokens that all agents answered.

    read_before_first: share of the prefill done before the first answer. speedup and same_tokens: against naive.
    rows: from compare_pipeline. Raises SwarmKVError if rows is empty.
    """
    if rows.empty:
        raise SwarmKVError("nothing was measured: pass the rows of compare_pipeline")
    runs = rows.groupby(["variant", "repeat"], sort=False).agg(
        first_s=("first_token_at_ms", "min"),
        prefill_s=("prefill_ms", "first"),
        end_to_end_s=("end_to_end_ms", "first"),
        read_before_first=("prefill_before_first", "first"),
        answer_tokens=("answer_tokens", "sum"),
    )
    seconds = [name for name in runs if name.endswith("_s")]
    runs[seconds] /= 1e3
    if BASELINE in rows.variant.to_numpy():
        naive = runs.end_to_end_s.xs(BASELINE, level="variant")
        runs["speedup"] = naive.reindex(runs.index, level="repeat") / runs.end_to_end_s
        runs["same_tokens"] = rows.same_tokens.astype(float).groupby([rows.variant, rows.repeat]).mean()
    return runs.groupby("variant", sort=False).median()
