"""KVSnapshot: bit-exact, sized to the byte, and refused wherever it does not belong."""

import numpy as np
import pytest
from conftest import load_shape

import swarmkv_lab as lab

KV_TYPES = ["f32", "f16", "bf16", "q8_0", ("f16", "q8_0"), ("q8_0", "f16")]


@pytest.fixture
def snapshot(twin, document):
    return lab.prefill(twin, document, progress=False)


@pytest.mark.parametrize(("kv_type", "flash_attn"), [("f16", True), *((kv_type, "auto") for kv_type in KV_TYPES)])
def test_every_kv_type_restores_exactly_and_has_the_predicted_size(document, question, kv_type, flash_attn, tmp_path):
    how = {"kv_type": kv_type, "flash_attn": flash_attn}
    with load_shape("wide heads", tmp_path) as model:
        with model.context(1024, **how) as ctx:
            ctx.decode(document)
            snapshot = lab.KVSnapshot.capture(ctx, document)
            ctx.decode(question)
            expected = ctx.logits()
        assert snapshot.nbytes == model.geometry.snapshot_bytes(len(document), kv_type)
        with model.context(512, n_seq_max=3, **how) as ctx:
            for seq_id in (2, 0, 0):  # also over what it held
                snapshot.restore(ctx, seq_id)
                assert ctx.n_past(seq_id) == len(document)
                ctx.decode(question, seq_id)
                np.testing.assert_array_equal(ctx.logits(seq_id), expected)
                ctx.clear(2)


def test_capture_wants_exactly_the_tokens_that_were_decoded(twin, document):
    with twin.context(512) as ctx:
        ctx.decode(document)
        with pytest.raises(lab.SwarmKVError, match=r"300 .* 299"):
            lab.KVSnapshot.capture(ctx, document[:-1])


@pytest.mark.parametrize(("settings", "difference"), [
    ({"kv_type": "q8_0"}, "kv_type"), ({"flash_attn": True}, "flash_attn"), ({"swa_full": True}, "swa_full"),
])  # fmt: skip
def test_another_setting_is_named_before_a_byte_is_read(document, question, settings, difference, tmp_path):
    with load_shape("sliding window" if "swa_full" in settings else "wide heads", tmp_path) as model:
        snapshot = lab.prefill(model, document, progress=False)
        with model.context(1024, **settings) as ctx:
            ctx.decode(question)
            with pytest.raises(lab.SnapshotMismatchError, match=difference):
                snapshot.restore(ctx)
            assert ctx.n_past() == len(question)  # untouched


def test_a_context_too_small_is_refused_with_both_numbers(twin, snapshot):
    with twin.context(256) as ctx, pytest.raises(lab.ContextBudgetError, match=r"300 .*256"):
        snapshot.restore(ctx)


@pytest.mark.parametrize("keep", [0, 1, 17, 4000])
def test_truncated_bytes_are_refused_and_leave_the_sequence_empty(twin, snapshot, question, keep):
    short = lab.KVSnapshot(snapshot.data[:keep].copy(), snapshot.tokens, snapshot.identity)
    with twin.context(512) as ctx:
        with pytest.raises(lab.SnapshotCorruptError, match=f"{keep:,}"):
            short.restore(ctx)
        with pytest.raises(lab.SnapshotCorruptError, match="0 of"):  # and what llama.cpp says of them
            ctx.set_state(short.data)
        assert ctx.n_past() == 0
        ctx.decode(question)  # the context is as good as new


def test_no_free_cells_is_an_error_too(twin, document, snapshot):
    with twin.context(512, n_seq_max=2) as ctx:
        ctx.decode(document, 0)
        with pytest.raises(lab.SnapshotCorruptError):
            snapshot.restore(ctx, 1)  # 300 + 300 cells do not fit 512
        assert (ctx.n_past(0), ctx.n_past(1)) == (300, 0)


def test_an_agents_state_is_fanned_out_with_the_same_calls(twin, document):
    """Prefix, question and answer so far are a prefix again."""
    with twin.context(512) as ctx:
        ctx.decode(document)
        ctx.decode([1, 2, 3])
        answer = list(ctx.stream(4))
        ctx.decode(answer[-1:])  # the last token yielded is not yet decoded
        so_far = np.concatenate([document, [1, 2, 3], answer]).astype(np.int32)
        snapshot = lab.KVSnapshot.capture(ctx, so_far)
    forks = lab.fan_out(twin, snapshot, [[7], [8]], "shared", max_tokens=3)
    naive = lab.fan_out(twin, so_far, [[7], [8]], "naive", max_tokens=3)
    assert forks.compare(naive).same_tokens.all()
