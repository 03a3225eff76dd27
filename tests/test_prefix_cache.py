"""The prefix cache: the longest prefix is found, gives the same bits as a prefill, and stays within its bytes."""

import os
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import load_shape

import swarmkv_lab as lab
from swarmkv_lab.snapshot import prefix_cache
from swarmkv_studies.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prefixes"


@pytest.fixture
def decoded(monkeypatch):
    """How many tokens each decode was given."""
    counts, decode = [], lab.Context.decode

    def count(self, tokens, *args, **how):
        counts.append(len(tokens))
        return decode(self, tokens, *args, **how)

    monkeypatch.setattr(lab.Context, "decode", count)
    return counts


def files(folder):
    return sorted(path for path in folder.iterdir())


def test_without_the_cache_nothing_is_kept(twin, document, folder):
    snapshot = lab.prefill(twin, document)
    np.testing.assert_array_equal(snapshot.tokens, document)
    assert not folder.exists()


def test_the_second_prefill_decodes_nothing(twin, document, decoded):
    first = lab.prefill(twin, document, cache=True)
    second = lab.prefill(twin, document, cache=True)
    assert decoded == [300]
    np.testing.assert_array_equal(second.copy().data, first.data)


@pytest.mark.parametrize("n_batch", [64, 512])
@pytest.mark.parametrize(("shape", "swa_full"), [
    ("two layers", False), ("sliding window", False), ("sliding window", True), ("latent attention", False),
])  # fmt: skip
def test_a_longer_document_goes_on_with_the_same_bits(document, decoded, shape, swa_full, n_batch, tmp_path):
    how = {"n_batch": n_batch, "swa_full": swa_full}
    with load_shape(shape, tmp_path) as model:
        expected = lab.prefill(model, document, **how)
        for n in (64, 200, 130):
            lab.prefill(model, document[:n], cache=True, **how)
        decoded.clear()
        found = lab.prefill(model, document, cache=True, **how)
        assert found.identity == expected.identity
        np.testing.assert_array_equal(found.data, expected.data)
        only_whole = shape == "sliding window" and not swa_full
        whole_batches = 0 if n_batch == 512 or only_whole else 192  # of the 200 tokens
        assert decoded == [300 - whole_batches]


def test_what_is_another_snapshot(twin, document, decoded, tmp_path):
    """A shorter document, tokens that differ early or late, other settings, another model of the same name."""
    how = {"cache": True, "n_batch": 64}
    lab.prefill(twin, document, **how)
    for at in (0, 150, 299):
        other = document.copy()
        other[at] = (other[at] + 1) % 256
        lab.prefill(twin, other, **how)
    lab.prefill(twin, document[:100], **how)
    for change in ({"kv_type": "bf16"}, {"flash_attn": True}, {"n_batch": 32}):
        lab.prefill(twin, document, **how | change)
    lab.prefill(twin, document, n_threads=1, **how)  # which the numbers do not depend on
    with load_shape("one layer", tmp_path) as model:
        lab.prefill(model, document, **how)
    assert decoded == [300] * 4 + [100] + [300] * 4


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other tokens"])
def test_a_damaged_file_is_removed_and_said(twin, document, decoded, folder, damage):
    lab.prefill(twin, document, cache=True)
    (path,) = files(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "flip":
        path.write_bytes(data)
    elif damage == "other tokens":
        lab.prefill(twin, document[::-1].copy()).save(path)
    else:
        os.truncate(path, 0 if damage == "empty" else 100)
    decoded.clear()
    with pytest.warns(UserWarning, match="prefix cache"):
        lab.prefill(twin, document, cache=True)
    lab.prefill(twin, document, cache=True)
    assert decoded == [300]


def test_the_least_recently_used_go_first(twin, document, folder, monkeypatch):
    size = 0
    for n in (100, 101, 102):
        lab.prefill(twin, document[:n], cache=True)
        size = size or files(folder)[0].stat().st_size
    lab.prefill(twin, document[:100], cache=True)  # used again
    monkeypatch.setenv("SWARMKV_CACHE_BYTES", str(int(3.5 * size)))
    lab.prefill(twin, document[:103], cache=True)
    assert {int(path.name.split("-")[1]) for path in files(folder)} == {100, 102, 103}
    monkeypatch.setenv("SWARMKV_CACHE_BYTES", str(int(1.5 * size)))
    lab.prefill(twin, document[:104], cache=True)
    assert [int(path.name.split("-")[1]) for path in files(folder)] == [104]


def test_a_snapshot_larger_than_the_whole_cache(twin, document, folder, monkeypatch):
    monkeypatch.setenv("SWARMKV_CACHE_BYTES", "1000")
    with pytest.warns(UserWarning, match="80,472 bytes, .* 1,000"):
        assert len(lab.prefill(twin, document, cache=True).tokens) == 300
    assert not folder.exists() or files(folder) == []
    monkeypatch.setenv("SWARMKV_CACHE_BYTES", "lots")
    with pytest.raises(lab.SwarmKVError, match="SWARMKV_CACHE_BYTES='lots'"):
        lab.prefill(twin, document, cache=True)


def test_a_cache_that_cannot_be_written_costs_nothing(twin, document, monkeypatch):
    monkeypatch.setattr(lab.KVSnapshot, "save", Mock(side_effect=lab.SwarmKVError("no space")))
    with pytest.warns(UserWarning, match="no space"):
        assert len(lab.prefill(twin, document, cache=True).tokens) == 300


def test_several_processes_at_once(twin, document, folder, all_cores):
    """They write, find and evict in one folder that holds two of their three snapshots."""
    code = (
        "import sys, warnings, swarmkv_lab as lab, numpy as np\n"
        "warnings.simplefilter('error')\n"
        "model = lab.load_model(sys.argv[1])\n"
        "ids = np.array([int(t) for t in sys.argv[2].split()])\n"
        "for i in range(60):\n"
        "    n = (280, 290, 300)[i % 3]\n"
        "    snapshot = lab.prefill(model, ids[:n], cache=True)\n"
        "    assert len(snapshot.tokens) == n and snapshot.data.sum() > 0\n"
    )
    lab.prefill(twin, document, cache=True)
    size = files(folder)[0].stat().st_size
    environment = os.environ | {"SWARMKV_CACHE_BYTES": str(int(2.5 * size))}
    command = [sys.executable, "-c", code, str(twin.path), " ".join(map(str, document))]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    held = files(folder)
    assert sum(path.stat().st_size for path in held) <= 2.5 * size
    assert all(path.name.endswith(".kv.safetensors") for path in held)


def test_the_cache_is_listed_and_cleared(twin, document, folder, capsys):
    assert main(["cache", "list"]) == 0
    assert "0 snapshots" in capsys.readouterr().out
    lab.prefill(twin, document, cache=True)
    lab.prefill(twin, document[:50], cache=True)
    files(folder)[1].write_bytes(b"x")
    assert main(["cache", "list"]) == 0
    shown = capsys.readouterr().out
    assert "twin" in shown
    assert "damaged" in shown
    assert "2 snapshots" in shown
    assert main(["cache", "clear"]) == 0
    assert files(folder) == []
    assert "removed 2" in capsys.readouterr().out


def test_a_file_evicted_between_the_look_and_the_load(twin, document, folder, monkeypatch, decoded):
    lab.prefill(twin, document, cache=True)
    load = lab.KVSnapshot.load

    def evicted(path, *args, **how):
        path.unlink()
        return load(path, *args, **how)

    monkeypatch.setattr(lab.KVSnapshot, "load", evicted)
    lab.prefill(twin, document, cache=True)
    assert decoded == [300, 300]
    assert len(files(folder)) == 1
    assert prefix_cache.limit() == 4 << 30
