"""Layers with a sliding window: with swa_full every strategy is naive's, bit for bit, and every cell is kept."""

import numpy as np
import pytest
from conftest import SHAPES, load_shape

import swarmkv_lab as lab

EXACT = ["swarmkv", "pooled", "shared"]
WINDOW = SHAPES["sliding window"].window
DEPTHS = [35, 43, 51, 63, 76]  # at each an agent's bits moved while states began at the window


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    with load_shape("sliding window", tmp_path_factory.mktemp("windowed")) as model:
        yield model


@pytest.fixture
def long(rng):
    return rng.integers(0, 256, 4000, dtype=np.int32)


@pytest.fixture
def agents(long, rng):  # drawn after the document, as when the depths were found
    return {f"a{n}": rng.integers(0, 256, n, dtype=np.int32) for n in (5, 12, 40)}


def test_with_swa_full_every_strategy_is_naives_at_depths_that_the_softmax_groups_otherwise(windowed, long, agents):
    for depth in DEPTHS:
        runs = {name: lab.fan_out(windowed, long[:depth], agents, name, max_tokens=3, swa_full=True) for name in EXACT}
        naive = lab.fan_out(windowed, long[:depth], agents, "naive", max_tokens=3, swa_full=True)
        for name, run in runs.items():
            exactness = run.compare(naive)
            assert exactness.max_abs_logit_diff.max() == 0, (depth, name)
            assert exactness.same_tokens.all(), (depth, name)


@pytest.mark.parametrize("n", [WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 7])
@pytest.mark.parametrize("flash_attn", [False, True])
def test_with_swa_full_a_state_has_every_cell_in_its_place(windowed, long, n, flash_attn):
    how = {"swa_full": True, "flash_attn": flash_attn, "n_seq_max": 2}
    with windowed.context(1024, **how) as ctx:
        ctx.decode(long[:n], seq_id=1)
        snapshot = lab.KVSnapshot.capture(ctx, long[:n], seq_id=1)
        state = snapshot.state()
        snapshot.restore(ctx, seq_id=1)
        np.testing.assert_array_equal(ctx.get_state(1), snapshot.data)
    assert state.seq_id == 1
    assert snapshot.nbytes == windowed.geometry.snapshot_bytes(n, swa_full=True)
    for cells, _ in state._caches:
        np.testing.assert_array_equal(cells[:, 0], np.arange(n))


def test_a_state_that_would_miss_cells_is_refused(windowed, long):
    with windowed.context(512, swa_full=True, n_seq_max=2) as ctx:
        ctx.decode(long[:WINDOW])
        ctx.share(0, 1)
        lab.KVSnapshot.capture(ctx, long[:WINDOW])  # the window has passed nothing yet
        ctx.decode(long[WINDOW : WINDOW + 1])
        for refused in (ctx.get_state, ctx.state_bytes, lambda: lab.KVSnapshot.capture(ctx, long[: WINDOW + 1])):
            with pytest.raises(lab.SwarmKVError, match=r"33 .* 32"):
                refused()
        ctx.clear(1)
        assert len(lab.SequenceState(ctx.get_state(), windowed.geometry).keys(0)) == WINDOW + 1
