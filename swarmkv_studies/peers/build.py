"""Build llama.cpp's own programs from the sources in llama-cpp-python's sdist: the same version that the lab runs."""

import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import cache_folder
from swarmkv_lab.llama.api import default_threads

# The last one makes a tiny model of every architecture.
PROGRAMS = ("llama-server", "test-llama-archs")
# As in the lab's own build: optimised for this machine's processor. Examples, TLS and the web page are left out.
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "LLAMA_BUILD_TESTS": "ON",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}


def program(name: str) -> Path:
    """The path of one of PROGRAMS. Raises SwarmKVError if it is not built yet."""
    for folder in (_folder() / "bin", _folder() / "bin" / "Release"):  # where cmake's Visual Studio generator puts it
        for path in (folder / name, folder / f"{name}.exe"):
            if path.is_file():
                return path
    raise SwarmKVError(f"{name} is not built: run make peers (a few minutes, once)")


def build() -> Path:
    """Fetch the sources and compile the programs into the lab's cache folder, unless they are there.

    Returns the folder. Raises SwarmKVError if a command is missing or fails.
    """
    target = _folder()
    with suppress(SwarmKVError):
        for name in PROGRAMS:
            program(name)
        return target
    target.mkdir(parents=True, exist_ok=True)
    (target / "CMakeCache.txt").unlink(missing_ok=True)  # of sources that were elsewhere, which cmake refuses
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".sources-") as folder:
        defined = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
        _run(["cmake", "-S", str(_sources(Path(folder))), "-B", str(target), *defined])
        threads = str(default_threads())
        _run(["cmake", "--build", str(target), "--config", "Release", "--parallel", threads, "--target", *PROGRAMS])
    return target


def _folder() -> Path:
    return cache_folder() / f"llama.cpp-{version('llama-cpp-python')}"


def _sources(folder: Path) -> Path:
    requirement = f"llama-cpp-python=={version('llama-cpp-python')}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    _run([*pip, requirement])
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("*/vendor/llama.cpp"))


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except FileNotFoundError as error:
        raise SwarmKVError(f"{command[0]} is needed to build llama.cpp's programs, but is not installed") from error
    if done.returncode:
        raise SwarmKVError(f"{' '.join(command[:2])} failed: {(done.stderr or done.stdout).strip()[-800:]}")
