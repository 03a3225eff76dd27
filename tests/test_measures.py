"""What studies measure beside the runs, on twins: a restore, full-size twins, the run for a GPU."""

import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab import files
from swarmkv_lab.llama.api import Device
from swarmkv_lab.sizing.gguf_header import read_gguf
from swarmkv_studies.common import provenance
from swarmkv_studies.common.rounds import rounds
from swarmkv_studies.common.twins import FULL_SIZES, FullSize, Sizes
from swarmkv_studies.naive_vs_fanout import gpu


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))


# -- a restore


def test_restore_is_measured_beside_copies(twin, document, monkeypatch):
    seconds = iter([9, 9, 0.003, 0.001, 0.006, 0.002, 0.005, 0.004])  # the warm-up comes first
    done = []

    def timed(call, number):
        done.append(call())
        return next(seconds)

    monkeypatch.setattr("timeit.timeit", timed)
    measured = studies.restore_against_memcpy(twin, document, rounds=3)
    assert len(done) == 4 * 2
    assert measured["bytes"] == twin.geometry.snapshot_bytes(len(document))
    medians = {"restore_ms": 5, "memcpy_ms": 2, "ratio": 2.5}
    assert {name: measured[name] for name in medians} == pytest.approx(medians)


# -- full-size twins


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
    geometry = lab.KVGeometry(2, 2, 32, 32, 4096)
    path = tmp_path / "full.gguf"
    FullSize(path, geometry, Sizes(n_embd=128, n_ff=96, n_vocab=500, n_head=4, tied=tied)).write()
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
        assert ctx.state_bytes() == geometry.snapshot_bytes(3)


def test_its_geometry_is_the_models_and_its_sizes_must_be_known(monkeypatch):
    monkeypatch.setitem(FULL_SIZES, "smollm2-135m", Sizes(n_embd=64, n_ff=64, n_head=9))
    assert lab.geometry(studies.full_size_twin("smollm2-135m")) == lab.geometry("smollm2-135m")
    with pytest.raises(lab.SwarmKVError, match=r"qwen2\.5-72b"):
        studies.full_size_twin("qwen2.5-72b")


# -- a GPU

CUDA = Device("CUDA0", "NVIDIA H200", 1, "CUDA")


def test_without_a_gpu_nothing_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "gpus", list)
    with pytest.raises(lab.SwarmKVError, match="GPU"):
        gpu.measure_gpu(folder=tmp_path / "gpu")
    assert not (tmp_path / "gpu").exists()


def test_a_twin_is_measured_once(monkeypatch, tmp_path):
    monkeypatch.setitem(FULL_SIZES, "smollm2-135m", Sizes(n_embd=64, n_ff=64, n_head=9))
    monkeypatch.setattr(gpu, "gpus", lambda: [CUDA])
    monkeypatch.setitem(gpu._ASKED, "max_tokens", 2)
    how = {"depth": 40, "repeats": 1, "grid": rounds([20, 100_000], [2], 1)}
    gpu.measure_gpu(["smollm2-135m"], tmp_path, **how)
    data = tmp_path / "smollm2-135m"
    grid = pd.read_csv(data / "grid.csv")
    assert set(grid.depth) == {20}  # the model was not trained for the other
    assert sorted(grid.strategy) == sorted(lab.STRATEGIES)
    assert (grid[~grid.packed].max_abs_logit_diff == 0).all()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*sv")}
    gpu.measure_gpu(["smollm2-135m"], tmp_path, **how)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*sv")} == before


def test_provenance_names_the_gpu_and_the_packages_that_are_there(twin, monkeypatch):
    monkeypatch.setattr(provenance, "find_spec", lambda name: None if name == "jupyterlab" else name)
    assert provenance.environment(twin)["gpu"] is False
    monkeypatch.setattr(twin, "on_gpu", True)
    monkeypatch.setattr(provenance, "gpus", lambda: [CUDA, CUDA])
    said = provenance.environment(twin)
    assert said["gpu"] == "NVIDIA H200, NVIDIA H200"
    assert set(said["packages"]) == {"numpy", "pandas", "matplotlib", "ipywidgets"}
    assert np.__version__ == said["packages"]["numpy"]
