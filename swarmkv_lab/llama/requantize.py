"""Weight formats: a GGUF's weights turned into another format by llama.cpp's quantizer, once, in the cache folder."""

import hashlib
import re
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import llama_cpp

from swarmkv_lab.errors import SwarmKVError, not_one_of
from swarmkv_lab.files import cache_folder, open_regular, read_text, replacing
from swarmkv_lab.llama import quantizer
from swarmkv_lab.llama.api import default_threads
from swarmkv_lab.sizing.gguf_header import read_header

_NAMES = ["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0", "iq4_nl", "q3_k_m", "q2_k"]
WEIGHT_FORMATS: dict[str, int] = {"f32": llama_cpp.LLAMA_FTYPE_ALL_F32} | {
    name: getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name.upper()}") for name in _NAMES
}
"""Formats by name, and llama.cpp's numbers for them. Those that need an importance matrix are left out."""
SOURCE_KEY, SOURCE_SHA256_KEY = "swarmkv.source", "swarmkv.source_sha256"
_IN_A_NAME = re.compile(rf"[.-]({'|'.join(WEIGHT_FORMATS)})$", re.IGNORECASE)
_FALLBACK = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")
_MOST_TEXT = 127  # bytes of a text in llama.cpp's overrides


def requantized(source: Path, weights: str, *, progress: bool = True) -> Path:
    """The GGUF with the source's weights in another format, one of WEIGHT_FORMATS; written on first use.

    A source that is in this format is returned as it is. It lies in the cache folder, by the sha256 of its source,
    which its metadata names too (SOURCE_KEY, SOURCE_SHA256_KEY); its own stands beside it. The same source and format
    give the same bytes, with any number of threads. progress: say that it begins. Warns of tensors that the format
    cannot hold. Raises SwarmKVError if llama.cpp cannot make it.
    """
    if weights not in list(WEIGHT_FORMATS):
        raise SwarmKVError(f"weight format {not_one_of(weights, WEIGHT_FORMATS)}")
    if file_format(source) == weights:
        return source
    digest = sha256(source)
    target = requantized_path(source.name, digest, weights)
    if not is_whole(target):
        if progress:
            print(f"{source.name} is turned into {weights}, once", file=sys.stderr, flush=True)
        with replacing(target) as file:
            _quantize(source, Path(file.name), weights, digest)
        with replacing(_sum(target)) as file:
            file.write(f"{sha256(target)}  {target.name}\n".encode())
    return target


def file_format(path: Path) -> str | None:
    """The format that a GGUF's metadata names; None where it names none, or none of WEIGHT_FORMATS."""
    with suppress(SwarmKVError):
        number = read_header(path).get("general.file_type")
        return next((name for name, known in WEIGHT_FORMATS.items() if known == number), None)
    return None


def requantized_path(name: str, source_sha256: str, weights: str) -> Path:
    """Where the requantized file of a source of this name and sha256 lies, or will lie."""
    stem = _IN_A_NAME.sub("", name.removesuffix(".gguf"))
    return cache_folder(f"weights/{source_sha256[:16]}") / f"{stem}.{weights.upper()}.gguf"


def is_whole(path: Path) -> bool:
    """Whether a requantized file is there, and as it was written."""
    with suppress(OSError, SwarmKVError):
        return read_text(_sum(path)).split()[:1] == [sha256(path)]
    return False


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _quantize(source: Path, target: Path, weights: str, digest: str) -> None:
    named = source.name.encode()[:_MOST_TEXT].decode("utf-8", "ignore")
    command = [
        *(sys.executable, "-P", quantizer.__file__, str(source), str(target)),
        *(str(WEIGHT_FORMATS[weights]), str(default_threads())),
        *(f"{SOURCE_KEY}={named}", f"{SOURCE_SHA256_KEY}={digest}"),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
    if done.returncode:
        said = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
        raise SwarmKVError(f"llama.cpp's quantizer of {source.name} to {weights} ended with {done.returncode}: {said}")
    if fallback := _FALLBACK.search(done.stdout):
        about = f"{fallback[1]} of {fallback[2]} tensors of {source.name} are in a larger format than {weights}"
        warnings.warn(f"{about}: their rows are not multiples of 256, as llama.cpp's k formats need", stacklevel=4)
