"""Ship or recompute: formulas by hand, their limits, and a queue that is the plain one."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.many_machines import queueing
from swarmkv_studies.many_machines.shipping import (
    WAYS,
    arrivals,
    break_even_table,
    chunked_tree,
    codec_break_even,
    crossings,
    download,
    join_bound,
    machine_seconds,
    star,
    tree,
)

LINK = studies.Link(100.0, 1.0)  # a message of 200 bytes takes 3 s
DOCUMENT = studies.Document(200, 10.0, 0.5)
SERVICE = pd.DataFrame({"first_s": [0.1, 0.2, 0.4], "rest_s": [0.3, 0.1, 0.9]})


def test_a_message_takes_latency_and_bytes():
    assert LINK.seconds(200) == 3.0


def test_the_star_sends_one_after_another():
    assert star(200, LINK, 4).tolist() == [0, 3, 6, 9]


def test_the_tree_doubles_its_holders_in_each_round():
    assert tree(200, LINK, 9).tolist() == [0, 3, 6, 6, 9, 9, 9, 9, 12]
    assert (tree(200, LINK, 1000) == 3 * np.ceil(np.log2(np.arange(1, 1001)))).all()


def test_pieces_follow_each_other_down_a_chain_or_a_tree():
    """Two pieces of 100 bytes: steps of 2 s."""
    assert chunked_tree(200, LINK, 2, 2).tolist() == [0, 4]  # both pieces to the only other one
    assert chunked_tree(200, LINK, 4, 2).tolist() == [0, 4, 6, 8]  # a chain: the last is three machines away
    # four pieces (1.5 s) to 20 machines: 22 steps along a chain, 2*3 + 5 in a Fibonacci tree (1, 1, 2,
    # 3, 5 and 8 machines in turn), 3*3 + 5 with three each
    assert chunked_tree(200, LINK, 20, 4)[-1] == 11 * 1.5


def test_compute_and_load_meet():
    assert join_bound(10.0, 10.0) == 5.0
    assert join_bound(10.0, 0.0) == 0.0
    assert join_bound(10.0, 1e12) == pytest.approx(10.0)
    np.testing.assert_allclose(join_bound(6.0, np.array([3.0, 6.0])), [2, 3])


@pytest.mark.parametrize(("way", "warm", "cold"), [
    ("recompute", [10, 10, 10], [10, 10, 10]),
    ("star", [0.5, 3.5, 6.5], [10, 13.5, 16.5]),
    ("tree", [0.5, 3.5, 6.5], [10, 13.5, 16.5]),
    ("object store", [4.5] * 3, [10, 16.5, 16.5]),  # 3 readers at 200/3 bytes per second; up, then 2 readers
    ("join", [10 * 4 / 14 + 0.5] * 3, [10, 10, 10]),
])  # fmt: skip
def test_when_each_machine_has_the_cache(way, warm, cold):
    np.testing.assert_allclose(arrivals(way, DOCUMENT, LINK, 3, store_bytes_per_s=200), warm)
    np.testing.assert_allclose(arrivals(way, DOCUMENT, LINK, 3, warm=False, store_bytes_per_s=200), cold)


def test_a_warm_start_saves_time_and_a_cold_one_machines():
    table = studies.shipping(DOCUMENT, LINK, 3, store_bytes_per_s=200).set_index(["start", "way"])
    assert table.loc["cold"].last_s.min() == table.loc[("cold", "recompute"), "last_s"] == 10
    assert table.loc[("warm", "star"), ["first_s", "median_s", "last_s", "machine_s"]].tolist() == [0.5, 3.5, 6.5, 1.5]
    assert table.loc[("cold", "star"), "machine_s"] == 10 + 2 * 0.5
    assert table.loc[("cold", "recompute"), "machine_s"] == 30
    joined = arrivals("join", DOCUMENT, LINK, 3)
    assert machine_seconds("join", DOCUMENT, joined) == joined.sum()


@given(
    nbytes=st.integers(1, 1 << 40), prefill=st.floats(1e-3, 1e4), bandwidth=st.floats(1.0, 1e12),
    latency=st.floats(0, 10), n=st.integers(1, 300), store=st.floats(1.0, 1e12), restore=st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_what_holds_for_every_cluster(nbytes, prefill, bandwidth, latency, n, store, restore):
    document, link = studies.Document(nbytes, prefill, restore), studies.Link(bandwidth, latency)
    faster = studies.Link(2 * bandwidth, latency / 2)
    for way in WAYS:
        for warm in (True, False):
            ready = arrivals(way, document, link, n, warm=warm, store_bytes_per_s=store)
            assert len(ready) == n
            assert (np.diff(ready) >= 0).all()
            assert warm or ready[0] >= prefill
            assert (
                arrivals(way, document, faster, n, warm=warm, store_bytes_per_s=2 * store) <= ready * (1 + 1e-9)
            ).all()
            more = arrivals(way, document, link, n + 1, warm=warm, store_bytes_per_s=store)
            assert more[-1] >= ready[-1] * (1 - 1e-9)
            assert machine_seconds(way, document, ready, warm=warm) >= (0 if warm else prefill * (1 - 1e-9))
    assert (arrivals("tree", document, link, n) <= arrivals("star", document, link, n)).all()
    assert arrivals("join", document, link, n)[0] <= min(prefill, download(nbytes, link, n)) * (1 + 1e-9) + restore


def test_an_infinite_link_and_one_machine():
    endless = studies.Link(math.inf)
    for way in WAYS[1:]:
        assert arrivals(way, DOCUMENT, endless, 50).tolist() == [0.5] * 50
    for way in ("star", "tree", "chunked tree"):
        assert arrivals(way, DOCUMENT, LINK, 1).tolist() == [0.5]
        assert arrivals(way, DOCUMENT, LINK, 1, warm=False).tolist() == [10]


def test_the_break_even_bandwidth_is_bytes_over_seconds():
    assert studies.break_even_bandwidth("qwen2.5-7b", 3501, 3501 / 4.339) == pytest.approx(200_804_052 / 4.339)
    half = studies.break_even_bandwidth("qwen2.5-7b", 3501, 807, "q8_0") / studies.break_even_bandwidth(
        "qwen2.5-7b", 3501, 807
    )
    assert half == pytest.approx(17 / 32, rel=1e-3)
    ready = arrivals("star", studies.Document(200, 10.0), studies.Link(20.0), 2)  # at 200 bytes / 10 s
    assert ready[1] == 10.0
    table = break_even_table({"smollm2-135m": 200, "qwen2.5-7b": 800}, [256, 4096])
    assert table.model.tolist() == ["smollm2-135m"] * 2 + ["qwen2.5-7b"] * 2
    assert table.bytes_per_s[0] == studies.break_even_bandwidth("smollm2-135m", 256, 200)


def test_crossings_are_where_the_formulas_meet():
    at = crossings(DOCUMENT, LINK, 1000.0)
    assert (at["star"], at["store full"], at["store"]) == (1 + 9.5 / 3, 10, 1000 * 8.5 / 200)
    last = [arrivals("star", DOCUMENT, LINK, n)[-1] for n in (4, 5)]
    assert last[0] < DOCUMENT.prefill_s < last[1]
    times = [arrivals("object store", DOCUMENT, LINK, n, store_bytes_per_s=1000)[-1] for n in (1, 10, 11, 42, 43)]
    assert times[0] == times[1] < times[2] < times[3] < DOCUMENT.prefill_s < times[4]
    assert crossings(studies.Document(200, 1.0), LINK, 1000.0)["store"] == 0  # a message takes longer than a prefill


def test_a_codec_pays_below_a_bandwidth():
    at = codec_break_even(2.0, 100.0, 100.0)
    assert at == 25.0
    assert 1 / at == pytest.approx(1 / 100 + 1 / (2 * at) + 1 / 100)
    assert codec_break_even(1.0, 100.0, 100.0) == codec_break_even(0.9, 1.0, 1.0) == 0
    assert codec_break_even(2.0, math.inf, math.inf) == math.inf
    assert codec_break_even(pd.Series([2.0, 1.0]), pd.Series([100.0, 9]), pd.Series([100.0, 9])).tolist() == [25, 0]


@pytest.mark.parametrize("call", [
    lambda: studies.Link(0),
    lambda: studies.Link(math.nan),
    lambda: studies.Link(1.0, -0.1),
    lambda: studies.Document(0, 1.0),
    lambda: studies.Document(1, 0.0),
    lambda: studies.break_even_bandwidth("qwen2.5-7b", 10, 0),
    lambda: studies.shipping(DOCUMENT, LINK, 0),
    lambda: studies.shipping(DOCUMENT, LINK, 2, store_bytes_per_s=0),
    lambda: arrivals("pigeons", DOCUMENT, LINK, 2),
    lambda: studies.simulate_cluster(DOCUMENT, LINK, 2, 0, SERVICE),
    lambda: studies.simulate_cluster(DOCUMENT, LINK, 2, 5, SERVICE * 0),
])  # fmt: skip
def test_bad_input_is_refused(call):
    with pytest.raises(lab.SwarmKVError):
        call()


# -- the queue


def test_a_queue_small_enough_for_the_hand():
    """Machines from 0 s and 5 s, answers of 2 s: turns begin at 0, 2, 4, 5, 6, 7."""
    machine, start, _ = queueing.serve(np.array([0.0, 5.0]), 6, np.array([2.0]), np.random.default_rng(0))
    assert start.tolist() == [0, 2, 4, 5, 6, 7]
    assert machine.tolist() == [0, 0, 0, 1, 0, 1]
    service = pd.DataFrame({"first_s": [0.5], "rest_s": [1.5]})
    document, link = studies.Document(500, 10.0), studies.Link(100.0)
    rows = studies.simulate_cluster(document, link, 2, 6, service).set_index("way")
    row = rows.loc["star"]
    assert row.first_p50_s == 0.5 + 4.5
    assert row.first_max_s == 7.5
    assert row.makespan_s == 9
    assert row.machine_s == 12
    assert rows.machine_s["recompute"] == 20 + 12


@given(
    ready=st.lists(st.floats(0, 50), min_size=1, max_size=20), n_agents=st.integers(1, 300), seed=st.integers(0, 99),
    durations=st.lists(st.floats(0.01, 9), min_size=1, max_size=5),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_the_queue_is_the_plain_one(ready, n_agents, seed, durations):
    """One agent after another to the machine that is free first, for as long as this machine's own draws say."""
    ready, durations = np.sort(ready), np.array(durations)
    machine, start, which = queueing.serve(ready, n_agents, durations, np.random.default_rng(seed))
    drawn = [list(durations[which[machine == i]]) for i in range(len(ready))]
    free = ready.copy()
    for begins in start:
        assert begins == pytest.approx(free.min(), abs=1e-9)
        i = next(i for i in np.flatnonzero(free <= free.min() + 1e-9) if drawn[i])  # of equals, one that has a turn
        free[i] += drawn[i].pop(0)
    assert not any(drawn)


def test_the_star_collapses_where_its_machines_come_too_late():
    document, link = studies.Document(80_000_000, 12.0), studies.Link(125e6)
    frames = [studies.simulate_cluster(document, link, n, 100 * n, SERVICE, store_bytes_per_s=5e9) for n in (10, 1000)]
    last = pd.concat(frames).set_index(["n_machines", "way"]).first_max_s
    assert last[10, "star"] < last[10, "recompute"]
    assert last[1000, "star"] > 2 * last[1000, "recompute"]
    assert last[1000, "tree"] < last[1000, "recompute"]
    pd.testing.assert_frame_equal(frames[0], studies.simulate_cluster(document, link, 10, 1000, SERVICE))  # same seed


def test_a_crossing_lies_between_the_sizes_that_were_simulated():
    """Times that grow as the number of machines, against 30 s: they cross at 30 machines."""
    sizes = [1, 10, 100]
    table = pd.concat(
        pd.DataFrame({"n_machines": sizes, "way": way, "first_p50_s": seconds})
        for way, seconds in {"star": sizes, "recompute": [30.0] * 3, "tree": [50.0] * 3}.items()
    )
    assert queueing.crossing(table, "star", "recompute") == pytest.approx(30)
    assert queueing.crossing(table, "tree", "recompute") == 1
    assert queueing.crossing(table, "recompute", "tree") is None


def test_service_times_are_those_of_agents_that_have_the_cache():
    agents = pd.DataFrame({"branch_ms": [99.0], "sample_ms": [1.0], "generate_ms": [250.0]})
    assert queueing.service_times(agents).iloc[0].tolist() == [0.1, 0.25]
    assert (studies.measurements().service > 0).all(axis=None)


# -- figures


def text_of(figure):
    return " ".join([figure.get_label(), *(text.get_text() for ax in figure.axes for text in ax.texts)])


def test_the_map_counts_the_measured_points_that_it_agrees_with():
    lines = break_even_table({"qwen2.5-7b": 807.0, "smollm2-135m": 207.0}, [100, 10_000])
    points = pd.DataFrame(
        {"depth": [1000, 1000, 3000], "bytes_per_s": [1e6, 1e9, 1e7], "winner": ["recompute", "ship", "ship"]}
    )
    assert "2 of 3" in text_of(studies.ship_or_recompute(lines, points))


def test_the_crossings_are_drawn():
    link = studies.Link(125e6)
    said = text_of(studies.arrivals_against_machines(studies.Document(80_000_000, 12.0), link, 5e9, SERVICE, agents=2))
    assert "20 machines" in said  # the first whole number after 1 + 12 / 0.64
    assert "40 readers" in said
