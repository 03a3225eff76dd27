"""KVSnapshot: bit-exact, sized to the byte, and refused wherever it does not belong."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import SHAPES, load_shape

import swarmkv_lab as lab
from swarmkv_lab.snapshot.snapshot import KVIdentity

KV_TYPES = ["f32", "f16", "bf16", "q8_0", ("f16", "q8_0"), ("q8_0", "f16")]


def uninterrupted(model, document, question, **settings):
    with model.context(1024, **settings) as ctx:
        ctx.decode(document)
        snapshot = lab.KVSnapshot.capture(ctx, document)
        ctx.decode(question)
        return snapshot, ctx.logits()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flash_attn", [False, True])
def test_restored_logits_are_bit_identical(shape, flash_attn, document, question, tmp_path):
    with load_shape(shape, tmp_path) as model:
        snapshot, expected = uninterrupted(model, document, question, flash_attn=flash_attn)
        with model.context(1024, n_seq_max=3, flash_attn=flash_attn) as ctx:
            for seq_id in (2, 0):
                snapshot.restore(ctx, seq_id)
                assert ctx.n_past(seq_id) == len(document)
                ctx.decode(question, seq_id)
                np.testing.assert_array_equal(ctx.logits(seq_id), expected)
                ctx.clear(seq_id)


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_every_kv_type_restores_exactly_and_has_the_predicted_size(document, question, kv_type, tmp_path):
    with load_shape("wide heads", tmp_path) as model:
        snapshot, expected = uninterrupted(model, document, question, kv_type=kv_type)
        assert snapshot.nbytes == model.geometry.snapshot_bytes(len(document), kv_type)
        with model.context(512, kv_type=kv_type) as ctx:
            snapshot.restore(ctx)
            ctx.decode(question)
            np.testing.assert_array_equal(ctx.logits(), expected)


def test_windowed_layers_that_keep_everything_write_everything(document, question, tmp_path):
    with load_shape("sliding window", tmp_path) as model:
        snapshot, expected = uninterrupted(model, document, question, swa_full=True)
        assert (snapshot.state().positions_of(0) == range(len(document))).all()
        snapshot.save(tmp_path / "doc")
        loaded = lab.KVSnapshot.load(tmp_path / "doc", model)
        with model.context(1024, swa_full=True) as ctx:
            loaded.restore(ctx)
            ctx.decode(question)
            np.testing.assert_array_equal(ctx.logits(), expected)
        with model.context(1024) as ctx, pytest.raises(lab.SnapshotMismatchError, match="swa_full True, the context"):
            loaded.restore(ctx)


def test_restore_replaces_what_a_sequence_held(twin, document, question):
    snapshot, expected = uninterrupted(twin, document, question)
    with twin.context(512) as ctx:
        for _ in range(3):
            snapshot.restore(ctx)
            ctx.decode(question)
            np.testing.assert_array_equal(ctx.logits(), expected)


def test_the_buffer_is_read_only_and_shared(twin, document):
    with twin.context(512) as ctx:
        ctx.decode(document)
        snapshot = lab.KVSnapshot.capture(ctx, document)
    with pytest.raises(ValueError, match="read-only"):
        snapshot.data[0] = 1
    assert not np.shares_memory(snapshot.copy().data, snapshot.data)
    np.testing.assert_array_equal(snapshot.copy().data, snapshot.data)


def test_capture_wants_exactly_the_tokens_that_were_decoded(twin, document):
    with twin.context(512) as ctx:
        ctx.decode(document)
        with pytest.raises(lab.SwarmKVError, match="holds 300 tokens and 299 were named"):
            lab.KVSnapshot.capture(ctx, document[:-1])


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"kv_type": "q8_0"}, r"kv_type \('f16', 'f16'\), the context has \('q8_0', 'q8_0'\)"),
        ({"flash_attn": True}, "flash_attn False, the context has True"),
        ({"n_seq_max": 2, "kv_unified": False}, "n_stream 1, the context has 2"),
    ],
)
def test_another_setting_is_named_before_a_byte_is_read(document, question, settings, difference, tmp_path):
    with load_shape("wide heads", tmp_path) as model:
        snapshot, _ = uninterrupted(model, document, question)
        with model.context(1024, **settings) as ctx:
            ctx.decode(question)
            with pytest.raises(lab.SnapshotMismatchError, match=difference):
                snapshot.restore(ctx)
            assert ctx.n_past() == len(question)  # untouched


def test_another_model_of_the_same_shape_is_refused(twin, document, question, tmp_path):
    snapshot, _ = uninterrupted(twin, document, question)
    data = bytearray(twin.path.read_bytes())
    data[-1] ^= 1  # one bit of one weight
    (tmp_path / "other.gguf").write_bytes(data)
    with lab.load_model(tmp_path / "other.gguf") as other:
        ctx = other.context(512)
        with pytest.raises(lab.SnapshotMismatchError, match="model"):
            snapshot.restore(ctx)


def test_another_state_version_is_refused(twin, document, question):
    snapshot, _ = uninterrupted(twin, document, question)
    old = lab.KVSnapshot(snapshot.data, snapshot.tokens, replace(snapshot.identity, state_version=1))
    with twin.context(512) as ctx, pytest.raises(lab.SnapshotMismatchError, match="state_version 1"):
        old.restore(ctx)


def test_a_context_too_small_is_refused_with_both_numbers(twin, document, question):
    snapshot, _ = uninterrupted(twin, document, question)
    with twin.context(256) as ctx, pytest.raises(lab.ContextBudgetError, match="300 .*256"):
        snapshot.restore(ctx)


@pytest.mark.parametrize("keep", [0, 1, 17, 4000])
def test_truncated_bytes_are_refused_and_leave_the_sequence_empty(twin, document, question, keep):
    snapshot, _ = uninterrupted(twin, document, question)
    short = lab.KVSnapshot(snapshot.data[:keep].copy(), snapshot.tokens, snapshot.identity)
    with twin.context(512) as ctx:
        with pytest.raises(lab.SnapshotCorruptError, match=f"the state has {keep:,} bytes"):
            short.restore(ctx)
        with pytest.raises(lab.SnapshotCorruptError, match="accepted 0 of"):  # and what llama.cpp says of them
            ctx.set_state(short.data)
        assert ctx.n_past() == 0
        ctx.decode(question)  # the context is as good as new


def test_no_free_cells_is_an_error_too(twin, document, question):
    snapshot, _ = uninterrupted(twin, document, question)
    with twin.context(512, n_seq_max=2) as ctx:
        ctx.decode(document, 0)
        with pytest.raises(lab.SnapshotCorruptError, match="available cells"):
            snapshot.restore(ctx, 1)  # 300 + 300 cells do not fit 512
        assert (ctx.n_past(0), ctx.n_past(1)) == (300, 0)


def test_identity_tells_all_that_must_agree(twin):
    with twin.context(512) as ctx:
        assert KVIdentity.of(ctx).flash_attn is False
        assert KVIdentity.of(ctx).model == twin.content_hash
