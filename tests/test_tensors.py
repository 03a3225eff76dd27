"""The tensors in a GGUF's header: their shapes and bytes, and headers that are damaged."""

import pytest

import swarmkv_lab as lab
from swarmkv_lab.sizing.gguf_header import read_gguf


def test_shapes_and_bytes_are_the_files_own(twin):
    tensors = read_gguf(twin.path)[1]
    assert len(tensors) == 2 + 1 + 2 * 9
    found = {name: (tensor.shape, tensor.n_bytes) for name, tensor in tensors.items()}
    assert found["token_embd.weight"] == ((32, 256), 2 * 32 * 256)
    assert found["output_norm.weight"] == ((32,), 4 * 32)
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
