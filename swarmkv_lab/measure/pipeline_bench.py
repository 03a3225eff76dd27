"""A pipeline measured: naive beside fan-outs, with watermarks and without."""

from collections.abc import Callable, Sequence

import pandas as pd
from pandas.io.formats.style import Styler
from tqdm.auto import tqdm

from swarmkv_lab.fanout.pipeline import Pipeline
from swarmkv_lab.fanout.run import Run

WAITING = ", waiting"
"""Ends the name of a variant in which nobody begins before the whole document is read."""
VARIANTS = ("naive", "shared", "batched", "batched" + WAITING)


def compare_pipeline(
    pipeline: Pipeline, variants: Sequence[str] = VARIANTS, *, repeats: int = 1
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rows, timelines) of a pipeline run in each variant, in turns: a row per agent, and a row per span.

    variants: strategies by name, or "strategy, waiting" for the same agents without watermarks. Where naive is one,
    answers are compared with its (columns as in Run.compare), except those of agents who read more than they did there.
    An interrupt ends it with the rounds that are whole.
    """
    pipelines = {variant: pipeline.waiting() if variant.endswith(WAITING) else pipeline for variant in variants}
    rows: list[pd.DataFrame] = []
    timelines: list[pd.DataFrame] = []
    try:
        for repeat in range(repeats):
            runs: dict[str, Run] = {}
            for variant in tqdm(variants, desc=f"pipeline, round {repeat + 1} of {repeats}", leave=False):
                runs[variant] = pipelines[variant].run(variant.removesuffix(WAITING))
                for error in runs[variant].errors.values():
                    raise error
            for variant, run in runs.items():
                about = {"repeat": repeat, "variant": variant}
                naive = runs.get("naive") if pipelines[variant] is pipeline else None
                rows.append(_agents(run, pipelines[variant], naive).assign(**about))
                timelines.append(run.timeline.assign(**about))
    except KeyboardInterrupt:
        if not rows:
            raise
    return pd.concat(rows, ignore_index=True), pd.concat(timelines, ignore_index=True)


def _agents(run: Run, pipeline: Pipeline, naive: Run | None) -> pd.DataFrame:
    """A run, a row per agent; what is the run's own stands in each of its rows."""
    spans, prefill_ms = run.timeline, run.metrics["prefill_ms"]
    first = run.agents.first_token_at_ms.min()
    before = spans[(spans.phase == "prefill") & (spans.agent == run.prefix_lane) & (spans.end_ms <= first)]
    rows = run.agents[["agent", "prompt_tokens", "ttft_ms", "first_token_at_ms", "answer_tokens", "answer"]].assign(
        n_prefix=list(pipeline.watermarks.values()),
        depth=len(pipeline.tokens),
        prefill_ms=prefill_ms,
        prefill_before_first=(before.end_ms - before.start_ms).sum() / prefill_ms,
        end_to_end_ms=run.metrics["end_to_end_ms"],
        critical_path_ms=pipeline.critical_path_ms(run),
        kv_bytes=run.metrics["kv_bytes"],
    )
    return rows if naive is None else rows.merge(run.compare(naive), on="agent")


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
