"""What sequences hold, as the server keeps it: against plain Python, on random calls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmkv_lab.errors import ContextBudgetError
from swarmkv_lab.serve.prefixes import GRAM, NOTHING, Prefixes, Source, common

LETTERS = st.lists(st.integers(0, 2), max_size=12).map(lambda ids: np.array(ids, np.int32))


@given(LETTERS, LETTERS)
def test_common_is_what_two_begin_with_alike(a, b):
    n = common(a, b)
    assert (a[:n] == b[:n]).all()
    assert n == min(len(a), len(b)) or a[n] != b[n]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans())
def test_cells_are_counted_whatever_happens(data, goes_back):
    prefixes = Prefixes(40, 5, goes_back)
    for _ in range(data.draw(st.integers(1, 30))):
        live = [i for i, held in prefixes.entries.items() if held.live]
        step = data.draw(st.sampled_from(["take", "extend", "append", "rest", "drop"]))
        if step == "take" and len(prefixes.entries) < 5:
            tokens = data.draw(LETTERS)
            source = prefixes.match(tokens)
            if source.n:
                held = prefixes.entries[source.seq_id]
                assert (held.tokens[: source.n] == tokens[: source.n]).all()
                assert held.live or held.n >= source.n
                assert goes_back or held.n <= source.n
            ready = source.n and prefixes.entries[source.seq_id].n >= source.n
            prefixes.take(tokens, source if ready else NOTHING)
        elif step == "extend" and live:
            seq_id = data.draw(st.sampled_from(live))
            missing = len(prefixes.entries[seq_id].tokens) - prefixes.entries[seq_id].n
            n = data.draw(st.integers(0, missing))
            if n > prefixes.free:
                with pytest.raises(ContextBudgetError):
                    prefixes.extend(seq_id, n)
            else:
                prefixes.extend(seq_id, n)
        elif step == "append" and live:
            prefixes.append(live[0], 1)
        elif step == "rest" and live:
            prefixes.rest(data.draw(st.sampled_from(live)))
        elif step == "drop" and (seq_id := prefixes.droppable()) is not None:
            assert not prefixes.entries[seq_id].live
            prefixes.drop(seq_id)
        held = [set(entry.cells.tolist()) for entry in prefixes.entries.values()]
        assert prefixes.free == 40 - len(set().union(*held))
        assert all(len(cells) == entry.n for cells, entry in zip(held, prefixes.entries.values(), strict=True))
        for i, entry in prefixes.entries.items():  # cells are shared for the same tokens at the same places alone
            for other in prefixes.entries.values():
                both = np.flatnonzero(np.isin(entry.cells, other.cells))
                assert (entry.cells[both] == other.cells[both]).all(), i
                assert (entry.tokens[both] == other.tokens[both]).all()
    for seq_id in list(prefixes.entries):
        prefixes.drop(seq_id)
    assert prefixes.free == 40


def test_what_is_at_work_is_waited_for():
    prefixes = Prefixes(100, 3)
    tokens = np.arange(20, dtype=np.int32)
    seq_id = prefixes.take(tokens)
    assert prefixes.match(tokens) == Source(seq_id, 20)
    prefixes.extend(seq_id, 8)
    other = np.append(tokens[:12], [50])
    assert prefixes.match(other) == Source(seq_id, 12)
    prefixes.rest(seq_id)
    assert prefixes.match(other) == Source(seq_id, 8)


def test_without_going_back_only_ends_count():
    prefixes = Prefixes(100, 3, goes_back=False)
    tokens = np.arange(20, dtype=np.int32)
    seq_id = prefixes.take(tokens)
    prefixes.extend(seq_id, 10)
    assert prefixes.match(tokens[:15]) == Source(seq_id, 15)
    assert prefixes.match(tokens[:9]) == NOTHING
    prefixes.rest(seq_id)
    assert prefixes.match(tokens[:15]) == Source(seq_id, 10)


def test_the_oldest_goes_first_unless_others_hold_all_of_one():
    prefixes = Prefixes(100, 4)
    a, b = prefixes.take(np.arange(10, dtype=np.int32)), prefixes.take(np.arange(50, 60, dtype=np.int32))
    assert prefixes.droppable() is None
    for seq_id in (a, b):
        prefixes.extend(seq_id, 10)
        prefixes.rest(seq_id)
    assert prefixes.droppable() == a
    prefixes.take(np.arange(50, 70, dtype=np.int32), Source(b, 10))
    assert prefixes.droppable() == b
    live = prefixes.is_live()
    assert [int(live[prefixes.entries[i].cells].sum()) for i in (a, b)] == [0, 10]
    assert (prefixes.own(a), prefixes.own(b)) == (10, 0)
    assert prefixes.droppable({b}) == a


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 70), st.integers(0, 70), st.integers(2 * GRAM, 150), st.integers(0, 2**32 - 1))
def test_a_run_is_found_wherever_it_stands(theirs, ours, n, seed):
    rng = np.random.default_rng(seed)
    run = rng.integers(0, 1000, n, dtype=np.int32)
    around = [rng.integers(1000 * k, 1000 * k + 1000, size, dtype=np.int32) for k, size in enumerate((theirs, ours), 1)]
    prefixes = Prefixes(1000, 3)
    seq_id = prefixes.take(np.concatenate([around[0], run, [5000]]).astype(np.int32))
    tokens = np.concatenate([around[1], run, [6000]]).astype(np.int32)
    found = prefixes.segment(tokens, 2 * GRAM)
    assert found == (seq_id, theirs, ours, n)
    prefixes.extend(seq_id, theirs + n)
    other = prefixes.take(tokens)
    prefixes.extend(other, ours + 4)
    assert prefixes.splice(other, found) == n - 4
    held, mine = prefixes.entries[seq_id], prefixes.entries[other]
    assert (held.cells[theirs + 4 : theirs + n] == mine.cells[ours + 4 :]).all()
    assert prefixes.segment(np.zeros(500, np.int32), GRAM) is None
