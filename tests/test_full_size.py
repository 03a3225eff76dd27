"""Full-size twins: all sizes of a model, random weights, and the model's cache and work."""

import numpy as np
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.sizing.geometry import KVGeometry
from swarmkv_lab.sizing.gguf_header import read_gguf
from swarmkv_studies.common.full_size import FULL_SIZES, write_full_size
from swarmkv_studies.common.twins import Sizes

GEOMETRY = KVGeometry(2, 2, 32, 32, 4096)


SIZES = Sizes(n_embd=128, n_ff=96, n_vocab=500, n_head=4)


@pytest.mark.parametrize("name", FULL_SIZES)
def test_its_sizes_have_as_many_parameters_as_the_model(name):
    n_embd, n_ff, n_vocab, n_head, tied = FULL_SIZES[name]
    shape, known = lab.geometry(name), lab.catalogue().loc[name]
    attention = 2 * n_embd * n_head * shape.head_dim_k + 2 * n_embd * shape.n_head_kv * shape.head_dim_k
    total = shape.n_layer * (attention + 3 * n_embd * n_ff) + n_vocab * n_embd * (1 if tied else 2)
    assert n_head == known.n_head
    assert total / 1e9 == pytest.approx(known.billions, rel=0.005)


@pytest.mark.parametrize("tied", [False, True])
def test_it_has_all_sizes_and_no_two_rows_alike(tmp_path, tied):
    path = write_full_size(tmp_path / "full.gguf", GEOMETRY, SIZES._replace(tied=tied))
    tensors = read_gguf(path)[1]
    shapes = {name: tensors[f"{name}.weight"] for name in ("token_embd", "blk.1.attn_q", "blk.1.attn_k")}
    assert shapes == {"token_embd": (128, 500), "blk.1.attn_q": (128, 128), "blk.1.attn_k": (128, 64)}
    assert ("output.weight" in tensors) != tied
    with lab.load_model(path) as model, model.context(64, n_seq_max=2) as ctx:
        ctx.decode([1, 2, 3])
        ctx.decode([4, 2, 3], 1)
        logits = ctx.logits()
        assert len(np.unique(logits)) == 500
        assert 0.3 < logits.std() < 3
        assert np.abs(logits - ctx.logits(1)).max() > 0.01  # they depend on the first token
        assert ctx.state_bytes() == GEOMETRY.snapshot_bytes(3)


def test_it_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path))
    monkeypatch.setitem(FULL_SIZES, "smollm2-135m", Sizes(n_embd=64, n_ff=64, n_head=9))
    path = studies.full_size_twin("smollm2-135m")
    written = path.stat().st_mtime_ns
    assert studies.full_size_twin("smollm2-135m") == path
    assert path.stat().st_mtime_ns == written
    assert lab.geometry(path) == lab.geometry("smollm2-135m")


def test_a_model_whose_sizes_are_not_known():
    with pytest.raises(lab.SwarmKVError, match=r"qwen2\.5-72b"):
        studies.full_size_twin("qwen2.5-72b")
