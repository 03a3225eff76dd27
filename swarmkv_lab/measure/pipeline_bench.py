"""A pipeline measured: naive beside fan-outs, with watermarks and without."""

from collections.abc import Callable, Sequence

import pandas as pd
from pandas.io.formats.style import Styler
from tqdm.auto import tqdm

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.pipeline import Pipeline
from swarmkv_lab.fanout.report import PREFIX
from swarmkv_lab.fanout.run import Run

WAITING = ", waiting"
"""Ends the name of an arm in which nobody begins before the whole document is read."""
ARMS = ("naive", "shared", "batched", "batched" + WAITING)


def compare_pipeline(
    pipeline: Pipeline, arms: Sequence[str] = ARMS, *, repeats: int = 1
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rows, timelines) of a pipeline run in each arm, in turns: a row an agent, and a row a span.

    arms: strategies by name, or "strategy, waiting" for the same agents without watermarks. Where naive is one, answers
    are compared with its (columns as in Run.compare), but not those of agents who read more than they did there.
    An interrupt ends it with the rounds that are whole.
    """
    pipelines = {arm: pipeline.waiting() if arm.endswith(WAITING) else pipeline for arm in arms}
    rows: list[pd.DataFrame] = []
    timelines: list[pd.DataFrame] = []
    try:
        for repeat in range(repeats):
            runs: dict[str, Run] = {}
            for arm in tqdm(arms, desc=f"pipeline, round {repeat + 1} of {repeats}", leave=False):
                runs[arm] = pipelines[arm].run(arm.removesuffix(WAITING))
                for error in runs[arm].errors.values():
                    raise error
            for arm, run in runs.items():
                about = {"repeat": repeat, "arm": arm}
                naive = runs.get("naive") if pipelines[arm] is pipeline else None
                rows.append(_agents(run, pipelines[arm], naive).assign(**about))
                timelines.append(run.timeline.assign(**about))
    except KeyboardInterrupt:
        if not rows:
            raise
    return pd.concat(rows, ignore_index=True), pd.concat(timelines, ignore_index=True)


def _agents(run: Run, pipeline: Pipeline, naive: Run | None) -> pd.DataFrame:
    """A run, a row an agent; what is the run's own stands in each of its rows."""
    spans = run.timeline
    prefills = spans[spans.phase == "prefill"]
    prefill_ms = (prefills.end_ms - prefills.start_ms).sum()
    first = run.agents.first_token_at_ms.min()
    before = prefills[(prefills.agent == PREFIX) & (prefills.end_ms <= first)]
    rows = run.agents[["agent", "prompt_tokens", "ttft_ms", "first_token_at_ms", "answer_tokens", "answer"]].assign(
        n_prefix=list(pipeline.watermarks.values()),
        depth=len(pipeline.tokens),
        prefill_ms=prefill_ms,
        prefill_before_first=(before.end_ms - before.start_ms).sum() / prefill_ms,
        end_to_end_ms=run.metrics["end_to_end_ms"],
        critical_path_ms=pipeline.critical_path_ms(run),
        kv_bytes=run.kv_bytes,
    )
    return rows if naive is None else rows.merge(run.compare(naive), on="agent")


def pipeline_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians over the rounds, a row an arm: seconds, and shares of the prefill and of the critical path (measured)."""
    if rows.empty:
        raise SwarmKVError("nothing was measured: compare_pipeline gives rows")
    runs = rows.groupby(["arm", "repeat"], sort=False).agg(
        first_s=("first_token_at_ms", "min"),
        prefill_s=("prefill_ms", "first"),
        end_to_end_s=("end_to_end_ms", "first"),
        critical_s=("critical_path_ms", "first"),
        read_before_first=("prefill_before_first", "first"),
    )
    seconds = [name for name in runs if name.endswith("_s")]
    runs[seconds] /= 1e3
    runs["over_critical"] = runs.end_to_end_s / runs.critical_s - 1
    if "naive" in rows.arm.to_numpy():
        naive = runs.end_to_end_s.xs("naive", level="arm")
        runs["speedup"] = naive.reindex(runs.index, level="repeat") / runs.end_to_end_s
        runs["same_tokens"] = rows.same_tokens.astype(float).groupby([rows.arm, rows.repeat]).mean()
    return runs.groupby("arm", sort=False).median()


def as_text(rows: pd.DataFrame) -> Styler:
    """Answers as a reader wants them: whole, on the left, without row numbers."""
    left = {"text-align": "left", "vertical-align": "top"}
    heads = {"selector": "th", "props": "text-align: left;"}
    return rows.style.hide().format(precision=3, na_rep="").set_properties(**left).set_table_styles([heads])


def failing(name: str, why: str) -> Callable[[str, int], None]:
    """An on_token that makes one agent fail at its first token."""

    def on_token(agent: str, token: int) -> None:
        if agent == name:
            raise ValueError(why)

    return on_token
