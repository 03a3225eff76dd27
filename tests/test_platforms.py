"""Every laptop: what Windows and macOS do differently, forced here branch by branch, and hostile paths and numbers."""

import ctypes
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from conftest import ROOT, SHAPES, needs
from test_models import cache as cache  # an empty cache folder, and a wheel of ours for the default model

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab import files
from swarmkv_lab.llama import api, loading, weights
from swarmkv_lab.llama.api import Device
from swarmkv_lab.snapshot import prefix_cache
from swarmkv_studies.cli import main
from swarmkv_studies.common import twins
from swarmkv_studies.llama_guard import guards
from swarmkv_studies.peers import build

NAME = "doc.kv.safetensors"
METAL = Device("MTL0", "Apple M2", 1, "MTL")
CUDA = Device("CUDA0", "NVIDIA H100", 1, "CUDA")
INTEGRATED = Device("Vulkan0", "Intel Iris Xe", 2, "Vulkan")
CPU = Device("CPU", "a processor", 0, "CPU")


def is_open(path) -> bool:
    """Whether this process has the file open or mapped."""
    with os.scandir("/proc/self/fd") as handles:
        held = [os.readlink(handle.path) for handle in handles if os.path.lexists(handle.path)]
    held += [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    return os.path.realpath(path) in held


@pytest.fixture
def windows(monkeypatch):
    """Windows' rule: a file that is open is neither replaced, renamed nor removed. And there are no locks."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("open files are found in /proc; on Windows itself the other tests are enough")

    def refusing(call):
        def checked(*paths, **how):
            for path in paths:
                if isinstance(path, str | os.PathLike) and is_open(path):
                    raise PermissionError(errno.EACCES, "Access is denied", str(path))
            return call(*paths, **how)

        return checked

    for name in ("replace", "rename", "unlink", "remove"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "_PAUSES_S", (0.001, 0.001))
    monkeypatch.delattr(os, "O_NONBLOCK")
    return refusing


@pytest.fixture
def snapshot(twin, document):
    return lab.prefill(twin, document, progress=False)


# -- a file that is open


def test_the_rule_itself_is_kept_here(windows, tmp_path):
    path = tmp_path / "file"
    with path.open("w"):
        for call in (path.unlink, lambda: path.rename(tmp_path / "other"), lambda: os.replace(tmp_path / "x", path)):
            with pytest.raises(PermissionError):
                call()
    path.unlink()


def test_a_snapshot_is_saved_overwritten_and_loaded(windows, snapshot, twin, document, tmp_path):
    snapshot.save(tmp_path / NAME)
    assert len(lab.KVSnapshot.load(tmp_path / NAME, twin).tokens) == 300
    shorter = lab.prefill(twin, document[:100], progress=False)
    for _ in range(2):
        shorter.save(tmp_path / NAME)
    assert len(lab.KVSnapshot.load(tmp_path / NAME, twin).tokens) == 100
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_loaded_snapshot_holds_no_file(windows, snapshot, twin, tmp_path):
    snapshot.save(tmp_path / NAME)
    loaded = lab.KVSnapshot.load(tmp_path / NAME, twin)
    snapshot.save(tmp_path / NAME)
    (tmp_path / NAME).unlink()
    np.testing.assert_array_equal(loaded.copy().data, snapshot.data)


def test_the_prefix_cache_keeps_finds_and_evicts(windows, twin, document, tmp_path, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    for n in (100, 200, 300, 200):
        lab.prefill(twin, document[:n], cache=True, progress=False)
    assert list(prefix_cache.cached().tokens) == [200, 300, 100]
    (oldest,) = (path for path, n, _ in prefix_cache.cached_files() if n == 100)
    with oldest.open("rb"):  # another program reads it
        assert prefix_cache.evict(0) == 2
        assert main(["cache", "clear"]) == 2
    assert prefix_cache.evict(0) == 1


def test_a_damaged_cached_prefix_that_somebody_reads_is_not_used(windows, twin, document, tmp_path, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    lab.prefill(twin, document, cache=True, progress=False)
    ((path, *_),) = prefix_cache.cached_files()
    path.write_bytes(b"damaged")
    with path.open("rb"), pytest.warns(UserWarning, match="not used from the prefix cache") as warned:
        assert len(lab.prefill(twin, document, cache=True, progress=False).tokens) == 300
    assert any("could not keep the snapshot" in str(one.message) for one in warned)
    assert path.read_bytes() == b"damaged"


@pytest.mark.filterwarnings("ignore:this machine rounds")
def test_twins_the_default_model_and_exports_are_written(windows, cache, tmp_path, monkeypatch):
    from swarmkv_studies import sizing_explorer
    from swarmkv_studies.common.widgets import explorer

    shape = SHAPES["sliding window"]
    path = studies.twin(shape)
    before = path.read_bytes()
    path.write_bytes(b"damaged")
    assert studies.twin(shape).read_bytes() == before
    content = lab.model_path().read_bytes()
    for damage in (b"", b"damaged"):
        lab.model_path().write_bytes(damage)
        assert lab.model_path().read_bytes() == content
    monkeypatch.setattr(explorer, "RUNS", tmp_path / "runs")
    assert len(sizing_explorer().export()) == len(sizing_explorer().export()) == 3
    left = [path for path in tmp_path.rglob("*") if path.name.endswith(files._SUFFIX)]
    assert left == []


def test_a_sweep_is_saved_and_goes_on(windows, twin, document, tmp_path):
    path = tmp_path / "runs.csv"
    how = {"strategies": ["naive", "shared"], "agents": [[1, 2], [3]], "max_tokens": 2, "progress": False}
    studies.sweep(twin, document, depths=[64], n_agents=[2], repeats=1, path=path, **how)
    path.write_bytes(path.read_bytes()[:-5])  # a line that a kill has cut
    assert len(studies.sweep(twin, document, depths=[64], n_agents=[2], repeats=2, path=path, **how)) == 4
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["runs.csv", "runs.json"]


def test_a_reader_that_soon_closes_is_waited_for(windows, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    reader, waited = path.open(), []
    monkeypatch.setattr(time, "sleep", lambda s: waited.append(s) or (reader.close() if len(waited) == 2 else None))
    with files.replacing(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert len(waited) == 2


def test_a_reader_that_stays_is_said_and_the_old_file_stays(windows, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with path.open(), pytest.raises(lab.SwarmKVError) as error, files.replacing(path) as file:
        file.write(b"new")
    assert str(error.value) == (
        f"{path} could not be written: Access is denied (it may be open in another program); what was there is "
        "unchanged"
    )
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_error_in_the_middle_is_not_hidden_by_a_file_that_is_still_open(windows, tmp_path):
    left_open = []

    def fail(path):
        left_open.append(open(path, "rb"))  # noqa: SIM115 as a library would leave it
        return 1 / 0

    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "file") as file:
        fail(file.name)
    left_open[0].close()


# -- abandoned files


def abandoned(folder, age_s=0.0):
    path = folder / f".0123456789abcdef{files._SUFFIX}"
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_with_locks_an_abandoned_file_goes_at_once(tmp_path):
    pytest.importorskip("fcntl")
    path = abandoned(tmp_path)
    files.remove_abandoned(tmp_path)
    assert not path.exists()


def test_without_locks_only_an_old_one_goes(windows, tmp_path):
    """Between the closing and the renaming nothing holds a file that is in use."""
    path = abandoned(tmp_path)
    files.remove_abandoned(tmp_path)
    assert path.exists()
    abandoned(tmp_path, age_s=2 * files._RENAMED_WITHIN_S)
    with path.open("rb"):
        files.remove_abandoned(tmp_path)
        assert path.exists()
    files.remove_abandoned(tmp_path)
    assert not path.exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, code):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = abandoned(tmp_path, age_s=1e6)
    with files.replacing(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert path.exists()  # as nobody can know that it is abandoned


def test_the_lock_is_held_until_the_file_has_its_name(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    replace = os.replace

    def other_process_cleans_up(fresh, target):
        code = f"import pathlib; from swarmkv_lab import files; files.remove_abandoned(pathlib.Path({str(tmp_path)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
        assert Path(fresh).exists()
        replace(fresh, target)

    monkeypatch.setattr(os, "replace", other_process_cleans_up)
    with files.replacing(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_macos_flushes_to_the_drive_itself(tmp_path, monkeypatch):
    calls = []
    mac = types.SimpleNamespace(F_FULLFSYNC=51, fcntl=lambda file, call: calls.append(call), LOCK_EX=2, LOCK_NB=4)
    mac.flock = lambda *_args: None
    monkeypatch.setattr(files, "fcntl", mac)
    with files.replacing(tmp_path / "file") as file:
        file.write(b"new")
    assert calls == [51]


def test_a_folder_that_cannot_be_flushed(tmp_path, monkeypatch):
    opened = os.open

    def refuse_folders(path, *how, **more):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Access is denied")
        return opened(path, *how, **more)

    monkeypatch.setattr(os, "open", refuse_folders)
    with files.replacing(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


# -- processors, devices, programs


def test_threads_without_affinity_are_the_physical_cores(monkeypatch):
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert api.default_threads() == 4


def test_threads_are_no_more_than_the_process_may_use(monkeypatch):
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda _self: [3], raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: None)
    assert api.default_threads() == 1


@pytest.mark.parametrize(("said", "expected"), [("4\n", 4), ("", 8)])  # an Intel Mac does not know the question
def test_threads_on_a_mac_are_the_fast_cores(monkeypatch, said, expected):
    api._fast_cores.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_how: types.SimpleNamespace(stdout=said))
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert api.default_threads() == expected
    api._fast_cores.cache_clear()


def test_llama_cpp_says_which_devices_there_are():
    import llama_cpp

    found = api.devices()
    assert any(device.kind == 0 and device.name == device.backend == "CPU" and device.description for device in found)
    assert bool(api.gpus()) == llama_cpp.llama_supports_gpu_offload()


@pytest.mark.parametrize(
    ("found", "used"),
    [([CPU], []), ([CPU, INTEGRATED], [INTEGRATED]), ([METAL, CPU], [METAL]), ([INTEGRATED, CUDA, CPU], [CUDA])],
)
def test_layers_go_to_gpus_or_else_to_an_integrated_one(monkeypatch, found, used):
    monkeypatch.setattr(api, "devices", lambda: found)
    assert api.gpus() == used


@pytest.mark.parametrize("device", [METAL, CUDA, INTEGRATED])
def test_a_gpu_without_memory_of_its_own_takes_the_machines(twin, monkeypatch, device):
    monkeypatch.setattr(weights, "gpus", lambda: [device])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1000))
    with lab.load_model(twin.path) as model:
        assert model.on_gpu
        if device is CUDA:
            model.context(256).close()
        else:
            with pytest.raises(lab.ContextBudgetError, match="1,000 are available"):
                model.context(256)


def test_flash_attention_follows_the_device_that_is_used(twin, monkeypatch):
    monkeypatch.setattr(weights, "gpus", lambda: [METAL])
    for n_gpu_layers, on_gpu in ((-1, True), (1, True), (0, False)):
        with lab.load_model(twin.path, n_gpu_layers=n_gpu_layers) as model, model.context(256) as ctx:
            assert (model.on_gpu, ctx.flash_attn) == (on_gpu, on_gpu)


def test_no_layers_on_the_gpu_means_that_llama_cpp_is_given_no_gpu(twin, monkeypatch):
    """Otherwise it would compute large batches there all the same."""
    lists, load = [], weights.llama_cpp.llama_model_load_from_file

    def spy(path, params):
        lists.append(params.devices and ctypes.c_void_p.from_address(params.devices).value is None)
        return load(path, params)

    monkeypatch.setattr(weights.llama_cpp, "llama_model_load_from_file", spy)
    monkeypatch.setattr(weights, "gpus", lambda: [METAL])
    for n_gpu_layers in (0, -1):
        lab.load_model(twin.path, n_gpu_layers=n_gpu_layers).close()
    assert lists == [True, None]


@pytest.mark.parametrize("n", [-2, 2**31, 10**5000, 1.5, "all"], ids=["-2", "2**31", "10**5000", "1.5", "all"])
def test_impossible_numbers_of_layers(twin, n):
    with pytest.raises(lab.SwarmKVError, match="n_gpu_layers="):
        lab.load_model(twin.path, n_gpu_layers=n)


@pytest.mark.parametrize(
    "where", ["bin/llama-server", "bin/llama-server.exe", "bin/Release/llama-server.exe", "bin/Release/llama-server"]
)
def test_a_program_is_found_where_each_of_cmakes_generators_puts_it(tmp_path, monkeypatch, where):
    monkeypatch.setattr(build, "_folder", lambda: tmp_path)
    with pytest.raises(lab.SwarmKVError, match="llama-server is not built"):
        build.program("llama-server")
    (tmp_path / where).parent.mkdir(parents=True)
    (tmp_path / where).touch()
    assert build.program("llama-server") == tmp_path / where


def test_programs_are_built_in_release_also_by_visual_studio(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(build, "_folder", lambda: tmp_path / "built")
    monkeypatch.setattr(build, "_sources", lambda folder: folder)
    monkeypatch.setattr(build, "_run", commands.append)
    build.build()
    _, compile_ = commands
    assert compile_[compile_.index("--config") + 1] == "Release"


def test_threads_without_a_guard_need_no_alarm(monkeypatch):
    """On Windows there is no SIGALRM, and a crash is no negative status."""
    monkeypatch.delattr(signal, "SIGALRM", raising=False)
    monkeypatch.delattr(signal, "alarm", raising=False)
    for status, said, words in (
        (1, "Timeout (0:00:10)!\nThread 0x1 (most recent call first):\n", "it hung, and was ended after 10 s"),
        (3221225477, "", "it ended with status 3221225477: no output"),
    ):

        def run(*_args, status=status, said=said, stdout, **_how):
            stdout.write(said)
            return types.SimpleNamespace(returncode=status)

        monkeypatch.setattr(subprocess, "run", run)
        model = types.SimpleNamespace(path="m.gguf")
        assert guards.without_guard(model, np.arange(3), [np.arange(2)]) == words


# -- the console


def test_one_way_to_start_it():
    done = subprocess.run([sys.executable, "-m", "swarmkv_lab", "size", "gpt-9"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("swarmkv-lab: 'gpt-9' is neither")
    assert len(done.stderr.splitlines()) == 1


def test_a_console_of_code_page_1252(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(lab, "describe", lambda _file: {"model_name": "3 \u00d7 4 \u2192 12"}, raising=False)
    assert main(["inspect", "file"]) == 0
    assert b"3 \xd7 4 \\u2192 12" in out.buffer.getvalue()


def test_a_reader_that_goes_away_and_a_disk_that_is_full():
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

    def into(out):
        command = [sys.executable, "-m", "swarmkv_lab", "size", "qwen2.5-7b"]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, env=env)
        return done.returncode, done.stderr

    reader, writer = os.pipe()
    os.close(reader)
    status, said = into(writer)
    os.close(writer)
    assert status in (1, 2)  # Windows has no error of its own for it
    assert len(said.splitlines()) == status - 1
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            assert into(full) == (2, "swarmkv-lab: [Errno 28] No space left on device\n")


# -- hostile paths and numbers

HUGE = "9" * 4000
LONG = "x" * 5000


def refused(capsys, *arguments) -> str:
    """The one line that a command says, which ends with status 2."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("swarmkv-lab: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Paths that are no regular file."""
    (tmp_path / "file").write_text("text")
    found = [tmp_path, tmp_path / "file" / "below", tmp_path / LONG, "a\0b", "\ud800", "~nobody-here/x", ""]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        found += [tmp_path / "fifo", tmp_path / "loop", Path(os.devnull), Path("/dev/zero")]
    return found


@pytest.mark.parametrize(
    "command",
    [
        ["model", "PATH"],
        ["size", "PATH"],
        ["inspect", "PATH"],
        ["pipeline", "PATH", "--model", "TWIN"],
        ["ask", "PATH", "Why?", "--model", "TWIN"],
        ["prefill", "--out", "x", "--document", "PATH", "--model", "TWIN"],
        ["prefill", "--out", "x", "--model", "PATH"],
        ["bench", "--depth", "8", "--document", "PATH", "--model", "TWIN"],
        ["bench", "--depth", "8", "--model", "PATH"],
        ["bench", "--depth", "8", "--json", "PATH", "--model", "TWIN"],
        ["pipeline", "dossier", "--model", "PATH"],
    ],
    ids=" ".join,
)
def test_no_path_ends_in_a_traceback(places, twin, capsys, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in places:
        if str(place) == "" and command[command.index("PATH") - 1] in ("model", "--model"):
            continue  # this is the default model
        refused(capsys, *({"PATH": place, "TWIN": twin.path}.get(word, word) for word in command))


@pytest.mark.parametrize("option", ["--depth", "--agents", "--repeats", "--max-tokens", "--threads", "--n-gpu-layers"])
@pytest.mark.parametrize("number", ["-2", "2147483648", HUGE], ids=["-2", "2**31", "4,000 digits"])
@pytest.mark.real
def test_no_number_ends_in_a_traceback(capsys, option, number):
    refused(capsys, "bench", "--depth", "8", option, number)


@pytest.mark.parametrize(
    "command",
    [
        ["size", "qwen2.5-7b", "--tokens", HUGE],
        ["size", "qwen2.5-7b", "--tokens", "-1", "--json", "-"],
        ["size", "qwen2.5-7b", "--tokens", "2147483647", "--measure"],
        ["size", "qwen2.5-7b", "--kv-type", LONG],
        ["pipeline", "dossier", "--n-gpu-layers", HUGE],
        ["prefill", "--out", "x", "--depth", HUGE],
        ["prefill", "--out", "x", "--depth", "8", "--threads", HUGE],
    ],
    ids=lambda command: " ".join(command)[:60],
)
@pytest.mark.real
def test_other_numbers(capsys, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, *command)


@pytest.mark.parametrize("number", ["9" * 5000, "1e9", "many"], ids=["5,000 digits", "1e9", "many"])
def test_what_argparse_itself_refuses(number, capsys):
    assert "--tokens: " in refused(capsys, "size", "qwen2.5-7b", "--tokens", number)


@pytest.mark.parametrize(
    "line",
    [
        f"tokens = {'9' * 5000}",
        f"tokens = 0x{'f' * 5000}",
        f"tokens = {10**4000}",
        "x = " + "[" * 5000,
        "tokens = -9223372036854775809",
    ],
    ids=["decimal", "hexadecimal", "4,001 digits", "brackets", "64 bits"],
)
def test_specs_with_absurd_values(twin, tmp_path, capsys, line):
    path = tmp_path / "spec.toml"
    path.write_text(f'document = "dossier"\n{line}\n[agents.a]\nprompt = "Who?"\n')
    refused(capsys, "pipeline", path, "--model", twin.path)


@pytest.mark.parametrize("document", [LONG, "a\0b", "~nobody-here/x"], ids=["long", "NUL", "nobody's"])
def test_documents_that_a_spec_cannot_mean(twin, tmp_path, capsys, document):
    path = tmp_path / "spec.toml"
    path.write_text(f'document = {json.dumps(document)}\n[agents.a]\nprompt = "Who?"\n')
    refused(capsys, "pipeline", path, "--model", twin.path)


@pytest.mark.parametrize("number", ["-1", "lots", "", "9" * 5000, "\u0669"], ids=["-1", "lots", "empty", "long", "9"])
def test_a_limit_that_is_no_number(monkeypatch, tmp_path, capsys, number):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv(prefix_cache.BYTES_VARIABLE, number)
    with pytest.raises(lab.SwarmKVError, match="it is a number of bytes"):
        prefix_cache.limit()


@pytest.mark.parametrize("make", ["file", "below a file", "long"])
def test_a_cache_variable_that_leads_to_no_folder(monkeypatch, tmp_path, capsys, make):
    (tmp_path / "file").write_text("text")
    folder = {"file": tmp_path / "file", "below a file": tmp_path / "file" / "x", "long": tmp_path / LONG}[make]
    monkeypatch.setenv(files.CACHE_VARIABLE, str(folder))
    monkeypatch.delenv(loading.MODEL_VARIABLE, raising=False)
    for command in (["cache", "list"], ["model"], ["size", "qwen2.5-7b", "--tokens", "8", "--measure"]):
        assert f"set {files.CACHE_VARIABLE} to a folder" in refused(capsys, *command)


def test_foreign_files_in_the_prefix_cache_are_left_alone(monkeypatch, twin, document, tmp_path, capsys):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    lab.prefill(twin, document, cache=True, progress=False)
    ((ours, *_),) = prefix_cache.cached_files()
    prefix, rest = ours.name.split("-", 1)
    foreign = ["a-b-c.kv.safetensors", f"{prefix}-many-x.kv.safetensors", f"{prefix}-{rest}.bak", "notes.txt"]
    for name in foreign:
        (prefix_cache.folder() / name).write_text("somebody's")
    folder = prefix_cache.folder() / f"{prefix}-{len(document) - 1:09d}-{'0' * 32}.kv.safetensors"
    folder.mkdir()
    np.testing.assert_array_equal(lab.prefill(twin, document, cache=True, progress=False).tokens, document)
    assert main(["cache", "list"]) == 0
    assert "1 snapshots" in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0
    assert sorted(path.name for path in prefix_cache.folder().iterdir()) == sorted([*foreign, folder.name])


@pytest.mark.parametrize("content", [b"", b"GGUF", b"somebody's"])
def test_a_twin_that_is_damaged_is_written_again(monkeypatch, tmp_path, content):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    path = studies.twin(SHAPES["one layer"])
    whole = path.read_bytes()
    path.write_bytes(content)
    assert studies.twin(SHAPES["one layer"]).read_bytes() == whole


def test_every_twin_is_known_again(monkeypatch, tmp_path):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    for shape in SHAPES.values():
        assert twins.is_twin(studies.twin(shape), shape)


@pytest.mark.parametrize("what", ["twin", "model"])
def test_a_folder_in_the_place_of_a_cached_file(cache, what):
    make = (lambda: studies.twin(SHAPES["one layer"])) if what == "twin" else lab.model_path
    path = make()
    path.unlink()
    path.mkdir()
    fetched = len(cache[1])
    with pytest.raises(lab.SwarmKVError, match="could not be written: it is a folder"):
        make()
    assert len(cache[1]) == fetched  # nothing is fetched that could not be kept


@needs(os, "mkfifo")
def test_saving_replaces_nothing_but_a_regular_file(snapshot, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "null").symlink_to(os.devnull)
    for path in (tmp_path / "fifo", tmp_path / "link", tmp_path / "null", Path(os.devnull)):
        with pytest.raises(lab.SwarmKVError, match="could not be written: it is not a regular file"):
            snapshot.save(path)
    assert not (tmp_path / "fifo").is_file()
    assert not Path(os.devnull).is_file()


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="this system has no /dev/stdout")
def test_stdout_is_no_place_for_a_file():
    code = "import sys; from swarmkv_lab.files import writable; writable('/dev/stdout')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "stdout could not be written: it is not a regular file" in done.stderr


@pytest.mark.parametrize("name", [LONG, "a\0b", "\ud800"], ids=["long", "NUL", "surrogate"])
def test_names_that_no_file_can_have(snapshot, twin, tmp_path, name):
    for call in (snapshot.save, lambda path: lab.KVSnapshot.load(path, twin), lab.load_document, lab.load_model):
        with pytest.raises(lab.SwarmKVError):
            call(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="names there have 255 characters of any kind")
def test_a_name_as_long_as_a_file_system_allows(snapshot, twin, tmp_path):
    path = tmp_path / ("\u20ac" * 85)  # 255 bytes
    snapshot.save(path)
    assert len(lab.KVSnapshot.load(path, twin).tokens) == 300


def test_a_text_file_of_a_windows_editor(tmp_path):
    (tmp_path / "mine.txt").write_bytes("\ufeffWho sells?\r\nWho buys?\r\n".encode())
    assert lab.load_document(tmp_path / "mine.txt") == "Who sells?\nWho buys?\n"


# -- the documented ways


def test_the_workflow_does_what_the_readme_says_on_three_systems():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "laptops.yml").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    systems, commands = set(), set()
    for job in workflow["jobs"].values():
        systems |= set(job["strategy"]["matrix"]["system"])
        commands |= {step["run"] for step in job["steps"] if "run" in step}
    assert {system.split("-")[0] for system in systems} == {"ubuntu", "macos", "windows"}
    for command in ("make reproduce", "make test", "python -m swarmkv_lab reproduce", "python -m pytest"):
        assert command in commands
        assert command in readme


def test_the_lab_works_without_what_windows_lacks(tmp_path):
    """A fresh process without fcntl, resource, fork, affinity and Unix' signals imports and runs everything."""
    code = (
        "import os, signal, sys\n"
        "import distributed, jupyter_server.serverapp, nbclient, platformdirs, psutil\n"  # which know their systems
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'):\n    sys.modules[name] = None\n"
        "for name in ('fork', 'sched_getaffinity', 'getuid', 'geteuid', 'mkfifo', 'O_NONBLOCK'):\n"
        "    hasattr(os, name) and delattr(os, name)\n"
        "for name in ('SIGALRM', 'SIGURG', 'SIGUSR1', 'SIGHUP', 'SIGXFSZ', 'alarm'):\n"
        "    hasattr(signal, name) and delattr(signal, name)\n"
        "import importlib, pkgutil, swarmkv_lab as lab\n"
        "for module in pkgutil.walk_packages(lab.__path__, 'swarmkv_lab.'):\n"
        "    module.name.endswith('__main__') or importlib.import_module(module.name)\n"
        "model = lab.load_model(studies.twin(lab.geometry('smollm2-135m')))\n"
        "snapshot = lab.prefill(model, list(range(200)), cache=True, progress=False)\n"
        "run = lab.fan_out(model, snapshot, [[1, 2], [3]], 'shared', max_tokens=2)\n"
        "print(len(run.answers))\n"
    )
    env = os.environ | {files.CACHE_VARIABLE: str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
