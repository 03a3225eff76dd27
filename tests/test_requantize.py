"""Weight formats: llama.cpp's quantizer, once, reproducible, and one error where it cannot."""

import signal
import subprocess
import threading

import pytest
from conftest import needs

import swarmkv_lab as lab
from swarmkv_lab import files
from swarmkv_lab.llama import loading, requantize
from swarmkv_lab.llama.requantize import SOURCE_KEY, SOURCE_SHA256_KEY, sha256


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))


def test_a_model_in_another_format(twin, empty_cache, document):
    path = lab.requantize(twin, "q8_0", progress=False)
    assert path.name == "twin.Q8_0.gguf"
    made = path.stat().st_mtime_ns
    assert lab.requantize(twin.path, "q8_0") == lab.requantize(path, "q8_0") == path
    assert (requantize.file_format(path), requantize.file_format(twin.path)) == ("q8_0", None)  # it does not say
    assert path.stat().st_mtime_ns == made
    with lab.load_model(path) as model:
        assert model.metadata[SOURCE_KEY] == "twin.gguf"
        assert model.metadata[SOURCE_SHA256_KEY] == sha256(twin.path)
        assert model.geometry == twin.geometry
        assert model.content_hash != twin.content_hash
        with model.context(400) as ctx, twin.context(400) as other:
            ctx.decode(document)
            other.decode(document)
            assert 0 < lab.kl_divergence(other.logits(), ctx.logits()) < 0.01


@pytest.mark.filterwarnings("ignore:1 of 21 tensors")
def test_the_same_bytes_with_any_number_of_threads(twin, tmp_path, monkeypatch):
    sums = set()
    for n_threads in (1, 3):
        monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / str(n_threads)))
        monkeypatch.setattr(requantize, "default_threads", lambda n=n_threads: n)
        sums.add(sha256(lab.requantize(twin, "q4_0", progress=False)))
    assert len(sums) == 1


@pytest.mark.real
def test_the_default_model_is_the_pinned_file(real):
    assert real.path.name == "SmolLM2-135M-Instruct.Q8_0.gguf"
    assert real.metadata[SOURCE_SHA256_KEY] == loading.WHEEL_SHA256
    assert sha256(real.path) == loading.DEFAULT_SHA256


@pytest.mark.parametrize(("source", "weights", "name"), [
    ("m.Q4_1.gguf", "q8_0", "m.Q8_0.gguf"),
    ("m-f16.gguf", "bf16", "m.BF16.gguf"),
    ("m-q4_k_m.gguf", "q4_0", "m.Q4_0.gguf"),
    ("m.gguf", "f32", "m.F32.gguf"),
])  # fmt: skip
def test_its_name_tells_the_format(empty_cache, source, weights, name):
    assert requantize.requantized_path(source, "0" * 64, weights).name == name


@pytest.mark.parametrize("weights", ["q9_0", "Q8_0", 7, None, ["q8_0"]])
def test_a_format_that_cannot_be_made(twin, weights):
    with pytest.raises(lab.SwarmKVError, match="is not one of f32, f16, bf16, q8_0"):
        lab.requantize(twin, weights)


def test_a_format_that_does_not_fit_is_said(twin, empty_cache):
    with pytest.warns(UserWarning, match=r"of twin.gguf are in a larger format than q4_k_m"):
        lab.requantize(twin, "q4_k_m", progress=False)


def test_a_file_that_llama_cpp_refuses(tmp_path, empty_cache):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(lab.SwarmKVError, match="q8_0"):
        lab.requantize(path, "q8_0", progress=False)
    assert list(files.cache_folder().rglob("*.gguf*")) == []


def test_an_abort_of_llama_cpp_ends_its_own_process_alone(twin, empty_cache, monkeypatch, tmp_path):
    crash = tmp_path / "crash.py"
    crash.write_text("import os; print('GGML_ASSERT failed', flush=True); os.abort()")
    monkeypatch.setattr(requantize.quantizer, "__file__", str(crash))
    with pytest.raises(lab.SwarmKVError, match="GGML_ASSERT failed"):
        lab.requantize(twin, "q8_0", progress=False)


@needs(signal, "pthread_kill")
def test_an_interrupt_leaves_nothing(twin, empty_cache, monkeypatch, tmp_path):
    endless = tmp_path / "endless.py"
    endless.write_text("import time; print('[ 1/ 9] x', flush=True); time.sleep(60)")
    monkeypatch.setattr(requantize.quantizer, "__file__", str(endless))
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)
            main = threading.main_thread().ident
            threading.Timer(0.5, lambda: signal.pthread_kill(main, signal.SIGINT)).start()

    monkeypatch.setattr(subprocess, "Popen", Noted)
    with pytest.raises(KeyboardInterrupt):
        lab.requantize(twin, "q8_0", progress=False)
    assert started[0].poll() is not None
    assert list(files.cache_folder().rglob("*.gguf*")) == []
