"""A pipeline measured: naive and fan-outs, with and without watermarks."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd
from pandas.io.formats.style import Styler
from tqdm.auto import tqdm

from swarmkv_lab.errors import whole_number
from swarmkv_lab.fanout.documents import load_document
from swarmkv_lab.fanout.pipeline import Agent, Pipeline
from swarmkv_lab.fanout.recorder import PREFIX
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.files import DATA
from swarmkv_lab.llama.model import Model

WAITING = ", waiting"
"""Ends the name of a variant in which no agent begins before the whole document is prefilled."""
VARIANTS = ("naive", "shared", "batched", "batched" + WAITING)


def load_pipeline(name: str, model: Model, *, n_tokens: int | None = None) -> Pipeline:
    """The pipeline that comes with a document ("dossier"), as data/documents/NAME.pipeline.toml has it.

    n_tokens: of the document, instead of the file's; watermarks keep their share of it.
    """
    spec = tomllib.loads((DATA / "documents" / f"{name}.pipeline.toml").read_text(encoding="utf-8"))
    tokens, whole = model.read(load_document(spec["document"])), spec["tokens"]
    n_tokens = whole_number("n_tokens", whole if n_tokens is None else n_tokens, 1, len(tokens))
    for how in spec["agents"].values():
        if "prefix_tokens" in how:
            how["prefix_tokens"] = max(1, how["prefix_tokens"] * n_tokens // whole)
    return Pipeline(model, tokens[:n_tokens], [Agent(agent, **how) for agent, how in spec["agents"].items()])


def compare_pipeline(
    pipeline: Pipeline, variants: Sequence[str] = VARIANTS, *, repeats: int = 1
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run a pipeline in each variant, in turns: (rows, timelines), with a row per agent and a row per span.

    variants: names of strategies, or "strategy, waiting" for the same agents without watermarks. If naive is included,
    answers are compared with naive's (columns as in Run.compare), except in waiting variants, where agents read more of
    the document. Raises the error of an agent that fails. An interrupt returns the complete rounds, if there are any.
    """
    pipelines = {variant: waiting(pipeline) if variant.endswith(WAITING) else pipeline for variant in variants}
    rows: list[pd.DataFrame] = []
    timelines: list[pd.DataFrame] = []
    try:
        for repeat in range(repeats):
            runs: dict[str, Run] = {}
            title = f"pipeline, round {repeat + 1} of {repeats}"
            for variant in tqdm(variants, desc=title, leave=False, disable=None):
                runs[variant] = pipelines[variant].run(variant.removesuffix(WAITING)).whole()
            for variant, run in runs.items():
                about = {"repeat": repeat, "variant": variant}
                naive = runs.get("naive") if pipelines[variant] is pipeline else None
                rows.append(_agents(run, pipelines[variant], naive).assign(**about))
                timelines.append(run.timeline.assign(**about))
    except KeyboardInterrupt:
        if not rows:
            raise
    return pd.concat(rows, ignore_index=True), pd.concat(timelines, ignore_index=True)


def waiting(pipeline: Pipeline) -> Pipeline:
    """The same agents without watermarks: nobody begins before the whole document is read."""
    agents = [replace(agent, prefix_tokens=None) for agent in pipeline.agents]
    return Pipeline(pipeline.model, pipeline.tokens, agents)


def _agents(run: Run, pipeline: Pipeline, naive: Run | None) -> pd.DataFrame:
    """A row per agent of a run; values of the whole run are repeated in every row."""
    spans, prefill_ms = run.timeline, run.metrics["prefill_ms"]
    first = run.agents.ttft_ms.min()
    before = spans[(spans.phase == "prefill") & (spans.agent == PREFIX) & (spans.end_ms <= first)]
    rows = run.agents.rename(columns={"ttft_ms": "first_token_at_ms"})[
        ["agent", "prompt_tokens", "first_token_at_ms", "answer_tokens", "answer"]
    ].assign(
        n_prefix=list(pipeline.watermarks.values()),
        depth=len(pipeline.tokens),
        prefill_ms=prefill_ms,
        prefill_before_first=(before.end_ms - before.start_ms).sum() / prefill_ms,
        end_to_end_ms=run.metrics["end_to_end_ms"],
        kv_bytes=run.metrics["kv_bytes"],
    )
    return rows if naive is None else rows.merge(run.compare(naive), on="agent")


def as_text(rows: pd.DataFrame) -> Styler:
    """A table of answers to read: not cut off, aligned left, without row numbers."""
    left = {"text-align": "left", "vertical-align": "top"}
    heads = {"selector": "th", "props": "text-align: left;"}
    return rows.style.hide().format(precision=3, na_rep="").set_properties(**left).set_table_styles([heads])


def failing(name: str, why: str) -> Callable[[str, int], None]:
    """An on_token callback that makes the agent called ``name`` fail at its first token, with ValueError(why)."""

    def on_token(agent: str, token: int) -> None:
        if agent == name:
            raise ValueError(why)

    return on_token
