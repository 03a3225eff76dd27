"""Hollow models: any architecture's sizes from a header alone, of a file or behind a URL, are the real model's."""

import contextlib
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import SHAPES
from test_sizing import ARCH, WHOLE, gguf, text_pair, u32
from zoo import KINDS, WINDOW, write

import swarmkv_lab as lab
from swarmkv_lab.sizing import gguf_header
from swarmkv_lab.sizing import hollow as hollows
from swarmkv_lab.sizing.catalogue import catalogue, header_path, headers
from swarmkv_lab.sizing.gguf_header import read_gguf, read_header, write_header
from swarmkv_lab.sizing.hollow import hollow
from swarmkv_studies.cli import main
from swarmkv_studies.common.twins import twin as cached_twin
from swarmkv_studies.common.twins import write_twin
from swarmkv_studies.kv_sizing.measured import measure_kv

DEPTHS = (1, 31, 33, 128, 200)
NO_MEMORY = ("encoder", "diffusion")
NO_VOCABULARY = text_pair("tokenizer.ggml.model", "no_vocab")
LOADS = (*WHOLE, NO_VOCABULARY, u32("llama.vocab_size", 256), u32("llama.feed_forward_length", 32),
         ("llama.attention.layer_norm_rms_epsilon", 6, b"\0\0\x80\x3f"))  # fmt: skip


def real_sizes(path, **how):
    """The loaded model's own answers as one sequence grows."""
    with (
        lab.load_model(path, n_gpu_layers=0) as model,
        model.context(max(DEPTHS) * how.get("n_seq_max", 1), **how) as ctx,
    ):
        for depth in DEPTHS:
            ctx.decode(np.zeros(depth - ctx.n_past(), np.int32))
            yield ctx.state_bytes()


@pytest.mark.parametrize("how", [{}, *(
    pytest.param(how, marks=pytest.mark.thorough)
    for how in ({"swa_full": True}, {"n_seq_max": 3}, {"kv_type": ("f32", "bf16")})
)], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.family not in NO_MEMORY])
def test_a_hollow_models_sizes_are_the_real_ones(tmp_path, kind, how):
    path = write(kind, tmp_path / "m.gguf")
    assert hollow(path, DEPTHS, **how).state_bytes == list(real_sizes(path, **how))
    for n_ctx in (1, 1500):
        with lab.load_model(path, n_gpu_layers=0) as model, model.context(n_ctx, **how) as ctx:
            said = lab.context_bytes(path, n_ctx, **how)
            # Where no formula is known, a context says what llama.cpp logs: of each cache to 0.01 MiB.
            assert said == ctx.nbytes if model.sized else abs(said - ctx.nbytes) < 0.02 * 2**20


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.family in NO_MEMORY])
def test_what_keeps_no_state_is_refused(tmp_path, kind):
    with pytest.raises(lab.SwarmKVError, match="it ended with 1"):
        lab.snapshot_bytes(write(kind, tmp_path / "m.gguf"), 10)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_formula_is_what_a_hollow_model_says(tmp_path, shape):
    shape, path = SHAPES[shape], write_twin(tmp_path / "m.gguf", SHAPES[shape])
    said = hollow(path, DEPTHS, n_seq_max=3)
    assert said.state_bytes == [shape.snapshot_bytes(n) for n in DEPTHS]
    assert said.window == shape.window
    assert said.windowed == [layer for layer, swa in enumerate(shape.swa) if swa]


def test_which_layers_have_a_window_llama_cpp_says(tmp_path):
    """Of a header that does not: every second layer of gpt-oss."""
    path = write("gpt-oss", tmp_path / "m.gguf")
    shape = lab.geometry(path)
    assert (shape.window, shape.swa) == (WINDOW, (True, False))
    with lab.load_model(path, n_gpu_layers=0) as model:
        (tmp_path / "other.gguf").write_bytes(gguf(*LOADS))
        (tmp_path / "other.gguf").replace(path)
        with pytest.raises(lab.ModelNotFoundError, match="another"):
            _ = model.geometry


def test_a_model_that_no_machine_holds():
    """Its cache has 17 GB: it is reserved, and nobody touches it."""
    shape = lab.geometry("llama-3.1-405b")
    assert lab.snapshot_bytes(cached_twin(shape), 131_072) == shape.snapshot_bytes(131_072) > 6e10
    assert lab.context_bytes(cached_twin(shape), 131_072) == shape.cache_bytes(131_072) > 6e10


@pytest.mark.parametrize(("kind", "period", "step"), [
    ("gpt-oss", 256, 16), ("qwen35", 256, 16), pytest.param("llama4", 8192, 512, marks=pytest.mark.thorough),
])  # fmt: skip
def test_many_tokens_are_told_from_fewer_where_sizes_grow_evenly(tmp_path, monkeypatch, kind, period, step):
    path, depths = write(kind, tmp_path / "m.gguf"), [5 * period + 1, 6 * period - 3]
    direct = hollow(path, depths).state_bytes
    for name, value in {"MEASURED": 4 * period, "PERIOD": period, "_STEP": step}.items():
        monkeypatch.setattr(hollows, name, value)
    assert [lab.snapshot_bytes(path, n) for n in depths] == direct


def test_a_window_longer_than_what_is_measured_is_not_guessed(tmp_path, monkeypatch):
    path = write_twin(tmp_path / "m.gguf", lab.KVGeometry(2, 1, 32, 32, 4096, 700, (True, False)))
    for name, value in {"MEASURED": 512, "PERIOD": 128, "_STEP": 32}.items():
        monkeypatch.setattr(hollows, name, value)
    with pytest.raises(lab.SwarmKVError, match="2,000 tokens"):
        lab.snapshot_bytes(path, 2000)


def test_a_header_without_weights_is_enough_and_asked_once(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(*LOADS))
    assert lab.snapshot_bytes(path, 300) == lab.geometry(path).snapshot_bytes(300)
    monkeypatch.setattr(hollows, "_asked_program", None)
    assert lab.snapshot_bytes(path, 300) == lab.geometry(path).snapshot_bytes(300)


ARRAYS = ("tokenizer.ggml.tokens", 9, (8).to_bytes(4, "little") + (70_000).to_bytes(8, "little") + 70_000 * (
    (3).to_bytes(8, "little") + b"abc"))  # fmt: skip
FAILS = {
    "an unknown architecture": (gguf(text_pair("general.architecture", "of next year"), *WHOLE[1:]), "of next year"),
    "no vocabulary": (gguf(*WHOLE), "ended with 1"),
    "no heads": (gguf(*LOADS, u32("llama.attention.head_count_kv", 3)), "ended with"),
    "no architecture": (gguf(*WHOLE[1:]), "ended with"),
    "an abort": (gguf(*LOADS[:3], u32("llama.embedding_length", 0), *LOADS[4:]), "ended with"),
    "600 layers": (gguf(ARCH, u32("llama.block_count", 600), *LOADS[2:]), "ended with"),
    "more memory than there is": (
        gguf(*LOADS, u32("llama.attention.key_length", 2**31), u32("llama.attention.value_length", 2**31)),
        "ended with",
    ),
    "a second part": (gguf(*LOADS, ("split.no", 2, b"\1\0"), ("split.count", 2, b"\2\0")), "number 1 of 2"),
    "half a vocabulary": (gguf(*LOADS, (ARRAYS[0], 9, ARRAYS[2][:-5])), "early"),
}


@pytest.mark.parametrize("name", FAILS)
def test_what_llama_cpp_does_not_load_or_dies_of_is_one_error(tmp_path, name):
    data, message = FAILS[name]
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(lab.SwarmKVError, match=message):
        lab.snapshot_bytes(tmp_path / "m.gguf", 10)


@pytest.mark.parametrize("drafts", [0, 1])
def test_layers_for_drafts_have_no_cache(tmp_path, drafts):
    """Also of an architecture for whose drafts llama.cpp makes no tensors without a file (bailingmoe2)."""
    experts = {"count": 2, "used_count": 1, "feed_forward_length": 8, "shared_count": 1, "weights_scale": 1.0}
    header = {"embedding_length": 64, "context_length": 4096, "block_count": 2 + drafts, "expert_gating_func": 2} | {
        "nextn_predict_layers": drafts, "leading_dense_block_count": 1, "attention.head_count": 4,
        "attention.head_count_kv": 2, **{f"expert_{key}": n for key, n in experts.items()},
    }  # fmt: skip
    path = tmp_path / "m.gguf"
    write_header(path, "bailingmoe2", header)
    assert lab.snapshot_bytes(path, 100) == lab.geometry(path).snapshot_bytes(100)
    assert lab.geometry(path).n_layer == 2


def test_a_program_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(gguf(*LOADS, u32("llama.rope.dimension_count", 8)))
    monkeypatch.setattr(hollows, "_TIMEOUT_S", 0.01)
    with pytest.raises(lab.SwarmKVError, match=r"within 0\.01 s"):
        lab.snapshot_bytes(tmp_path / "m.gguf", 10)


def test_a_loaded_model_without_a_formula_and_its_measure(tmp_path):
    path = write("qwen35", tmp_path / "m.gguf")
    with lab.load_model(path, n_gpu_layers=0) as model:
        assert not model.sized
        assert lab.snapshot_bytes(model, 50) == lab.snapshot_bytes(path, 50)
        for source in (model, path):
            assert measure_kv(source, 50, n_gpu_layers=0)["difference"] == 0


# -- models of today, without their files


@pytest.mark.parametrize("name", headers())
def test_a_published_header_has_a_size_and_a_source(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path))
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", headers()[name]["source"])
    assert name not in catalogue().index
    few, many = hollow(header_path(name), [200, 2000]).state_bytes
    assert 0 < few < many < 10 * few
    assert read_header(header_path(name))["general.architecture"] == headers()[name]["architecture"]
    with pytest.raises(lab.SwarmKVError, match=name):
        lab.geometry(name)


def test_gemma_4_31b_as_anybody_counts_it():
    """Ten layers keep all tokens in 4 heads of 512, fifty a window of 1,024 in 16 of 256; and cells' heads."""
    rows = 10 * 4 * 512 * 2 * 2 * 8192 + 50 * 16 * 256 * 2 * 2 * 1024
    assert lab.snapshot_bytes("gemma-4-31b", 8192) == rows + 12 * (8192 + 1024) + 24 * 60 + 24 + 16


# -- behind a URL


class Server(BaseHTTPRequestHandler):
    """Serves one file as ``how`` says; ``asked`` gets the ranges, and the bytes that were sent."""

    def __init__(self, data, how, asked, *args):
        self.data, self.how, self.asked = data, how, asked
        super().__init__(*args)

    def do_GET(self):
        if self.path != "/m.gguf":
            self.send(302, {"Location": "/m.gguf"})
            return
        self.asked.append(self.headers.get("Range"))
        data = {"nothing": b"", "half": self.data[:-9], "another part": self.data[5:]}.get(self.how, self.data)
        if self.how == "no ranges":
            self.send(200, {"Content-Length": str(2**40)}, data)
            return
        said = {"Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}", "Content-Length": str(len(data))}
        self.send(404 if self.how == "absent" else 206, said, data)

    def send(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        step = 1 << 16
        with contextlib.suppress(OSError):  # who asked has heard enough
            for at in range(0, len(body), step):
                self.wfile.write(body[at : at + step])
                self.asked.append(at + step)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """serve(data, how): the URL of a server on loopback, and what it was asked."""
    servers = []

    def start(data, how="ranges"):
        asked = []
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, data, how, asked)))
        threading.Thread(target=servers[-1].serve_forever, args=[0.01], daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/m.gguf", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_of_a_url_the_header_alone_is_fetched(tmp_path, serve, capsys):
    header = gguf(*LOADS, ARRAYS)
    (tmp_path / "m.gguf").write_bytes(header)
    url, asked = serve(header + bytes(50_000_000))
    assert read_gguf(url) == read_gguf(tmp_path / "m.gguf")
    assert asked[0] == f"bytes=0-{gguf_header.MOST_BYTES - 1}"
    assert asked[-1] < 30_000_000  # what the system's buffers hold
    assert lab.geometry(url) == lab.geometry(tmp_path / "m.gguf")
    assert main(["size", url, "--tokens", "300"]) in (0, 2)  # that vocabulary is no real one
    assert sum(isinstance(one, str) for one in asked) == 1
    (tmp_path / "m.gguf").write_bytes(gguf(*LOADS))
    for how in ("ranges", "no ranges"):
        url = serve(gguf(*LOADS), how)[0].replace("m.gguf", "elsewhere")
        assert main(["size", url, "--tokens", "300"]) == 0
        assert f"{lab.geometry(tmp_path / 'm.gguf').snapshot_bytes(300):,}" in capsys.readouterr().out


@pytest.mark.parametrize(("how", "number"), [
    ("half", "6 bytes"), ("another part", "GGUF"), ("absent", "404"), ("nothing", "4 bytes"),
])  # fmt: skip
def test_a_server_that_gives_no_header(serve, how, number):
    with pytest.raises(lab.ModelNotFoundError, match=number):
        lab.snapshot_bytes(serve(gguf(*LOADS, ARRAYS), how)[0], 10)


def test_a_header_without_an_end_is_not_fetched_for_ever(serve, monkeypatch):
    monkeypatch.setattr(gguf_header, "MOST_BYTES", 1 << 16)
    url, asked = serve(gguf(*LOADS, ARRAYS) + bytes(50_000_000))
    with pytest.raises(lab.ModelNotFoundError, match="65,536"):
        lab.snapshot_bytes(url, 10)
    assert asked[0] == "bytes=0-65535"


@pytest.mark.parametrize(
    "url", ["http://", "http://127.0.0.1:1/m.gguf", "https://[::1", "HTTP://nowhere.invalid/m.gguf"]
)
def test_a_url_that_leads_nowhere(url):
    with pytest.raises(lab.ModelNotFoundError):
        lab.snapshot_bytes(url, 10)
