"""Context: positions, chunks, sequences, and failures that leave everything as it was."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import load_shape

import swarmkv_lab as lab


@pytest.mark.parametrize("n_batch", [1, 7, 300])
def test_n_batch_smaller_than_the_document(twin, document, n_batch):
    with twin.context(512, n_batch=n_batch) as ctx, twin.context(512) as whole:
        ctx.decode(document)
        whole.decode(document)
        assert ctx.n_past() == len(document)
        np.testing.assert_allclose(ctx.logits(), whole.logits(), atol=5e-3)


@pytest.mark.parametrize(("n_tokens", "n_batch"), [(256, 64), (800, 512), (1500, 64)])
def test_a_shared_window_leaves_room_for_those_who_share_it(tmp_path, rng, n_tokens, n_batch):
    """llama.cpp never reuses a cell of two sequences: a windowed cache that was full when it was shared had no cell.

    Freeing what the window has passed moves cells, and so the last bits: the same to the bit with swa_full=True alone.
    """
    tokens = rng.integers(0, 256, n_tokens, dtype=np.int32)
    with load_shape("sliding window", tmp_path) as model, model.context(4096, n_seq_max=4, n_batch=n_batch) as ctx:
        ctx.decode(tokens)
        before = ctx.logits()
        ctx.share(0, 1)
        ctx.share(0, 2)
        ctx.decode_many({branch: np.tile(tokens[:64], 4) for branch in (1, 2)})
        ctx.share(1, 3)
        ctx.decode(tokens[:100], 3)
        for branch in (3, 1, 2):
            ctx.clear(branch)
        np.testing.assert_array_equal(ctx.logits(), before)
        ctx.decode(tokens[:100])
        expected = ctx.logits()
    with load_shape("sliding window", tmp_path) as model, model.context(4096, n_batch=n_batch) as ctx:
        ctx.decode(tokens)
        ctx.decode(tokens[:100])
        np.testing.assert_allclose(ctx.logits(), expected, atol=0.02)


@pytest.mark.parametrize("n_batch", [1, 3])
def test_more_sequences_than_a_batch_holds(twin, document, n_batch):
    """llama.cpp plans a row of logits for each sequence; with fewer rows than sequences it aborted the process."""
    with twin.context(8, n_seq_max=8, n_batch=n_batch) as ctx:
        ctx.decode_many({seq_id: document[:5] for seq_id in range(8)})
        rows = [ctx.logits(seq_id) for seq_id in range(8)]
        np.testing.assert_allclose(rows, [rows[0]] * 8, atol=5e-3)


def test_share_moves_no_cells_removes_what_was_there_and_clear_leaves_the_others(twin, document, question):
    with twin.context(512, n_seq_max=4) as ctx:  # 300 tokens twice would not fit
        ctx.decode(document, 0)
        ctx.decode(np.tile(question, 20), 1)
        for branch in (1, 2, 3):
            ctx.share(0, branch)
            ctx.decode(question, branch)
        np.testing.assert_allclose(ctx.logits(1), ctx.logits(2), atol=5e-3)
        ctx.clear(2)
        assert [ctx.n_past(seq_id) for seq_id in range(4)] == [300, 309, 0, 309]


def test_logits_are_kept_apart_by_sequence_and_are_copies(twin, document, question):
    with twin.context(512, n_seq_max=2) as ctx:
        ctx.decode(document, 0)
        first = ctx.logits(0)
        ctx.decode(question, 1)
        ctx.logits(0)[:] = 0
        np.testing.assert_array_equal(ctx.logits(0), first)
        assert np.abs(ctx.logits(1) - first).max() > 0


def test_generation_is_greedy_unless_told_otherwise(twin, document):
    with twin.context(512) as ctx:
        ctx.decode(document)
        best = int(ctx.logits().argmax())
        tokens = list(ctx.stream(5))
        assert tokens[0] == best
        assert len(tokens) == 5
        assert ctx.n_past() == 304  # the last token was yielded, not decoded
        with pytest.raises(lab.SwarmKVError):
            next(ctx.stream(1))


def test_a_decode_that_fails_half_way_is_rolled_back(twin, document, question):
    with twin.context(512, n_seq_max=2, n_batch=64) as ctx:
        ctx.decode(document, 0)
        with pytest.raises(lab.DecodeError, match="1"):
            ctx.decode(np.tile(document, 2)[:400], 1)  # 300 + 400 cells; the first chunks fit
        assert (ctx.n_past(0), ctx.n_past(1)) == (300, 0)
        ctx.decode(question, 1)


def test_closed_things_say_so(twin, document):
    ctx = twin.context(256)
    ctx.close()
    ctx.close()
    for call in (ctx.n_past, ctx.logits, ctx.clear, lambda: ctx.decode(document)):
        with pytest.raises(lab.SwarmKVError):
            call()


def test_closing_in_any_order_and_at_exit(twin):
    program = """
import sys, swarmkv_lab as lab
from pathlib import Path
model = lab.load_model(sys.argv[1]); a, b, c = (model.context(256) for _ in range(3))
a.close(); model.close(); a.close(); b.close(); model.close()
model = lab.load_model(sys.argv[1]); left_open = model.context(256); left_open.decode([1, 2, 3])
cycle = [lab.load_model(sys.argv[1])]; cycle.append(cycle); cycle.append(cycle[0].context(256)); del cycle
print("alive")
"""
    run = subprocess.run([sys.executable, "-c", program, str(twin.path)], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "alive", "")


@pytest.mark.parametrize("per_context", [False, True])
def test_two_threads_in_one_context_through_the_guard(twin, question, per_context, all_cores):
    """200 calls a thread on one context: as ctypes releases the GIL, without the guard this aborts the process."""
    with lab.load_model(twin.path, n_gpu_layers=0, guard_per_context=per_context) as model:
        with model.context(512, n_threads=1) as alone:
            expected = []
            for i in range(200):
                alone.clear()
                alone.decode(question[: 1 + i % 9])
                expected.append(alone.logits())
        wrong = []
        with model.context(512, n_seq_max=2, n_threads=1) as ctx:

            def work(seq_id):
                for i in range(200):
                    with ctx.guard:
                        ctx.clear(seq_id)
                        ctx.decode(question[: 1 + i % 9], seq_id)
                    if not np.array_equal(ctx.logits(seq_id), expected[i]):
                        wrong.append((seq_id, i))

            threads = [threading.Thread(target=work, args=(seq_id,)) for seq_id in (0, 1)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
        assert wrong == []


def test_a_window_goes_back_as_far_as_it_is_whole(tmp_path, document):
    """After a share only the window is left: one token fewer still has all that it looks at, two fewer do not."""
    with load_shape("sliding window", tmp_path) as model, model.context(1024, n_seq_max=2) as ctx:
        ctx.decode(document)
        ctx.share(0, 1)
        ctx.truncate(len(document) - 1, 1)
        ctx.decode(document[:7], 1)
        with model.context(1024, n_seq_max=2) as fresh:
            fresh.decode(document[:-1])
            fresh.decode(document[:7])
            np.testing.assert_allclose(ctx.logits(1), fresh.logits(), atol=1e-5)
        ctx.clear(1)
        ctx.share(0, 1)
        with pytest.raises(lab.SwarmKVError, match="298"):
            ctx.truncate(len(document) - 2, 1)
        assert ctx.n_past(1) == 0
