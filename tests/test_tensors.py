"""The tensors in a GGUF's header: their shapes, and headers that are damaged."""

import pytest

import swarmkv_lab as lab
from swarmkv_lab.sizing.gguf_header import read_gguf


def test_shapes_are_the_files_own(twin):
    shapes = read_gguf(twin.path)[1]
    assert len(shapes) == 2 + 1 + 2 * 9
    assert (shapes["token_embd.weight"], shapes["output_norm.weight"]) == ((32, 256), (32,))


def test_a_damaged_list_of_tensors(twin, tmp_path):
    """Cut anywhere, or with a number of dimensions that cannot be."""
    whole, path = twin.path.read_bytes(), tmp_path / "damaged.gguf"
    at = whole.index(b"token_embd.weight") + len(b"token_embd.weight")
    damaged = [whole[:length] for length in range(900, 1400, 50)]
    for data in (*damaged, whole[:at] + (77).to_bytes(4, "little") + whole[at + 4 :]):
        path.write_bytes(data)
        with pytest.raises(lab.ModelNotFoundError):
            read_gguf(path)
