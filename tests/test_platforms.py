"""What Windows and macOS do differently, forced here; files are whole or not there; names that no file can have."""

import ctypes
import errno
import os
import subprocess
import sys
import types
from unittest.mock import Mock

import llama_cpp
import psutil
import pytest
from conftest import ROOT, needs

import swarmkv_lab as lab
from swarmkv_lab import files
from swarmkv_lab.llama import api, loading
from swarmkv_lab.llama import model as model_file
from swarmkv_lab.llama.api import Device

METAL = Device("MTL0", "Apple M2", 1, "MTL")
CUDA = Device("CUDA0", "NVIDIA H100", 1, "CUDA")
INTEGRATED = Device("Vulkan0", "Intel Iris Xe", 2, "Vulkan")
CPU = Device("CPU", "a processor", 0, "CPU")

# -- files


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file").write_text("old")
    return tmp_path / "file"


def write(path):
    with files.replacing(path) as file:
        file.write(b"new")


def test_a_file_that_a_program_has_open_stays(path, monkeypatch):
    """Windows replaces none."""
    monkeypatch.setattr(os, "replace", Mock(side_effect=PermissionError(errno.EACCES, "Access is denied")))
    with pytest.raises(lab.SwarmKVError, match="Access is denied"):
        write(path)
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file"]


def test_ours_is_closed_before_it_is_renamed(path, monkeypatch):
    closed = []
    with files.replacing(path) as file:
        monkeypatch.setattr(os, "replace", lambda *_: closed.append(file.closed))
    assert closed == [True]


@needs(os, "mkfifo")
def test_nothing_but_a_regular_file_in_a_folder_that_is_there_is_written(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "below").mkdir()
    for name in ("", "fifo", "link", "loop", "below", "below/missing/file", "/proc/file", os.devnull):
        with pytest.raises(lab.SwarmKVError):
            write(tmp_path / name)
    assert list((tmp_path / "below").iterdir()) == []
    code = "import sys; from swarmkv_lab.files import writable; writable('/dev/stdout')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "it is not a regular file" in done.stderr


@pytest.mark.parametrize("below", ["file", "file/x", "x" * 5000], ids=["file", "below a file", "long"])
def test_a_cache_variable_that_leads_to_no_folder(monkeypatch, path, below):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(path.parent / below))
    monkeypatch.delenv(loading.MODEL_VARIABLE, raising=False)
    with pytest.raises(lab.SwarmKVError, match=files.CACHE_VARIABLE):
        lab.model_path()


# -- processors and devices


@pytest.mark.parametrize(("affinity", "physical", "sysctl", "expected"), [
    (None, 4, None, 4), ([3], None, None, 1), (None, 8, "4\n", 4), (None, 8, "", 8),  # "": an Intel Mac
])  # fmt: skip
def test_threads(monkeypatch, affinity, physical, sysctl, expected):
    api._fast_cores.cache_clear()
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda _self: affinity, raising=False)
    if affinity is None:
        monkeypatch.delattr(psutil.Process, "cpu_affinity")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: physical)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(sys, "platform", "linux" if sysctl is None else "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_how: types.SimpleNamespace(stdout=sysctl))
    assert api.default_threads() == expected
    api._fast_cores.cache_clear()


def test_layers_go_to_gpus_or_else_to_an_integrated_one(monkeypatch):
    found = {(CPU,): [], (CPU, INTEGRATED): [INTEGRATED], (METAL, CPU): [METAL], (INTEGRATED, CUDA, CPU): [CUDA]}
    for devices, used in found.items():
        monkeypatch.setattr(api, "devices", lambda devices=devices: list(devices))
        assert api.gpus() == used


@pytest.mark.parametrize("device", [METAL, CUDA, INTEGRATED])
def test_a_gpu_has_flash_attention_and_perhaps_the_machines_memory(twin, monkeypatch, device):
    monkeypatch.setattr(model_file, "gpus", lambda: [device])
    with lab.load_model(twin.path) as model, model.context(256) as ctx:
        assert (model.on_gpu, ctx.flash_attn) == (True, True)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1000))
        if device is CUDA:
            model.context(256).close()
        else:
            with pytest.raises(lab.ContextBudgetError, match="1,000"):
                model.context(256)


def test_no_layers_on_the_gpu_means_that_llama_cpp_is_given_no_gpu(twin, monkeypatch):
    """Otherwise it would compute large batches there all the same."""
    lists, load = [], llama_cpp.llama_model_load_from_file

    def spy(path, params):
        lists.append(params.devices and ctypes.c_void_p.from_address(params.devices).value is None)
        return load(path, params)

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", spy)
    monkeypatch.setattr(model_file, "gpus", lambda: [METAL])
    for n_gpu_layers in (0, -1):
        with lab.load_model(twin.path, n_gpu_layers=n_gpu_layers) as model, model.context(256) as ctx:
            assert ctx.flash_attn == model.on_gpu == (n_gpu_layers != 0)
    assert lists == [True, None]


WITHOUT = """
import os, signal, sys
import distributed, jupyter_server.serverapp, nbclient, platformdirs, psutil  # which know their systems
for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'):
    sys.modules[name] = None
for name in ('fork', 'sched_getaffinity', 'getuid', 'geteuid', 'mkfifo', 'O_NONBLOCK', 'register_at_fork'):
    hasattr(os, name) and delattr(os, name)
for name in ('SIGALRM', 'SIGURG', 'SIGUSR1', 'SIGHUP', 'SIGXFSZ', 'alarm', 'setitimer'):
    hasattr(signal, name) and delattr(signal, name)
import importlib, pkgutil, swarmkv_lab as lab, swarmkv_studies as studies
for package in (lab, studies):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
        module.name.endswith('__main__') or importlib.import_module(module.name)
model = lab.load_model(studies.twin(lab.geometry('smollm2-135m')))
snapshot = lab.prefill(model, list(range(200)), cache=True, progress=False)
run = lab.fan_out(model, snapshot, [[1, 2], [3]], 'shared', max_tokens=2)
print(len(run.answers))
"""


def test_the_lab_works_without_what_windows_lacks(tmp_path):
    """A fresh process without fcntl, resource, fork, affinity and Unix' signals imports and runs everything."""
    env = os.environ | {files.CACHE_VARIABLE: str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, cwd=ROOT, env=env)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
