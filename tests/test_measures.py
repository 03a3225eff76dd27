"""What studies measure beside the runs, on twins: weight formats, a restore, full-size twins, the run for a GPU."""

import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab import files
from swarmkv_lab.files import REFERENCE
from swarmkv_lab.llama.api import Device
from swarmkv_lab.llama.requantize import WEIGHT_FORMATS
from swarmkv_lab.sizing.gguf_header import read_gguf
from swarmkv_studies.common import provenance
from swarmkv_studies.common.full_size import FULL_SIZES, write_full_size
from swarmkv_studies.common.rounds import rounds
from swarmkv_studies.common.twins import Sizes
from swarmkv_studies.naive_vs_fanout import gpu
from swarmkv_studies.peers import formats
from swarmkv_studies.snapshot_file.limits import _pieces

pytestmark = pytest.mark.filterwarnings("ignore:.*are in a larger format")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))


# -- weight formats

COLUMNS = "format file_bytes n_tokens repeats prefill_ms branch_ms token_ms kl_mean kl_max top1"


def test_formats_beside_their_source(twin, document, monkeypatch):
    turns = []

    def timed(ctx, tokens):
        turns.append(ctx.model.path)
        return np.array([1, 10, 100]) * len(turns)

    monkeypatch.setattr(formats, "_times", timed)
    how = {"repeats": 3, "continuation": 9, "progress": False}
    frame = formats.weight_formats(twin.path, document, ["q8_0", "q4_0"], **how)
    assert list(frame) == COLUMNS.split()
    assert list(frame.format) == ["unknown", "q8_0", "q4_0"]  # a twin's metadata does not name its own
    assert turns[:3] == turns[3:6] == turns[6:]  # in turns
    assert list(frame.prefill_ms) == [4, 5, 6]  # the middle one of 1, 4, 7
    assert list(frame.token_ms) == [400, 500, 600]
    assert list(frame.file_bytes) == [path.stat().st_size for path in turns[:3]]
    assert frame.loc[0, ["kl_mean", "kl_max", "top1"]].tolist() == [0, 0, 1]
    assert 0 < frame.kl_mean[1] < frame.kl_mean[2] < frame.kl_max[2]


def test_a_source_that_is_one_of_the_formats_has_one_row(twin, document):
    source = lab.requantize(twin, "q8_0", progress=False)
    frame = formats.weight_formats(source, document[:40], ["q8_0", "f16"], repeats=1, continuation=4, progress=False)
    assert list(frame.format) == ["q8_0", "f16"]
    assert (frame[["prefill_ms", "branch_ms", "token_ms"]] > 0).all().all()


@pytest.mark.parametrize("wrong", [{"formats": ["q9"]}, {"continuation": 40}, {"repeats": 0}, {"kv_types": "f16"}])
def test_what_cannot_be_measured(twin, document, wrong):
    with pytest.raises(lab.SwarmKVError):
        formats.weight_formats(twin.path, document[:40], **{"formats": ["q8_0"], "progress": False} | wrong)


def test_the_reference_has_the_formats_of_today():
    assert list(pd.read_csv(REFERENCE / "formats.csv").format) == ["q4_1", *formats.FORMATS]
    assert set(formats.FORMATS) < set(WEIGHT_FORMATS)


# -- a restore


@pytest.mark.parametrize("flash_attn", [False, True])
def test_the_pieces_are_the_whole_state_but_its_headers(twin, document, flash_attn):
    with twin.context(512, flash_attn=flash_attn) as ctx:
        ctx.decode(document)
        snapshot = lab.KVSnapshot.capture(ctx, document)
        pieces = _pieces(snapshot, twin, ctx.n_ctx)
    n_bytes = len(document) * twin.geometry.bytes_per_token()
    assert sum(piece.nbytes for _, piece in pieces) == n_bytes
    assert all(into.shape == piece.shape for into, piece in pieces)
    rows = max(len(piece) for _, piece in pieces)
    assert rows == (1 if flash_attn else 2 * 16)  # values are transposed without it: a row an element


def test_restore_is_measured_beside_copies(twin, document, monkeypatch):
    seconds = iter([9, 9, 9, 0.003, 0.001, 0.008, 0.006, 0.002, 0.004, 0.005, 0.004, 0.007])  # the warm-up comes first
    done = []

    def timed(call, number):
        done.append(call())
        return next(seconds)

    monkeypatch.setattr("swarmkv_studies.snapshot_file.limits.timeit.timeit", timed)
    measured = studies.restore_against_memcpy(twin, document, rounds=3)
    assert len(done) == 4 * 3
    assert measured["bytes"] == twin.geometry.snapshot_bytes(len(document))
    medians = {"restore_ms": 5, "memcpy_ms": 2, "pieces_ms": 7, "ratio": 2.5}
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
    path = write_full_size(
        tmp_path / "full.gguf", geometry, Sizes(n_embd=128, n_ff=96, n_vocab=500, n_head=4, tied=tied)
    )
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


def test_it_is_written_once(monkeypatch):
    monkeypatch.setitem(FULL_SIZES, "smollm2-135m", Sizes(n_embd=64, n_ff=64, n_head=9))
    path = studies.full_size_twin("smollm2-135m")
    written = path.stat().st_mtime_ns
    assert studies.full_size_twin("smollm2-135m") == path
    assert path.stat().st_mtime_ns == written
    assert lab.geometry(path) == lab.geometry("smollm2-135m")
    with pytest.raises(lab.SwarmKVError, match=r"qwen2\.5-72b"):  # its sizes are not known
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
