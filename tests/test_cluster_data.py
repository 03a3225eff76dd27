"""What the lab claims of many machines: bounds that the rows in data/ keep. Their numbers: tests/readme.py."""

import pandas as pd

from swarmkv_studies.common.measurements import measurements
from swarmkv_studies.many_machines.bench import cluster_table

REFERENCE = measurements("reference")


def test_workers_answer_as_one_process_does_and_cost_little():
    table = cluster_table(REFERENCE.cluster).set_index("crew")
    assert table.same.all()
    one = table.loc["1 x 2"]
    assert one.ratio <= 1.08


def test_all_of_it_is_of_one_machine():
    assert REFERENCE.cluster_caption == REFERENCE.ship_caption
    for frame in (REFERENCE.cluster, REFERENCE.ship):
        assert isinstance(frame, pd.DataFrame)
        assert frame.repeat.nunique() >= 2
