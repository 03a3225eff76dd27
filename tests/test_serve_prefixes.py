"""What sequences hold, as the server keeps it: against plain Python, on random calls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError
from swarmkv_lab.serve.prefixes import GRAM, NOTHING, Held, Match, Prefixes, common

LETTERS = st.lists(st.integers(0, 2), max_size=12).map(lambda ids: np.array(ids, np.int32))


def entered(prefixes, tokens, n=0, rests=False):
    held = Held(np.asarray(tokens, np.int32))
    prefixes.enter(held)
    prefixes.extend(held, n)
    if rests:
        prefixes.rest(held)
    return held


@given(LETTERS, LETTERS)
def test_common_is_what_two_begin_with_alike(a, b):
    n = common(a, b)
    assert (a[:n] == b[:n]).all()
    assert n == min(len(a), len(b)) or a[n] != b[n]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans())
def test_cells_are_counted_whatever_happens(data, goes_back):
    prefixes = Prefixes(40, 5, goes_back, parked_bytes=30)
    for _ in range(data.draw(st.integers(1, 30))):
        live = [held for held in prefixes.entries.values() if held.live]
        step = data.draw(st.sampled_from(["enter", "extend", "rest", "forget", "park", "restore"]))
        if step == "enter" and len(prefixes.entries) < 5:
            held = Held(data.draw(LETTERS))
            source = prefixes.match(held.tokens)
            if source.n:
                assert (source.held.tokens[: source.n] == held.tokens[: source.n]).all()
                assert source.held.live or source.held.n >= source.n
                assert goes_back or source.held.n <= source.n
            prefixes.enter(held)
            if source.n > len(source.held.cells):
                with pytest.raises(SwarmKVError):
                    prefixes.share(held, source)
            elif source.n:
                prefixes.share(held, source)
        elif step == "extend" and live:
            held = data.draw(st.sampled_from(live))
            n = data.draw(st.integers(0, held.missing))
            if n > prefixes.free:
                with pytest.raises(ContextBudgetError):
                    prefixes.extend(held, n)
            else:
                prefixes.extend(held, n)
        elif step == "rest" and live:
            prefixes.rest(data.draw(st.sampled_from(live)))
        elif step in ("forget", "park") and (held := prefixes.droppable()):
            assert not held.live
            n = held.n
            prefixes.park(held, np.zeros(n, np.uint8)) if step == "park" else prefixes.forget(held)
            assert held.n == (n if step == "park" else 0)
        elif step == "restore" and prefixes.parked and len(prefixes.entries) < 5:
            held = prefixes.parked[0]
            if held.n <= prefixes.free:
                n = held.n
                prefixes.enter(held)
                prefixes.extend(held, n)
                assert not held.missing
        entries = list(prefixes.entries.values())
        held = [set(entry.cells.tolist()) for entry in entries]
        assert prefixes.free == 40 - len(set().union(*held))
        assert sum(one.state.nbytes for one in prefixes.parked) <= 30
        assert all(one.parked and one.seq_id == -1 for one in prefixes.parked)
        assert all(len(cells) == entry.n and not entry.parked for cells, entry in zip(held, entries, strict=True))
        for one in entries:  # cells are shared for the same tokens at the same places alone
            for other in entries:
                both = np.flatnonzero(np.isin(one.cells, other.cells))
                assert (one.cells[both] == other.cells[both]).all()
                assert (one.tokens[both] == other.tokens[both]).all()
    for held in list(prefixes.entries.values()):
        prefixes.forget(held)
    assert prefixes.free == 40


def test_what_is_at_work_is_waited_for():
    prefixes, tokens = Prefixes(100, 3), np.arange(20)
    held = entered(prefixes, tokens)
    assert prefixes.match(tokens) == Match(held, 0, 0, 20)
    prefixes.extend(held, 8)
    other = np.append(tokens[:12], [50])
    assert prefixes.match(other) == Match(held, 0, 0, 12)
    prefixes.rest(held)
    assert prefixes.match(other) == Match(held, 0, 0, 8)


def test_without_going_back_only_ends_count():
    prefixes, tokens = Prefixes(100, 3, goes_back=False), np.arange(20)
    held = entered(prefixes, tokens, 10)
    assert prefixes.match(tokens[:15]) == Match(held, 0, 0, 15)
    assert prefixes.match(tokens[:9]) == NOTHING
    prefixes.rest(held)
    assert prefixes.match(tokens[:15]) == Match(held, 0, 0, 10)


def test_what_is_parked_counts_if_most_of_it_is_of_use():
    prefixes, tokens = Prefixes(500, 3), np.arange(200)
    parked = entered(prefixes, tokens, 200, rests=True)
    prefixes.park(parked, np.ones(7, np.uint8))
    assert prefixes.match(tokens) == prefixes.match(np.append(tokens, 7)) == Match(parked, 0, 0, 200)
    assert prefixes.match(tokens[:100]) == Match(parked, 0, 0, 100)
    assert prefixes.match(tokens[:99]) == NOTHING
    there = entered(prefixes, tokens[:170], 170, rests=True)
    assert prefixes.match(tokens) == Match(there, 0, 0, 170)
    prefixes.forget(parked)
    assert (parked.n, prefixes.parked) == (0, [])


def test_the_oldest_goes_first_unless_others_hold_all_of_one():
    prefixes = Prefixes(100, 4)
    a, b = entered(prefixes, np.arange(10), 10), entered(prefixes, np.arange(50, 60), 10)
    assert prefixes.droppable() is None
    for held in (a, b):
        prefixes.rest(held)
    assert prefixes.droppable() is a
    prefixes.share(entered(prefixes, np.arange(50, 70)), Match(b, 0, 0, 10))
    assert prefixes.droppable() is b
    live = prefixes.is_live()
    assert [int(live[held.cells].sum()) for held in (a, b)] == [0, 10]
    assert (prefixes.own(a), prefixes.own(b)) == (10, 0)
    assert prefixes.droppable({b}) is a


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 70), st.integers(0, 70), st.integers(2 * GRAM, 150), st.integers(0, 2**32 - 1))
def test_a_run_is_found_wherever_it_stands(theirs, ours, n, seed):
    rng = np.random.default_rng(seed)
    run = rng.integers(0, 1000, n)
    around = [rng.integers(1000 * k, 1000 * k + 1000, size) for k, size in enumerate((theirs, ours), 1)]
    prefixes = Prefixes(1000, 3)
    held = entered(prefixes, np.concatenate([around[0], run, [5000]]))
    held.start = 70
    tokens = np.concatenate([around[1], run, [6000]])
    found = prefixes.segment(tokens, 2 * GRAM, 140)
    assert found == (held, theirs, ours, n)
    assert found.start == 70 + theirs - ours
    for other in ((tokens, 2 * GRAM, found.start - 1), (tokens, n + 1, 140), (np.zeros(500, np.int32), GRAM, 140)):
        assert prefixes.segment(*other) == NOTHING
    prefixes.extend(held, theirs + n)
    mine = entered(prefixes, tokens, ours + 4)
    prefixes.share(mine, found)
    assert (mine.cells[ours + 4 :] == held.cells[theirs + 4 : theirs + n]).all()
    with pytest.raises(SwarmKVError):
        prefixes.share(entered(prefixes, tokens), found._replace(ours=ours + 1))
