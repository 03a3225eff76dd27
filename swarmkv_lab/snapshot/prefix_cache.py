"""The prefix cache: snapshots of what was prefilled before, in the lab's own folder, the longest prefix first."""

import json
import os
import re
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import xxhash

from swarmkv_lab.errors import SnapshotCorruptError, SnapshotMismatchError, SwarmKVError
from swarmkv_lab.files import cache_folder, remove
from swarmkv_lab.llama.api import build
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot import storage
from swarmkv_lab.snapshot.file import SnapshotHeader
from swarmkv_lab.snapshot.identity import KVIdentity
from swarmkv_lab.snapshot.snapshot import KVSnapshot

BYTES_VARIABLE = "SWARMKV_CACHE_BYTES"
_DEFAULT_BYTES = 4 << 30
_ENDING = ".kv.safetensors"
_NAME = re.compile(r"[0-9a-f]{16}-[0-9]{9,10}-[0-9a-f]{32}" + re.escape(_ENDING))  # other files are not ours


class PrefixCache:
    """The cached snapshots of one model and one way to prefill.

    A file's name says all that is looked for: what it belongs to, its number of tokens and their hash. There is no
    index to damage, and a file is there as a whole or not at all, so any number of processes can use the folder. The
    access time, set at each use, orders the eviction.
    """

    def __init__(self, model: Model, settings: ContextSettings) -> None:
        self.model = model
        windowed = model.sized and model.geometry.window and not settings.swa_full
        self.only_whole = bool(windowed)  # what a window has passed is not in the snapshot
        # The batch's size and the instruction set are no part of a state's identity, but decide its numbers' last bits.
        asked = {**asdict(KVIdentity.asked_for(model, settings)), "n_batch": settings.n_batch, "model_name": ""}
        asked["build"] = build()
        self.prefix = xxhash.xxh3_64_hexdigest(json.dumps(asked, sort_keys=True).encode())
        self.n_batch = settings.n_batch

    def usable(self, n: int, n_tokens: int) -> int:
        """How many tokens of a cached n can be gone on from to n_tokens."""
        if n < n_tokens:
            return 0 if self.only_whole else n // self.n_batch * self.n_batch
        return n if n == n_tokens else 0

    def find(self, tokens: np.ndarray) -> KVSnapshot | None:
        """The snapshot of the longest prefix of the tokens that can be used, if there is any."""
        lengths = {_n_tokens(path) for path in cached_files() if path.name.startswith(self.prefix)}
        for n in sorted(lengths, reverse=True):
            if not self.usable(n, len(tokens)):
                continue
            path = self.path(tokens[:n])
            if not path.exists():
                continue
            try:
                snapshot = KVSnapshot.load(path, self.model)
                if not np.array_equal(snapshot.tokens, tokens[:n]):
                    raise SnapshotCorruptError(f"{path.name} holds other tokens than its name says")
            except (SnapshotCorruptError, SnapshotMismatchError) as error:
                done = "removed from" if remove(path) else "not used from"
                warnings.warn(f"{done} the prefix cache: {error}", stacklevel=4)
            except SwarmKVError as error:
                if path.exists():  # else another process has evicted it just now
                    warnings.warn(f"not used from the prefix cache: {error}", stacklevel=4)
            else:
                _stamp(path)
                return snapshot
        return None

    def keep(self, snapshot: KVSnapshot) -> None:
        """Write a snapshot, and remove the least recently used ones while all together are above the limit."""
        most = limit()
        path = self.path(snapshot.tokens)
        if snapshot.nbytes > most:
            warnings.warn(
                f"the prefix cache holds {most:,} bytes and the snapshot has {snapshot.nbytes:,}: it was not kept; set "
                f"{BYTES_VARIABLE}",
                stacklevel=4,
            )
            return
        try:
            snapshot.save(path)
            _stamp(path)
        except SwarmKVError as error:  # the prefill itself has succeeded
            warnings.warn(f"the prefix cache could not keep the snapshot: {error}", stacklevel=4)
        evict(most, spare=path)

    def path(self, tokens: np.ndarray) -> Path:
        """Where the snapshot of these tokens lies."""
        return folder() / self.name(tokens)

    def name(self, tokens: np.ndarray) -> str:
        """The name of their file, which says all that their snapshot depends on."""
        return f"{self.prefix}-{len(tokens):09d}-{xxhash.xxh3_128_hexdigest(tokens.data)}{_ENDING}"


def folder() -> Path:
    """The folder of the cached snapshots, in the lab's cache folder."""
    return cache_folder("prefixes")


def limit() -> int:
    """The most bytes of all cached snapshots together: $SWARMKV_CACHE_BYTES, or 4 GiB."""
    text = os.environ.get(BYTES_VARIABLE, str(_DEFAULT_BYTES))
    if not re.fullmatch("[0-9]{1,18}", text):
        raise SwarmKVError(f"{BYTES_VARIABLE}={text[:40]!r}: it is a number of bytes")
    return int(text)


def cached_files() -> list[Path]:
    """The cached snapshots' files."""
    return [path for path in folder().iterdir() if _NAME.fullmatch(path.name)]


def cached_bytes(name: str) -> bytes | None:
    """The bytes of a cached snapshot's file by its name, unchecked; None where there is none."""
    if not _NAME.fullmatch(name):
        return None
    with suppress(OSError):
        return (folder() / name).read_bytes()
    return None


def cached() -> pd.DataFrame:
    """What the cache holds, the last used first: file, model, tokens, bytes, used."""
    rows = []
    for path, status in _by_use():
        try:
            with storage.reading(path) as (file, size):
                model = SnapshotHeader.read(file, size, path.name)[0].identity.model_name
        except SwarmKVError:
            model = "damaged"
        used = pd.Timestamp(status.st_atime_ns, tz="UTC").floor("s")
        rows.append((path.name, model, _n_tokens(path), status.st_size, used))
    return pd.DataFrame(rows[::-1], columns=["file", "model", "tokens", "bytes", "used"])


def evict(most: int, spare: Path | None = None) -> int:
    """Remove the least recently used files until at most that many bytes are left: how many files went.

    A file that cannot be removed, as on Windows while a process reads it, stays until the next time.
    """
    files = _by_use()
    held = sum(status.st_size for _, status in files)
    gone = 0
    for path, status in files:
        if held <= most:
            break
        if path != spare and remove(path):
            held -= status.st_size
            gone += 1
    return gone


def _n_tokens(path: Path) -> int:
    return int(path.name.split("-")[1])


def _by_use() -> list[tuple[Path, os.stat_result]]:
    """Regular files with their status, the least recently used first; those that vanish meanwhile are left out."""

    def present() -> Iterator[tuple[Path, os.stat_result]]:
        for path in cached_files():
            with suppress(OSError):
                if stat.S_ISREG((status := path.stat()).st_mode):
                    yield path, status

    return sorted(present(), key=lambda entry: entry[1].st_atime_ns)


def _stamp(path: Path) -> None:
    """Mark a file as the last used, also when the clock has gone back. Its time of change stays."""
    files = _by_use()
    now = max(time.time_ns(), files[-1][1].st_atime_ns + 100 if files else 0)  # Windows counts in steps of 100 ns
    with suppress(OSError):  # evicted meanwhile, or a folder that is read-only: then it is as old as it was
        os.utime(path, ns=(now, path.stat().st_mtime_ns))
