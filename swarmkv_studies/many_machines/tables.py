"""Clusters: what many processes cost and bring against one."""

import pandas as pd


def cluster_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One process against workers x threads: medians in s, and whether all answers are the same.

    rows: from ``against_one_process``. ratio: the median of the repeats' own, as a machine changes its
    speed between them.
    """
    by = ["n_agents", "crew", "repeat"]
    alone, crew = (rows[rows.workers.eq(0) == own].set_index(by).end_to_end_ms / 1e3 for own in (True, False))
    table = pd.DataFrame({"one_process_s": alone, "workers_s": crew, "ratio": crew / alone})
    return table.groupby(by[:2]).median().assign(same=rows.groupby(by[:2]).same.all()).reset_index()
