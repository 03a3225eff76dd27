"""A state prefilled with flash attention, turned for decoding without it: the bytes that llama.cpp would write."""

import numpy as np
import pytest
from conftest import SHAPES, load_shape

import swarmkv_lab as lab
from swarmkv_studies.common.twins import write_twin
from swarmkv_studies.snapshot_file.layout import other_layout, without_flash_attention


def captured(model, document, **settings):
    with model.context(512, **settings) as ctx:
        ctx.decode(document)
        return lab.KVSnapshot.capture(ctx, document)


@pytest.mark.parametrize("kv_type", ["f16", "f32", "bf16", ("f32", "f16"), ("q8_0", "f32")])
def test_turned_bytes_are_those_that_llama_cpp_writes(document, question, kv_type, tmp_path):
    """A layer that comes after no attention has the same keys and values with every kernel: all bytes are the same."""
    with lab.load_model(write_twin(tmp_path / "twin.gguf", lab.KVGeometry(1, 3, 64, 96, 4096))) as model:
        for n in (1, 15, 16, 300):
            on, off = (captured(model, document[:n], kv_type=kv_type, flash_attn=flash) for flash in (True, False))
            turned = without_flash_attention(on)
            np.testing.assert_array_equal(turned.data, off.data)
            np.testing.assert_array_equal(other_layout(off.state()), on.data)
        rows = []
        for snapshot in (turned, off):
            with model.context(512, kv_type=kv_type, flash_attn=False) as ctx:
                snapshot.restore(ctx)
                ctx.decode(question)
                rows.append(ctx.logits())
        np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("swa_full", [False, True])
def test_turned_twice_it_is_the_original(shape, swa_full, document, question, tmp_path):
    with load_shape(shape, tmp_path) as model:
        on, off = (captured(model, document, flash_attn=flash, swa_full=swa_full) for flash in (True, False))
        turned = without_flash_attention(on)
        assert turned.identity == off.identity
        assert turned.state().parts.equals(off.state().parts)  # every offset, size and number
        np.testing.assert_array_equal(other_layout(turned.state()), on.data)
        for layer in range(model.geometry.n_layer) if model.geometry.head_dim_v else ():
            np.testing.assert_array_equal(turned.state().values(layer), on.state().values(layer))
        rows = []
        for snapshot in (turned, on):
            with model.context(512, flash_attn=snapshot.identity.flash_attn, swa_full=swa_full) as ctx:
                snapshot.restore(ctx)
                ctx.decode(question)
                rows.append(ctx.logits())
    assert np.abs(rows[0] - rows[1]).max() < 0.05


def test_values_that_cannot_be_turned(document, tmp_path):
    with load_shape("one layer", tmp_path) as model:
        for kv_type in ("q8_0", "q4_0"):
            with pytest.raises(lab.SwarmKVError, match="V of layer 0 is quantized"):
                without_flash_attention(captured(model, document, kv_type=("f16", kv_type)))
        with pytest.raises(lab.SwarmKVError, match="without flash attention"):
            without_flash_attention(captured(model, document))
