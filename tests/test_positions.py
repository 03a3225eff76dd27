"""Positions: RoPE in numpy is llama.cpp's, shifts do what they say, and a wrong start is refused."""

import numpy as np
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.snapshot_and_rope import positions
from swarmkv_studies.snapshot_and_rope.positions import position_error


def test_rotation_is_relative_and_keeps_what_does_not_turn(rng):
    for pairs in ("plain", "halves"):
        rope = studies.Rope(48, 10_000.0, pairs)
        keys, query = rng.normal(size=(30, 64)), rng.normal(size=64)
        np.testing.assert_allclose(rope.rotate(keys, 777) @ rope.rotate(query, 777), keys @ query, atol=1e-12)
        np.testing.assert_array_equal(rope.rotate(keys, 5)[:, 48:], keys[:, 48:])  # only the first n_rot turn
        np.testing.assert_allclose(rope.rotate(np.eye(64)[4], rope.turn(4)), np.eye(64)[4], atol=1e-12)
        assert rope.turn(48) == np.inf


def test_rotation_by_its_definition():
    turned = [[np.cos(2), np.sin(2)], [np.cos(0.2), np.sin(0.2)]]
    plain, halves = (studies.Rope(4, 100.0, pairs) for pairs in ("plain", "halves"))
    np.testing.assert_allclose(plain.rotate(np.array([1.0, 0, 1, 0]), 2), np.ravel(turned), atol=1e-15)
    np.testing.assert_allclose(halves.rotate(np.array([1.0, 1, 0, 0]), 2), np.ravel(turned, "F"), atol=1e-15)


@pytest.mark.parametrize("delta", [1, 100, 900])
def test_llama_cpp_turns_keys_as_numpy_does(twin, document, delta):
    with twin.context(2048, kv_type="f32", flash_attn=True) as ctx:
        ctx.decode(document)
        before = lab.SequenceState(ctx.get_state(), twin.geometry)
        studies.shift(ctx, delta)
        assert ctx.n_past() == 300 + delta
        ctx.decode(document[:1])
        after = lab.SequenceState(ctx.get_state(), twin.geometry)
    assert list(after.positions[:300]) == list(range(delta, 300 + delta))
    for layer in (0, 1):
        turned = studies.Rope.of(twin).rotate(before.keys(layer), delta)
        np.testing.assert_allclose(after.keys(layer)[:300], turned, atol=1e-4 * np.abs(turned).max())
        np.testing.assert_array_equal(after.values(layer)[:300], before.values(layer))


def test_a_branch_that_starts_elsewhere_is_refused_and_nothing_is_lost(twin, document, question):
    with twin.context(512) as ctx, twin.context(512) as fresh:
        ctx.decode(document)
        for start in (-1, 0, 299, 301):
            with pytest.raises(lab.SwarmKVError, match="-1"):
                ctx.decode(question, start=start)
            assert ctx.n_past() == 300
        ctx.decode(question, start=300)
        fresh.decode(document)
        fresh.decode(question)
        np.testing.assert_array_equal(ctx.logits(), fresh.logits())


def test_moving_everything_costs_rounding_and_a_gap_costs_more(twin, document):
    frame = position_error(twin, document, gaps=[1, 300, 3000], continuation=40)
    assert list(frame.shifted) == ["nothing", *["whole prefix", "second half", "seam"] * 3]
    mean = frame.set_index(["shifted", "gap"]).kl_mean
    assert mean["whole prefix", 3000] < 1e-4 < min(mean["second half", 3000], mean["seam", 3000])


def test_a_late_branch_finds_the_keys_as_they_were(twin, document, question):
    """Its distance to them is what grows: with keys turned on by as much, the late start is a right one again."""
    with twin.context(1024, kv_type="f32", flash_attn=True) as ctx:
        ctx.decode(document)
        snapshot = lab.KVSnapshot.capture(ctx, document)
        studies.shift(ctx, 100)
        ctx.decode(question)
        right = ctx.logits()
        ctx.set_state(positions._later(snapshot, 100))
        assert ctx.n_past() == 400
        late = lab.SequenceState(ctx.get_state(), twin.geometry)
        np.testing.assert_array_equal(late.keys(1), snapshot.state().keys(1))
        np.testing.assert_array_equal(late.positions, snapshot.state().positions + 100)
        ctx.decode(question)
        assert np.abs(ctx.logits() - right).max() > 1e-3
    assert list(snapshot.state().positions) == list(range(300))  # the snapshot itself is as it was


def test_what_cannot_be_asked(twin, document):
    for change in ({"gaps": []}, {"gaps": [0]}, {"gaps": [3797]}, {"continuation": 0}, {"continuation": 299}):
        with pytest.raises(lab.SwarmKVError):
            position_error(twin, document, **change)


@pytest.mark.parametrize("kv_type", ["bf16", "q8_0"])
def test_keys_that_llama_cpp_cannot_shift(document, kv_type):
    """The next decode would end the process."""
    wide = studies.twin(lab.KVGeometry(2, 2, 32, 32, 4096))
    with lab.load_model(wide) as model, model.context(512, kv_type=(kv_type, "f16"), flash_attn=True) as ctx:
        ctx.decode(document)
        with pytest.raises(lab.SwarmKVError, match=kv_type):
            studies.shift(ctx, 3)
        ctx.decode(document[:5])


def test_refused_prints_what_was_wrong_and_fails_where_nothing_was(capsys):
    with studies.refused():
        raise lab.DecodeError("so it goes")
    assert capsys.readouterr().out == "DecodeError: so it goes\n"
    with pytest.raises(AssertionError), studies.refused():
        pass
    with pytest.raises(ZeroDivisionError), studies.refused():
        _ = 1 / 0
