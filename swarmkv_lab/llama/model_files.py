"""A model's files: one GGUF, or all parts of a split one: which they are, and a hash of every byte of them."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from swarmkv_lab.errors import ModelNotFoundError, SwarmKVError
from swarmkv_lab.files import cache_folder, open_regular, reason, replacing
from swarmkv_lab.sizing.gguf_header import read_header

_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")
_LARGE = 1 << 26  # bytes; hashing less takes a few milliseconds, which need not be remembered
Version = tuple[tuple[int, int, int, int], ...]
"""of each part: device, inode, size, time of the last change"""


def parts_of(path: Path, header: Mapping[str, Any]) -> tuple[Path, ...]:
    """The files that llama.cpp loads for a GGUF: itself, or all parts of a split one, which its first part names.

    Raises ModelNotFoundError for another part than the first, or one that was renamed: llama.cpp finds none then.
    """
    n = header.get("split.count", 0)
    if n in (0, 1):
        return (path,)
    match = _PART.fullmatch(path.name)
    if not match or (int(match[2]), int(match[3])) != (1, n):
        raise ModelNotFoundError(f"{path} is a part of a model in {n!r:.20} files: give the first, ...-00001-of-N.gguf")
    return tuple(path.with_name(f"{match[1]}-{i:05d}-of-{n:05d}.gguf") for i in range(1, n + 1))


def version_of(parts: Sequence[Path]) -> Version:
    """What tells these files from others of their names. Raises ModelNotFoundError where one cannot be read."""
    version = []
    for path in parts:
        try:
            status = path.stat()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise ModelNotFoundError(f"{path} cannot be read: {error}") from error
        version.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(version)


def content_hash(path: Path, parts: Sequence[Path] = ()) -> str:
    """xxh3-128 of every byte of a model's files, in hexadecimal; parts: as parts_of gives them, where they are known.

    A large file's is remembered in the cache folder, by its inode, size and times of change.
    """
    digests = [_digest(part) for part in parts or parts_of(path, read_header(path))]
    return digests[0] if len(digests) == 1 else xxhash.xxh3_128_hexdigest("".join(digests))


def _digest(path: Path) -> str:
    try:
        with open_regular(path) as file:
            status = path.stat()
            numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            remembered = "-".join(f"{number:x}" for number in numbers)
            if status.st_size >= _LARGE:
                with suppress(OSError, SwarmKVError):
                    digest = (cache_folder("hashes") / remembered).read_text("ascii")
                    if re.fullmatch("[0-9a-f]{32}", digest):
                        return digest
            digest = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()  # type: ignore[arg-type]  # its stubs
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {reason(error)}") from error
    if status.st_size >= _LARGE:
        with suppress(SwarmKVError), replacing(cache_folder("hashes") / remembered) as out:
            out.write(digest.encode())
    return digest
