"""What the lab claims of many machines: bounds that the rows in data/ keep. Their numbers: tests/readme.py."""

import pandas as pd

from swarmkv_studies.common.measurements import measurements
from swarmkv_studies.many_machines.shipping import join_bound
from swarmkv_studies.many_machines.tables import cluster_table

REFERENCE = measurements("reference")


def test_workers_answer_as_one_process_does_and_cost_little():
    table = cluster_table(REFERENCE.cluster).set_index("crew")
    assert table.same.all()
    one = table.loc["1 x 2"]
    assert one.ratio <= 1.08


def test_what_keeps_bits():
    table = REFERENCE.exactness.set_index("change")
    keeps = ["again", "1 thread", "2 threads", "n_batch 256", "n_batch 128", "n_batch 100"]
    assert list(table.index[table.same_bits]) == keeps
    assert table.same_token.all()
    assert not table.same_bits["llama.cpp without AVX-512"]


def test_join_is_never_much_slower_than_the_better_and_faster_in_between():
    rows = REFERENCE.join
    assert rows.same_bits.all()
    median = rows.groupby("bandwidth")[["join_ms", "load_ms", "compute_ms"]].median()
    median["compute_ms"] = (
        rows.compute_ms.median()
    )  # it does not depend on the bandwidth, and the machine's speed varies
    better = median[["load_ms", "compute_ms"]].min(axis=1)
    assert (median.join_ms <= 1.05 * better + 20).all(), median.join_ms / better
    bound = join_bound(median.compute_ms, median.load_ms)
    fastest = (median.join_ms / better).min()
    assert fastest < 0.75
    assert (median.join_ms / bound).max() < 1.6


def test_all_of_it_is_of_one_machine():
    assert REFERENCE.cluster_caption == REFERENCE.join_caption
    for frame in (REFERENCE.cluster, REFERENCE.join):
        assert isinstance(frame, pd.DataFrame)
        assert frame.repeat.nunique() >= 2
