"""The run for a machine with a GPU, rehearsed on the processor."""

import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
from swarmkv_lab.llama.api import Device
from swarmkv_studies.common import provenance
from swarmkv_studies.common.full_size import FULL_SIZES
from swarmkv_studies.common.rounds import rounds
from swarmkv_studies.common.twins import Sizes
from swarmkv_studies.naive_vs_fanout import gpu

CUDA = Device("CUDA0", "NVIDIA H200", 1, "CUDA")


def test_without_a_gpu_nothing_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "gpus", list)
    with pytest.raises(lab.SwarmKVError, match="GPU"):
        gpu.measure_gpu(folder=tmp_path / "gpu")
    assert not (tmp_path / "gpu").exists()


def test_a_twin_is_measured_once(monkeypatch, tmp_path):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path / "cache"))
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
