"""Ship or recompute: the break-even by hand, its map, and the two ways measured."""

import math

import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.many_machines.shipping import break_even_table, ship_times


def test_what_is_sent_is_what_would_be_computed(twin, document):
    rows = ship_times(twin, document, [1e5, 1e9], repeats=1, progress=False)
    assert rows.same_bits.all()
    assert (rows.load_ms > 1e3 * rows.bytes / rows.bandwidth).all()


def test_the_break_even_bandwidth_is_bytes_over_seconds():
    assert studies.break_even_bandwidth("qwen2.5-7b", 3501, 3501 / 4.339) == pytest.approx(200_804_052 / 4.339)
    whole, half = (studies.break_even_bandwidth("qwen2.5-7b", 3501, 807, kv_type) for kv_type in ("f16", "q8_0"))
    assert half / whole == pytest.approx(17 / 32, rel=1e-3)
    table = break_even_table({"smollm2-135m": 200, "qwen2.5-7b": 800}, [256, 4096])
    assert table.model.tolist() == ["smollm2-135m"] * 2 + ["qwen2.5-7b"] * 2
    assert table.bytes_per_s[0] == studies.break_even_bandwidth("smollm2-135m", 256, 200)


@pytest.mark.parametrize(("n_tokens", "speed"), [(0, 1.0), (10, 0.0), (10, math.nan)])
def test_bad_input_is_refused(n_tokens, speed):
    with pytest.raises(lab.SwarmKVError):
        studies.break_even_bandwidth("qwen2.5-7b", n_tokens, speed)


def test_the_map_counts_the_measured_points_that_it_agrees_with():
    lines = break_even_table({"qwen2.5-7b": 807.0, "smollm2-135m": 207.0}, [100, 10_000])
    points = pd.DataFrame(
        {"depth": [1000, 1000, 3000], "bytes_per_s": [1e6, 1e9, 1e7], "winner": ["recompute", "ship", "ship"]}
    )
    assert "2 of 3" in studies.ship_or_recompute(lines, points).get_label()
