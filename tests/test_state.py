"""SequenceState: the bytes of a snapshot are what was decoded, in every KV type and layout, and nothing else passes."""

import numpy as np
import pandas as pd
import pytest
from conftest import SHAPES, load_shape

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.sizing.geometry import KV_TYPES, is_quantized


def captured(model, document, **settings):
    with model.context(512, **settings) as ctx:
        ctx.decode(document)
        return ctx.get_state()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flash_attn", [False, True])
def test_every_byte_belongs_to_a_part(shape, flash_attn, document, tmp_path):
    with load_shape(shape, tmp_path) as model:
        data = captured(model, document, flash_attn=flash_attn)
        state = lab.SequenceState(data, model.geometry)
    parts = state.parts
    if not flash_attn:
        predicted = lab.SequenceState.predicted(model.geometry, 300).parts
        pd.testing.assert_frame_equal(parts, predicted)
    assert parts.offset.iloc[0] == 0
    assert (parts.offset + parts.bytes == [*parts.offset[1:], len(data)]).all()
    assert list(state.positions) == list(range(300))
    for layer, heads in enumerate(model.geometry.heads):
        swa = model.geometry.swa[layer] if model.geometry.swa else False
        n = model.geometry.window if swa else 300
        assert state.keys(layer).shape == (n, heads, model.geometry.head_dim_k)
        if model.geometry.head_dim_v:
            assert state.values(layer).shape == (n, heads, model.geometry.head_dim_v)


def test_values_are_the_same_transposed_or_not(twin, document):
    one, other = (
        lab.SequenceState(captured(twin, document, flash_attn=flash), twin.geometry) for flash in (False, True)
    )
    assert one.parts.set_index("part").value["values transposed"] == 1
    assert other.parts.set_index("part").value["values transposed"] == 0
    # The first layer's keys and values are not downstream of any attention, so the kernels do not matter.
    np.testing.assert_array_equal(one.values(0), other.values(0))
    np.testing.assert_array_equal(one.keys(0), other.keys(0))
    assert np.abs(one.values(0)).max() > 0


@pytest.mark.parametrize("shape", ["one layer", "keys wider than values"])
@pytest.mark.parametrize("kv_type", ["f32", "f16", "bf16"])
def test_elements_of_every_type_are_read(document, shape, kv_type, tmp_path):
    with load_shape(shape, tmp_path) as model:
        exact = lab.SequenceState(captured(model, document, kv_type="f32", flash_attn=True), model.geometry)
        state = lab.SequenceState(captured(model, document, kv_type=kv_type, flash_attn=True), model.geometry)
    for mine, theirs in ((state.keys(0), exact.keys(0)), (state.values(0), exact.values(0))):
        error = np.abs(mine - theirs).max() / np.abs(theirs).max()
        assert error < {"f32": 1e-9, "f16": 1e-3, "bf16": 1e-2}[kv_type], error


@pytest.mark.parametrize("kv_type", [kv_type for kv_type in KV_TYPES if is_quantized(kv_type)])
def test_quantized_types_have_a_structure_and_no_elements(document, kv_type, tmp_path):
    with load_shape("wide heads", tmp_path) as model:
        state = lab.SequenceState(captured(model, document, kv_type=kv_type, flash_attn=True), model.geometry)
    assert list(state.positions) == list(range(300))
    with pytest.raises(lab.SwarmKVError, match=kv_type):
        state.keys(0)


def test_keys_are_turned_to_their_positions(twin):
    """One token again and again: layer 0's keys differ by their positions alone, by as much as RoPE says."""
    data = captured(twin, np.full(200, 7, np.int32), kv_type="f32", flash_attn=True)
    keys = lab.SequenceState(data, twin.geometry).keys(0)
    turned = studies.Rope.of(twin).rotate(keys[:1], np.arange(200)[:, None])
    np.testing.assert_allclose(keys, turned, atol=1e-4 * np.abs(keys).max())
    assert np.abs(keys[0] - keys[100]).max() > 0.1 * np.abs(keys).max()


@pytest.mark.parametrize(("n", "layer"), [(300, -1), (300, 2), (0, 0)])
def test_a_layer_that_is_not_there(twin, document, n, layer):
    with twin.context(512) as ctx:
        if n:
            ctx.decode(document)
        state = lab.SequenceState(ctx.get_state(), twin.geometry)
    with pytest.raises(lab.SwarmKVError, match=rf" {layer}: .* {n} .* 2 "):
        state.keys(layer)


def field(parts, name):
    row = parts[parts.part == name].iloc[0]
    return int(row.offset), int(row.bytes)


@pytest.mark.parametrize(("name", "numbers"), [
    ("magic", "255 .* 2,937,339,096"), ("streams", "255 .* 1 "), ("values transposed", "255"),
    ("cells", "values transposed"),  # what follows 255 cells is something else
    ("layers", "255 .* 2 "), ("K of layer 0: type", "255"), ("K of layer 1: row bytes", "255 .* 64 "),
    ("V of layer 0: element bytes", "255 .* 2 "), ("V of layer 1: elements", "255 .* 32 "),
])  # fmt: skip
def test_a_field_that_was_changed(twin, document, name, numbers):
    data = captured(twin, document).copy()
    offset, size = field(lab.SequenceState(data, twin.geometry).parts, name)
    data[offset : offset + size] = 0
    data[offset] = 255
    with pytest.raises(lab.SnapshotCorruptError, match=numbers):
        lab.SequenceState(data, twin.geometry)


def test_every_length_but_the_right_one_is_refused(twin, document, rng):
    data = captured(twin, document[:20])
    for n in range(len(data)):
        with pytest.raises(lab.SnapshotCorruptError):
            lab.SequenceState(data[:n], twin.geometry)
    with pytest.raises(lab.SnapshotCorruptError, match="should end at"):
        lab.SequenceState(np.append(data, np.uint8(0)), twin.geometry)


def test_another_models_state(twin, document, tmp_path):
    data = captured(twin, document)
    with load_shape("one layer", tmp_path) as other, pytest.raises(lab.SnapshotCorruptError, match=r"is 2 .* 1 "):
        lab.SequenceState(data, other.geometry)
