"""Weight formats measured: what is in the table, what an interrupt leaves of it, and the limits beside it."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab import files
from swarmkv_studies.common.measurements import measurements
from swarmkv_studies.peers import formats, peaks
from swarmkv_studies.peers.roofline import WORKS
from swarmkv_studies.peers.work import decode_work

COLUMNS = (
    "format is_source file_bytes n_tokens repeats prefill_ms prefill_min_ms prefill_max_ms branch_ms token_ms "
    "prefill_tokens_per_s kl_mean kl_max top1 "
    "prefill_flop prefill_bytes branch_flop branch_bytes token_flop token_bytes"
)
pytestmark = pytest.mark.filterwarnings("ignore:.*are in a larger format")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))


def test_formats_beside_their_source(twin, document, monkeypatch):
    turns = []

    def timed(ctx, tokens):
        turns.append(ctx.model.path)
        return np.array([1, 10, 100]) * len(turns)

    monkeypatch.setattr(formats, "time_work", timed)
    frame = studies.weight_formats(twin, document, ["q8_0", "q4_0"], repeats=3, continuation=9, progress=False)
    assert list(frame) == COLUMNS.split()
    assert list(frame.format) == ["unknown", "q8_0", "q4_0"]  # a twin's metadata does not name its own
    assert list(frame.is_source) == [True, False, False]
    assert turns[:3] == turns[3:6] == turns[6:]  # in turns, after a warm-up that is not timed
    assert list(frame.prefill_ms) == [4, 5, 6]  # the middle one of 1, 4, 7
    assert list(frame.prefill_min_ms) == [1, 2, 3]
    assert list(frame.prefill_max_ms) == [7, 8, 9]
    assert list(frame.token_ms) == [400, 500, 600]
    np.testing.assert_allclose(frame.prefill_tokens_per_s, 1e3 * len(document) / frame.prefill_ms)
    assert list(frame.file_bytes) == [path.stat().st_size for path in turns[:3]]
    assert frame.loc[0, ["kl_mean", "kl_max", "top1"]].tolist() == [0, 0, 1]
    assert 0 < frame.kl_mean[1] < frame.kl_mean[2] < frame.kl_max[2]
    for row in frame.itertuples():
        path = turns[row.Index]
        assert (row.prefill_flop, row.prefill_bytes) == decode_work(path, 300)
        assert (row.branch_flop, row.branch_bytes) == decode_work(path, 12, 300)
        assert (row.token_flop, row.token_bytes) == decode_work(path, 1, 312)
    assert frame.prefill_flop.nunique() == 1


def test_a_source_that_is_one_of_the_formats_has_one_row(twin, document):
    source = lab.requantize(twin, "q8_0", progress=False)
    frame = studies.weight_formats(source, document[:40], ["q8_0", "f16"], repeats=1, continuation=4, progress=False)
    assert list(frame.format) == ["q8_0", "f16"]
    assert (frame[["prefill_ms", "branch_ms", "token_ms"]] > 0).all().all()


def test_a_format_that_cannot_be_made_breaks_nothing(twin, document, no_q6_k):
    with pytest.warns(UserWarning, match="q6_k is left out: llama.cpp could not"):
        frame = studies.weight_formats(twin, document[:40], ["q6_k", "q8_0"], repeats=1, continuation=4, progress=False)
    assert list(frame.format) == ["unknown", "q8_0"]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"formats": ["q9"]}, "weight format 'q9' is not one of f32"),
    ({"continuation": 40}, "continuation=40: it must be from 1 to 39"),
    ({"repeats": 0}, "repeats=0"),
    ({"kv_types": "f16"}, "kv_types: the settings of a context are"),
])  # fmt: skip
def test_what_cannot_be_measured(twin, document, arguments, message):
    with pytest.raises(lab.SwarmKVError, match=message):
        studies.weight_formats(twin, document[:40], **{"formats": ["q8_0"], "progress": False} | arguments)


def test_the_peaks_of_this_machine(monkeypatch):
    monkeypatch.setattr(peaks, "find_spec", lambda name: None)  # without torch and threadpoolctl
    found = peaks.main(2, 32, 4096)
    assert set(found["gflops"]) == {"numpy float32"}
    assert found["blas"] is None
    assert found["gflops"]["numpy float32"] > 0
    assert found["memory_gb_per_s"] > 0


def test_the_peaks_are_measured_with_so_many_threads(monkeypatch):
    asked = []

    def run(command, *, env, **how):
        asked.append((command[3:], {name: env[name] for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}))
        return subprocess.CompletedProcess(command, 0, '{"n_threads": 3}', "")

    monkeypatch.setattr(subprocess, "run", run)
    assert studies.peaks(3, n_rows=64, n_bytes=4096) == {"n_threads": 3}
    assert asked == [(["3", "64", "4096"], {"OPENBLAS_NUM_THREADS": "3", "OMP_NUM_THREADS": "3"})]


def test_peaks_that_cannot_be_measured(monkeypatch):
    with pytest.raises(lab.SwarmKVError, match="n_threads=0"):
        studies.peaks(0)
    monkeypatch.setattr(sys.modules["swarmkv_studies.peers.roofline"].program, "__file__", "nowhere.py")
    with pytest.raises(lab.SwarmKVError, match=r"could not be measured \(ended with 2\): .*nowhere.py"):
        studies.peaks()


@pytest.fixture(scope="module")
def three():
    """Three formats whose times make round numbers: 1 and 2 Gflop a prefill of a second, and so on."""
    rows = [("q4_1", True, 1000.0, 0.0), ("q8_0", False, 500.0, 0.01), ("q4_0", False, 400.0, 0.2)]
    frame = pd.DataFrame(rows, columns=["format", "is_source", "prefill_ms", "kl_mean"])
    for work, (scale, flop, n_bytes) in {
        "prefill": (1, 1e9, 1e7),
        "branch": (0.1, 5e7, 1e7),
        "token": (0.01, 4e6, 1e7),
    }.items():
        frame[f"{work}_ms"] = scale * frame.prefill_ms
        frame[f"{work}_flop"], frame[f"{work}_bytes"] = flop, n_bytes
    frame = frame.assign(prefill_min_ms=frame.prefill_ms * 0.9, prefill_max_ms=frame.prefill_ms * 1.1)
    return frame.assign(n_tokens=100, file_bytes=10_000_000)


def test_a_roofline_in_round_numbers(three):
    table = studies.roofline(three, {"gflops": {"numpy float32": 4.0, "torch float32": 5.0}, "memory_gb_per_s": 4.0})
    row = table.iloc[0]
    assert (row.prefill_gflops, row.prefill_flop_per_byte, row.prefill_share) == pytest.approx((1, 100, 0.2))
    assert (row.branch_gflops, row.branch_flop_per_byte) == pytest.approx((0.5, 5))
    assert (row.token_gflops, row.token_gb_per_s, row.token_memory_share) == pytest.approx((0.4, 1, 0.25))
    with pytest.raises(lab.SwarmKVError, match="no operations are counted"):
        studies.roofline(three.drop(columns="token_flop"), {})
    assert set(table) == {"format", "is_source"} | {
        f"{work}_{what}" for work in WORKS for what in ("gflops", "flop_per_byte", "gb_per_s", "share", "memory_share")
    }


def test_the_figures_say_what_is_fastest_and_what_it_costs(three):
    figure = studies.weight_formats_figure(three)
    assert figure.get_label() == "q4_0 prefills 2.5x as fast as q4_1, at a KL of 0.2"
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["q4_0, 10 MB", "q8_0, 10 MB", "q4_1, 10 MB"]
    slow = three.assign(**{name: [100.0, 500.0, 400.0] for name in ("prefill_ms", "prefill_min_ms", "prefill_max_ms")})
    assert studies.weight_formats_figure(slow).get_label() == "No format prefills faster than the source's, q4_1"
    peak = {"gflops": {"numpy float32": 4.0, "torch bfloat16": 5.0}, "memory_gb_per_s": 4.0}
    assert studies.weight_formats_figure(three[:1]).get_label() == "No format prefills faster than the source's, q4_1"
    assert studies.roofline_figure(three, peak).get_label() == (
        "q4_0: a prefill reaches 50% of peak arithmetic, a token 62% of memory speed"
    )


def test_the_reference_has_the_columns_and_the_full_profiles_formats():
    reference = measurements("reference")
    assert set(reference.formats) == set(COLUMNS.split())
    assert list(reference.formats.format) == ["q4_1", *studies.profile("full").formats]
    assert reference.formats.is_source.tolist() == [True] + [False] * (len(reference.formats) - 1)
    assert reference.peaks["memory_gb_per_s"] > 0
