"""Sizes: predicted before a decode, equal to llama.cpp's own answer to the byte."""

import contextlib
import json
import logging
import re
import struct
import sys

import numpy as np
import pytest
from conftest import often
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import swarmkv_lab as lab
from swarmkv_lab.sizing.catalogue import catalogue, geometry
from swarmkv_lab.sizing.geometry import KV_TYPES, KVGeometry, every_nth_full
from swarmkv_studies.cli import main
from swarmkv_studies.common.twins import twin as cached_twin
from swarmkv_studies.common.twins import write_twin
from swarmkv_studies.kv_sizing.measured import measure_kv
from swarmkv_studies.kv_sizing.memory import agents_bytes, agents_that_fit

DEPTHS = (1, 2, 255, 256, 257)
BY_ATTENTION = ("smollm2-1.7b", "qwen2.5-0.5b", "deepseek-v2-lite", "gemma-3-1b")  # MHA, GQA, MLA, sliding window
QUANTIZED = [t for t in KV_TYPES if t not in ("f32", "f16", "bf16")]


def sizes(model, depths, **how):
    """llama.cpp's own answers as one sequence grows."""
    with model.context(max(depths), **how) as ctx:
        for depth in depths:
            ctx.decode(np.zeros(depth - ctx.n_past(), np.int32))
            yield ctx.state_bytes()


def test_the_published_sizes():
    assert geometry("smollm2-135m").snapshot_bytes(3501) == 80_705_796
    assert geometry("qwen2.5-7b").snapshot_bytes(3501) == 200_804_052
    for source in ("qwen2.5-7b", cached_twin(geometry("qwen2.5-7b")), geometry("qwen2.5-7b")):
        assert lab.snapshot_bytes(source, 3501, "q8_0") == geometry("qwen2.5-7b").snapshot_bytes(3501, "q8_0")


@pytest.mark.real
def test_the_default_model_is_the_catalogues_row_and_has_the_predicted_size(real):
    assert real.geometry.heads == geometry("smollm2-135m").heads
    predicted = [geometry("smollm2-135m").snapshot_bytes(n) for n in DEPTHS]
    assert list(sizes(real, DEPTHS)) == predicted


@st.composite
def geometries(draw):
    n_layer = draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["plain", "wide keys", "latent", "window"]))
    head_dim = 32 * draw(st.integers(1, 4))
    shape = {"n_layer": n_layer, "n_head_kv": draw(st.integers(1, 5)), "head_dim_k": head_dim, "head_dim_v": head_dim}
    if kind == "wide keys":
        shape["head_dim_k"] += 32
    elif kind == "latent":
        shape |= {"n_head_kv": 1, "head_dim_k": head_dim + 32, "head_dim_v": 0}
    elif kind == "window":
        swa = draw(st.lists(st.booleans(), min_size=n_layer, max_size=n_layer).filter(any))
        shape |= {"window": draw(st.integers(1, 300)), "swa": tuple(swa)}
    return KVGeometry(n_ctx_train=4096, **shape)


@given(
    shape=geometries(),
    types=st.tuples(st.sampled_from(KV_TYPES), st.sampled_from(KV_TYPES)),
    flash_attn=st.booleans(),
    depth=st.integers(1, 700),
    n_seq_max=st.integers(1, 7),
    n_batch=st.sampled_from([7, 64, 512]),
    swa_full=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_geometry_to_the_byte(tmp_path, caplog, shape, types, flash_attn, depth, n_seq_max, n_batch, swa_full):
    how = {"kv_type": types, "flash_attn": flash_attn or types[1] in QUANTIZED or types[0] in QUANTIZED}
    if shape.head_dim_v == 0:
        how["kv_type"] = types = (types[0], types[0])  # llama.cpp keeps no V of another type with MLA
    how |= {"n_seq_max": n_seq_max, "n_batch": n_batch, "swa_full": swa_full}
    caplog.clear()
    with (
        caplog.at_level(logging.DEBUG, "swarmkv_lab.llama_cpp"),
        lab.load_model(write_twin(tmp_path / "twin.gguf", shape)) as model,
        model.context(depth, **how) as ctx,
    ):
        assert_allocated(ctx.nbytes, caplog)
        ctx.decode(np.zeros(depth, np.int32), n_seq_max - 1)
        predicted = shape.snapshot_bytes(depth, types, swa_full=swa_full)
        assert ctx.state_bytes(n_seq_max - 1) == predicted


def assert_allocated(nbytes, caplog):
    """What was predicted is what llama.cpp says it allocated, in MiB with two decimals, a line a cache."""
    sizes = [float(size) for size in re.findall(r"llama_kv_cache: size = +([\d.]+) MiB", caplog.text)]
    assert sizes
    assert sum(sizes) == pytest.approx(nbytes / 2**20, abs=0.0051 * len(sizes))


def test_the_process_grows_by_cache_bytes(tmp_path):
    import psutil

    shape = KVGeometry(8, 8, 128, 128, 65_536)
    with lab.load_model(write_twin(tmp_path / "twin.gguf", shape)) as model:
        model.context(256).close()
        before = psutil.Process().memory_info().rss
        with model.context(16_384) as ctx:
            grown = psutil.Process().memory_info().rss - before
            assert ctx.nbytes == 2 * 8 * 8 * 128 * 2 * 16_384
            assert grown == pytest.approx(ctx.nbytes, rel=0.1)  # beside it: buffers of a batch


# -- where geometries come from


def test_the_catalogue_is_whole_and_plausible():
    frame = catalogue()
    assert len(frame) >= 20
    assert frame.index.is_unique
    assert list(frame.index) == [name.lower() for name in frame.index]
    assert frame.notna().all().all()
    assert {"MHA", "GQA", "MLA", "sliding window"} == set(frame.attention) == set(frame.attention[list(BY_ATTENTION)])
    assert frame.source.str.fullmatch(r"[\w.-]+/[\w.-]+").all()
    for name in frame.index:
        assert geometry(name).snapshot_bytes(100) > 0, name


def test_a_name_that_is_not_there():
    with pytest.raises(lab.SwarmKVError, match=r"neither a GGUF's path nor in the catalogue: smollm2-135m, "):
        geometry("gpt-9")


def test_a_period_of_six_has_five_windows_and_a_full_layer():
    assert every_nth_full(7, 6) == (True, True, True, True, True, False, True)


@pytest.mark.parametrize(("change", "message"), [
    ({"n_layer": 0}, "at least 1"),
    ({"n_head_kv": (1, 2, 3)}, "3 entries for 2 layers"),
    ({"head_dim_v": -1}, "at least 1"),
    ({"n_head_kv": ()}, "n_head_kv has 0 entries for 2 layers"),
    ({"window": 5}, "swa has 0 entries for 2 layers"),
    ({"head_dim_k": 24}, "48 .* q8_0 .* 32"),  # a row that does not divide into blocks
])  # fmt: skip
def test_geometries_that_make_no_sense(change, message):
    with pytest.raises(lab.SwarmKVError, match=message):
        KVGeometry(
            **{"n_layer": 2, "n_head_kv": 2, "head_dim_k": 16, "head_dim_v": 16, "n_ctx_train": 9} | change
        ).snapshot_bytes(10, "q8_0")


def test_heads_may_differ_by_layer():
    assert KVGeometry(3, (1, 2, 3), 64, 64, 100).bytes_per_token() == 2 * 64 * 2 * (1 + 2 + 3)


# -- headers, whole and broken


def gguf(*pairs, version=3, count=None):
    def text(s):
        return struct.pack("<Q", len(s)) + s.encode()

    body = b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in pairs)
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs) if count is None else count) + body


def u32(key, n):
    return (key, 4, struct.pack("<I", n))


def text_pair(key, value):
    return (key, 8, struct.pack("<Q", len(value)) + value.encode())


ARCH = text_pair("general.architecture", "llama")
WHOLE = (ARCH, u32("llama.block_count", 2), u32("llama.attention.head_count", 4), u32("llama.embedding_length", 64),
         u32("llama.context_length", 100))  # fmt: skip


def windowed(*pairs):
    """A whole header of an architecture with sliding windows."""
    renamed = [(key.replace("llama", "gemma2"), kind, value) for key, kind, value in WHOLE[1:]]
    return (text_pair("general.architecture", "gemma2"), *renamed, *pairs)


WINDOW = (
    u32("gemma2.attention.sliding_window", 7),
    ("gemma2.attention.sliding_window_pattern", 9, struct.pack("<IQ2?", 7, 2, True, False)),
)


def test_windows_that_a_header_tells_whole(tmp_path):
    (tmp_path / "m.gguf").write_bytes(gguf(*windowed(*WINDOW)))
    shape = KVGeometry.from_gguf(tmp_path / "m.gguf")
    assert (shape.window, shape.swa) == (7, (True, False))


HOSTILE = {
    "empty": (b"", "4 bytes"),
    "not a GGUF": (b"PK\3\4" * 9, "GGUF"),
    "version 1": (gguf(*WHOLE, version=1), "1"),
    "2**63 entries": (gguf(*WHOLE, count=2**63), "9,223,372,036,854,775,808"),
    "more entries than there are": (gguf(*WHOLE, count=60_000), "bytes"),
    "a string of 2**40 bytes": (gguf(("k", 8, struct.pack("<Q", 2**40))), "67,108,864"),
    "an array of 2**60 strings": (gguf(("k", 9, struct.pack("<IQ", 8, 2**60))), "8 bytes"),
    "an array of 2**60 numbers": (gguf(("k", 9, struct.pack("<IQ", 4, 2**60))), "67,108,864"),
    "arrays in arrays": (gguf(("k", 9, struct.pack("<IQ", 9, 1))), "9"),
    "an unknown type": (gguf(("k", 99, b"")), "99"),
    "no architecture": (gguf(), "block_count"),
    "missing keys": (gguf(ARCH), "llama.block_count"),
    "no heads": (gguf(ARCH, u32("llama.block_count", 2)), "llama.attention.head_count"),
    "zero layers": (gguf(ARCH, u32("llama.block_count", 0)), "block_count is 0"),
    "absurd layers": (gguf(ARCH, u32("llama.block_count", 2**31)), "2147483648"),
    "millions of layers": (gguf(ARCH, u32("llama.block_count", 2**22)), "4194304"),
    "zero heads": (gguf(*WHOLE, u32("llama.attention.head_count", 0)), "head_count is 0"),
    "text for the context": (gguf(*WHOLE, text_pair("llama.context_length", "x")), "'x'"),
    "no number": (gguf(*WHOLE, ("llama.embedding_length", 6, struct.pack("<f", float("nan")))), "nan"),
    "text for draft layers": (gguf(*WHOLE, text_pair("llama.nextn_predict_layers", "x")), "'x'"),
    "text for a number": (gguf(ARCH, text_pair("llama.block_count", "9")), "'9'"),
    "text for heads": (gguf(*WHOLE, text_pair("llama.attention.head_count_kv", "x")), "'x'"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_or_hostile_header_is_one_clear_error(tmp_path, name):
    data, message = HOSTILE[name]
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(lab.ModelNotFoundError, match=message):
        KVGeometry.from_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("pair", [u32("gemma2.attention.sliding_window_pattern", 0),
                                  text_pair("gemma2.attention.sliding_window", "x")])  # fmt: skip
def test_a_window_that_llama_cpp_does_not_read_is_refused(tmp_path, pair):
    (tmp_path / "m.gguf").write_bytes(gguf(*windowed(pair)))
    with pytest.raises(lab.SwarmKVError, match=r"m\.gguf"):
        KVGeometry.from_gguf(tmp_path / "m.gguf")


def test_truncated_anywhere(tmp_path):
    data = gguf(*WHOLE)
    for length in range(len(data)):
        (tmp_path / "m.gguf").write_bytes(data[:length])
        with pytest.raises(lab.ModelNotFoundError):
            KVGeometry.from_gguf(tmp_path / "m.gguf")


@given(
    whole=st.sampled_from([gguf(*WHOLE), gguf(*windowed(*WINDOW))]),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=4),
)
@pytest.mark.soak
@settings(max_examples=often(1000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_are_read_or_refused(tmp_path, whole, flips):
    data = bytearray(whole)
    for at, mask in flips:
        data[at % len(data)] ^= mask
    (tmp_path / "m.gguf").write_bytes(data)
    with contextlib.suppress(lab.SwarmKVError):
        KVGeometry.from_gguf(tmp_path / "m.gguf").snapshot_bytes(10)


@pytest.mark.parametrize("arch", ["mamba", "qwen35", "gemma4", "of next year"])
def test_an_architecture_without_a_formula_is_named(tmp_path, arch):
    (tmp_path / "m.gguf").write_bytes(gguf(text_pair("general.architecture", arch), *WHOLE[1:]))
    with pytest.raises(lab.SwarmKVError, match=f"{arch} models.* snapshot_bytes"):
        KVGeometry.from_gguf(tmp_path / "m.gguf")


def test_cells_with_positions_of_several_numbers_have_no_formula(tmp_path):
    pairs = [(key.replace("llama", "glm4"), kind, value) for key, kind, value in WHOLE[1:]]
    sections = ("glm4.rope.dimension_sections", 9, struct.pack("<IQIIII", 4, 4, 2, 1, 1, 0))
    for more, known in (((), True), ((sections,), False)):
        (tmp_path / "m.gguf").write_bytes(gguf(text_pair("general.architecture", "glm4"), *pairs, *more))
        with contextlib.nullcontext() if known else pytest.raises(lab.SwarmKVError, match="M-RoPE"):
            KVGeometry.from_gguf(tmp_path / "m.gguf")


# -- scales and budgets


def test_weigh_measures_a_name_by_its_twin_and_a_file_itself(twin, tmp_path, monkeypatch):
    for source in ("llama-3.2-1b", twin.path, twin, twin.geometry):
        record = measure_kv(source, 100)
        assert record["difference"] == 0
        assert record["measured_bytes"] == geometry(source).snapshot_bytes(100)
        assert {"capture_ms", "restore_ms", "share_ms"} <= set(record)
    (tmp_path / "model").write_bytes(twin.path.read_bytes())  # a GGUF of any name
    monkeypatch.setattr(sys.modules["swarmkv_studies.kv_sizing.measured"], "twin", None)  # no twin is asked for
    assert measure_kv(str(tmp_path / "model"), 20)["difference"] == 0


@pytest.mark.parametrize("n_tokens", [-1, 0])
def test_nothing_to_weigh(n_tokens):
    with pytest.raises(lab.SwarmKVError, match=f"{n_tokens}"):
        measure_kv("qwen2.5-0.5b", n_tokens)


def test_a_cache_too_large_is_refused_with_the_bytes_that_it_needs():
    needed = geometry("llama-3.1-405b").cache_bytes(131_000, n_seq_max=2)
    assert needed == 131_072 * 126 * 2 * 8 * 128 * 2
    with pytest.raises(lab.ContextBudgetError, match=f"needs {needed:,} bytes and .* are available"):
        measure_kv("llama-3.1-405b", 131_000)


@pytest.mark.parametrize("name", ["qwen2.5-7b", "gemma-3-27b", "deepseek-v2-lite", "gpt-oss-20b"])
def test_twins_are_written_once_and_their_headers_give_the_geometry_back(tmp_path, monkeypatch, name):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path))
    path = cached_twin(geometry(name))
    stamp = path.stat().st_mtime_ns
    assert cached_twin(geometry(name)) == path
    assert path.stat().st_mtime_ns == stamp
    assert list((tmp_path / "twins").iterdir()) == [path]
    assert KVGeometry.from_gguf(path) == geometry(name)


def test_agents_that_fit_is_the_largest_number_that_does():
    shape = geometry("llama-3.1-8b")
    for layout in ("copied", "shared"):
        n = agents_that_fit(shape, 3501, 8 * 10**9, layout=layout)
        held, more = (agents_bytes(shape, 3501, one, layout=layout) for one in (n, n + 1))
        assert held <= 8 * 10**9 < more
    assert agents_that_fit(shape, 3501, 10**6, layout="shared") == 0
    assert agents_that_fit(shape, 10, 10**12, layout="shared") == 255


def test_size_on_the_command_line(capsys):
    asked = ["size", "smollm2-135m", "--tokens", "300", "--kv-type", "f16,q8_0", "--measure"]
    assert main([*asked, "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["measured_bytes"] == record["snapshot_bytes"]
    assert main(asked) == 0
    assert f"{record['snapshot_bytes']:,}" in capsys.readouterr().out
