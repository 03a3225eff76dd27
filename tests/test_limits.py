"""Limits: what is measured beside a restore; threads that reach llama.cpp, and what greedy sampling takes."""

import llama_cpp
import numpy as np
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.llama.sampling import Sampler
from swarmkv_studies.snapshot_file.limits import _pieces


def test_threads_of_one_token_and_of_many_reach_llama_cpp(twin):
    with twin.context(256, n_threads=1, n_threads_batch=2) as ctx:
        assert llama_cpp.llama_n_threads(ctx.handle) == 1
        assert llama_cpp.llama_n_threads_batch(ctx.handle) == 2
    with twin.context(256, n_threads=2) as ctx:
        assert llama_cpp.llama_n_threads_batch(ctx.handle) == 2


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


def test_greedy_takes_the_first_of_the_likeliest_and_no_damaged_row():
    logits = np.array([0, 3, -np.inf, 3], np.float32)
    assert Sampler().sample(logits) == 1
    for damaged in (np.full(4, -np.inf), np.array([0, np.nan, 3, 1])):
        with pytest.raises(lab.SwarmKVError):
            Sampler().sample(damaged.astype(np.float32))
