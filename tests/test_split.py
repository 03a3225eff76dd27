"""A model in several files: all parts are loaded, and all bytes of all parts are its identity."""

import pytest
from gguf import GGUFWriter

import swarmkv_lab as lab
from swarmkv_studies.common.twins import Writer


@pytest.fixture
def parts(tmp_path):
    writer = Writer(tmp_path / "split.gguf", lab.KVGeometry(2, 2, 16, 16, 512))
    writer.gguf = GGUFWriter(tmp_path / "split.gguf", writer.arch, split_max_tensors=6)
    writer.write()
    return sorted(tmp_path.glob("*.gguf"))


def test_all_parts_are_loaded_and_hashed(parts, document):
    assert len(parts) > 2
    with lab.load_model(parts[0]) as model:
        first = model.content_hash
        snapshot = lab.prefill(model, document, progress=False)
    data = bytearray(parts[-1].read_bytes())
    data[-40] ^= 1  # one bit of a weight, in the last part
    parts[-1].write_bytes(data)
    with lab.load_model(parts[0]) as model:
        assert model.content_hash != first
        with pytest.raises(lab.SnapshotMismatchError), model.context(512) as ctx:
            snapshot.restore(ctx)
        parts[1].touch()
        assert not model.is_current
        with pytest.raises(lab.SwarmKVError):  # its weights are mapped
            model.require_unchanged()


def test_another_part_than_the_first_or_a_missing_one_is_refused(parts):
    with pytest.raises(lab.ModelNotFoundError):
        lab.load_model(parts[1])
    parts[1].unlink()
    with pytest.raises(lab.ModelNotFoundError):
        lab.load_model(parts[0])
