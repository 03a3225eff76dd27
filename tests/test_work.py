"""Work: the operations of a decode, against counts by hand."""

from contextlib import closing

import numpy as np
import pytest
from conftest import load_shape
from gguf import GGUFWriter

import swarmkv_lab as lab
from swarmkv_lab.sizing.geometry import KVGeometry
from swarmkv_lab.sizing.gguf_header import read_gguf
from swarmkv_studies.peers.work import decode_work


def test_a_decode_counted_by_hand(twin):
    """Two layers of seven 32 x 32 matrices, 256 logits, two heads of 16; three tokens after five others."""
    first_layer = 7 * 32 * 32 * 3
    last_layer = 4 * 32 * 32 * 3 + 3 * 32 * 32  # its feed-forward part for the last token alone
    output = 32 * 256
    keys = 6 + 7 + 8
    attention = 2 * 2 * (16 + 16) * keys  # layers, heads, a key's and a value's elements
    work = decode_work(twin.path, 3, 5)
    assert work.flop == 2 * (first_layer + last_layer + output + attention)
    weights = 2 * (14 * 32 * 32 + 32 * 256)  # f16
    assert work.n_bytes == weights + twin.geometry.snapshot_bytes(8)


def test_weights_are_read_once_per_micro_batch(twin):
    weights = decode_work(twin.path, 1).n_bytes - twin.geometry.snapshot_bytes(1)
    caches = sum(map(twin.geometry.snapshot_bytes, (512, 1024, 1025)))
    assert decode_work(twin.path, 1025).n_bytes == 3 * weights + caches


@pytest.mark.parametrize(("name", "attention"), [
    ("sliding window", 2 * (32 + 32) * 2 * (40 + 3 * 32)),  # one layer of four sees all 40 keys, the others 32
    ("latent attention", 3 * 2 * (96 + 64) * 40),  # a value is the latent 64 of a key's 96
])  # fmt: skip
def test_attention_of_other_kinds(name, attention, tmp_path):
    with load_shape(name, tmp_path) as model:
        deep, shallow = decode_work(model.path, 1, 39).flop, decode_work(model.path, 1, 0).flop
        heads = 2 * (32 + 32) * 2 * 4 if name == "sliding window" else 3 * 2 * (96 + 64)
        assert deep - shallow == attention - heads


@pytest.mark.real
def test_the_default_model():
    """30 layers; the output matrix is the token embedding's."""
    attention, feed_forward = 576 * (576 + 192 + 192 + 576), 3 * 576 * 1536
    matrices = 30 * attention + 30 * feed_forward + 576 * 49152
    assert decode_work(lab.model_path(), 1, 255).flop == 2 * (matrices + 30 * 9 * 2 * 64 * 256)


def test_experts_are_counted_as_a_token_uses_them(tmp_path):
    """Two of eight experts per token; a micro-batch of three tokens reads six of them at most, and one of ten all."""
    path = tmp_path / "experts.gguf"
    gguf = GGUFWriter(path, "llama")
    for add, number in {
        "block_count": 2, "context_length": 64, "embedding_length": 32, "head_count": 2, "expert_count": 8,
        "expert_used_count": 2,
    }.items():  # fmt: skip
        getattr(gguf, f"add_{add}")(number)
    gguf.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((8, 16, 32), np.float16))
    gguf.add_tensor("blk.0.ffn_gate_inp.weight", np.zeros((8, 32), np.float16))
    with closing(gguf):
        gguf.write_header_to_file()
        gguf.write_kv_data_to_file()
        gguf.write_tensors_to_file()
    keys = 1 + 2 + 3
    assert decode_work(path, 3).flop == 2 * 3 * (2 * 16 * 32 + 8 * 32) + 2 * 2 * 2 * (16 + 16) * keys
    cache = KVGeometry.from_gguf(path).snapshot_bytes
    for n, used in ((1, 2), (3, 6), (10, 8)):
        assert decode_work(path, n).n_bytes - cache(n) == 2 * (used * 16 * 32 + 8 * 32)


def test_shapes_and_bytes_are_the_files_own(twin):
    tensors = read_gguf(twin.path)[1]
    assert len(tensors) == 2 + 1 + 2 * 9
    shapes = {name: (tensor.shape, tensor.n_bytes) for name, tensor in tensors.items()}
    assert shapes["token_embd.weight"] == ((32, 256), 2 * 32 * 256)
    assert shapes["output_norm.weight"] == ((32,), 4 * 32)
    assert sum(tensor.n_bytes for tensor in tensors.values()) <= twin.path.stat().st_size


def test_a_damaged_list_of_tensors(twin, tmp_path):
    """Cut anywhere, with a type or a number of dimensions that cannot be."""
    whole, path = twin.path.read_bytes(), tmp_path / "damaged.gguf"
    at = whole.index(b"token_embd.weight") + len(b"token_embd.weight")
    damaged = [whole[:length] for length in range(900, 1400, 50)]
    damaged += [whole[:place] + (77).to_bytes(4, "little") + whole[place + 4 :] for place in (at, at + 4 + 2 * 8)]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(lab.ModelNotFoundError):
            sum(tensor.n_bytes for tensor in read_gguf(path)[1].values())
