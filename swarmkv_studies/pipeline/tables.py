"""Pipelines: what agents answer if they begin at their watermarks, and if they wait for the whole document."""

import pandas as pd

from swarmkv_lab.errors import SwarmKVError


def early_and_late(rows: pd.DataFrame, strategy: str = "batched") -> pd.DataFrame:
    """The answers of agents that begin at a watermark, beside those that they give if they wait: a row per agent.

    Columns agent, reads (tokens), answer, "reads, waiting" and "answer, waiting", of the first round. rows: from
    measure.pipeline_bench.compare_pipeline. Raises SwarmKVError where one of the two variants was not measured.
    """
    first = rows[rows.repeat == rows.repeat.min()]
    sides = [
        first[first.variant == variant].set_index("agent")[["n_prefix", "answer"]].rename(columns={"n_prefix": "reads"})
        for variant in (strategy, f"{strategy}, waiting")
    ]
    if any(side.empty for side in sides):
        raise SwarmKVError(f"{strategy} was not measured both with and without watermarks: see compare_pipeline")
    both = sides[0].join(sides[1].add_suffix(", waiting"))
    return both[both.reads < both["reads, waiting"]].reset_index()
