"""Tuning and limits: what is measured, and what is chosen from it."""

import llama_cpp
import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.llama.sampling import Sampler
from swarmkv_studies.common.work_times import BRANCH, STEPS, time_work
from swarmkv_studies.peers import tuning
from swarmkv_studies.peers.packing import packing
from swarmkv_studies.snapshot_file import limits
from swarmkv_studies.snapshot_file.limits import _pieces, fresh_memory


def test_every_combination_is_measured_in_turns_after_a_warm_up(twin, document, monkeypatch):
    turns = []

    def timed(ctx, tokens):
        turns.append([str(ctx.flash_attn), ctx.settings.n_threads])
        return np.array([1, 10, 100]) * len(turns)

    monkeypatch.setattr(tuning, "time_work", timed)
    frame = studies.tune(twin, document, n_threads=[1, 2], repeats=3)
    asked = [[flash, threads] for flash in (False, True) for threads in (1, 2)]
    assert frame[["flash_attn", "n_threads"]].values.tolist() == asked
    assert turns == 4 * turns[:4]
    second = np.outer(range(9, 13), [1, 10, 100])  # the middle one of three turns, after the warm-up's
    np.testing.assert_allclose(frame[["prefill_ms", "branch_ms", "token_ms"]], second)
    assert set(studies.fastest_settings(frame)) == {"flash_attn", "n_threads", "n_threads_batch"}


def test_work_is_a_prefill_a_question_and_single_tokens(twin, document):
    with twin.context(512) as ctx:
        ms = time_work(ctx, document)
        assert ctx.n_past() == len(document) + BRANCH + STEPS
    assert ms.shape == (3,)
    assert (ms > 0).all()


def test_what_ends_first_is_chosen_and_threads_apart_for_one_token_and_for_many():
    frame = pd.DataFrame(
        [(False, 1, 900, 50, 10), (False, 4, 300, 40, 12), (True, 1, 800, 90, 10), (True, 4, 250, 80, 12)],
        columns=["flash_attn", "n_threads", "prefill_ms", "branch_ms", "token_ms"],
    )
    few = studies.fastest_settings(frame, n_agents=1)  # the prefill decides: 250 + 80 against 300 + 40
    many = studies.fastest_settings(frame, n_agents=8)  # the branches do
    assert few == {"flash_attn": True, "n_threads": 1, "n_threads_batch": 4}
    assert many == {"flash_attn": False, "n_threads": 1, "n_threads_batch": 4}


def test_flash_attention_is_text_where_pandas_reads_it_from_a_file():
    frame = pd.DataFrame(
        [(False, 1, 900, 50, 10), (True, 1, 700, 90, 20)],
        columns=["flash_attn", "n_threads", "prefill_ms", "branch_ms", "token_ms"],
    )
    for same in (frame, frame.astype({"flash_attn": str})):
        assert studies.fastest_settings(same, 4)["flash_attn"] is False
        assert studies.fastest_settings(same, 1, 1)["flash_attn"] is True


def test_threads_of_one_token_and_of_many_reach_llama_cpp(twin):
    with twin.context(256, n_threads=1, n_threads_batch=2) as ctx:
        assert llama_cpp.llama_n_threads(ctx.handle) == 1
        assert llama_cpp.llama_n_threads_batch(ctx.handle) == 2
    with twin.context(256, n_threads=2) as ctx:
        assert llama_cpp.llama_n_threads_batch(ctx.handle) == 2
    with pytest.raises(lab.SwarmKVError, match="n_threads_batch=0: it must be a whole number from 1"):
        twin.context(256, n_threads_batch=0)


@pytest.mark.parametrize("flash_attn", [False, True])
def test_the_pieces_are_the_whole_state_but_its_headers(twin, document, flash_attn):
    with twin.context(512, flash_attn=flash_attn) as ctx:
        ctx.decode(document)
        snapshot = lab.KVSnapshot.capture(ctx, document)
        pieces = _pieces(snapshot, twin, ctx.n_ctx)
    n_bytes = len(document) * twin.geometry.bytes_per_token()
    assert sum(piece.nbytes for _, piece in pieces) == n_bytes
    assert all(into.shape == piece.shape for into, piece in pieces)
    rows = max(len(piece) for _, piece in pieces)
    assert rows == (1 if flash_attn else 2 * 16)  # values are transposed without it: a row an element


def test_restore_is_measured_beside_copies(twin, document, monkeypatch):
    seconds = iter([9, 9, 9, 0.003, 0.001, 0.008, 0.006, 0.002, 0.004, 0.005, 0.004, 0.007])  # the warm-up comes first
    done = []

    def timed(call, number):
        done.append(call())
        return next(seconds)

    monkeypatch.setattr("swarmkv_studies.snapshot_file.limits.timeit.timeit", timed)
    measured = studies.restore_against_memcpy(twin, document, rounds=3)
    assert len(done) == 4 * 3
    assert measured["bytes"] == twin.geometry.snapshot_bytes(len(document))
    medians = {"restore_ms": 5, "memcpy_ms": 2, "pieces_ms": 7, "ratio": 2.5}
    assert {name: measured[name] for name in medians} == pytest.approx(medians)


def test_loading_is_measured_beside_reading(twin, document):
    measured = studies.load_against_read(twin, document, rounds=2)
    assert measured["bytes"] == twin.geometry.snapshot_bytes(len(document))
    assert list(measured) == ["bytes", "load_ms", "restore_ms", "read_ms", "ratio"]


def test_greedy_takes_the_first_of_the_likeliest_and_no_damaged_row():
    logits = np.array([0, 3, -np.inf, 3], np.float32)
    assert Sampler().sample(logits) == 1
    for damaged in (np.full(4, -np.inf), np.array([0, np.nan, 3, 1])):
        with pytest.raises(lab.SwarmKVError, match="the model's weights or its KV cache are damaged"):
            Sampler().sample(damaged.astype(np.float32))


def test_fresh_memory_is_timed_beside_warm():
    measured = fresh_memory(1 << 26, rounds=3)
    assert min(measured[f"{name}_ms"] for name in ("first", "again", "warm")) > 0
    if limits.resource:  # new memory is provided page by page, each time
        assert measured["warm_faults"] < min(measured["first_faults"], measured["again_faults"])
    with pytest.raises(lab.SwarmKVError, match="n_bytes"):
        fresh_memory(0)


def test_questions_are_timed_together_and_apart(twin, document, monkeypatch):
    decoded, decode = [], lab.Context.decode_many
    monkeypatch.setattr(
        lab.Context, "decode_many", lambda ctx, ids, **how: decoded.append([*ids]) or decode(ctx, ids, **how)
    )
    frame = packing(twin, document[:60], n_agents=[3], agents=[document[:5], document[5:9]], repeats=2)
    once = [[1, 2, 3], [1, 2], [3], [1], [2], [3], [1]]  # the last: one sequence
    assert decoded == [[0], *3 * once]
    assert frame.groups.to_list() == 2 * ["together", "in pairs", "one by one", "one sequence"]
    assert (frame.n_tokens == 5 + 4 + 5).all()
    assert (frame.ms > 0).all()
    with pytest.raises(lab.SwarmKVError, match="n_agents=0"):
        packing(twin, document, n_agents=[0])
