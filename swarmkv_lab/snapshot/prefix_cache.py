"""The prefix cache: snapshots of what was prefilled before, in the lab's own folder, the longest prefix first."""

import json
import os
import re
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
from swarmkv_lab.snapshot.file import SnapshotHeader, reading
from swarmkv_lab.snapshot.identity import KVIdentity
from swarmkv_lab.snapshot.snapshot import KVSnapshot

BYTES_VARIABLE = "SWARMKV_CACHE_BYTES"
_NAME = re.compile(r"[0-9a-f]{16}-[0-9]{9,10}-[0-9a-f]{32}\.kv\.safetensors")  # other files are not ours


class PrefixCache:
    """The cached snapshots of one model and one way to prefill.

    served: those of a server, which reads prompts in batches with others: kept apart, as their last bits are their own.

    A file's name says all that is looked for: what it belongs to, its number of tokens and their hash. A file is there
    as a whole or not at all, so any number of processes can use the folder. Its time, set at each use, orders them.
    """

    def __init__(self, model: Model, settings: ContextSettings, served: bool = False) -> None:
        self.model, self.n_batch, self.served = model, settings.n_batch, served
        self.windowed = model.kind.window > 0 and not settings.swa_full
        # The batch's size and the instruction set are no part of a state's identity, but decide its numbers' last bits.
        asked = asdict(KVIdentity.of(model, settings)) | {"model_name": "", "n_batch": self.n_batch}
        about = [asked, build(), *(["served"] if served else [])]
        self.prefix = xxhash.xxh3_64_hexdigest(json.dumps(about, sort_keys=True).encode())

    def usable(self, n: int, n_tokens: int) -> int:
        """How many tokens of a cached n, which is at most n_tokens, can be gone on from to n_tokens.

        All of them where they are the same; otherwise whole batches, as other batches have other last bits. A window
        keeps no past, and from a running state one can only go on where it was captured.
        """
        whole_batches = 0 if self.windowed else n // self.n_batch * self.n_batch
        past_end = self.model.kind.recurrent and whole_batches < n
        return n if n == n_tokens else 0 if past_end else whole_batches

    def find(self, tokens: np.ndarray) -> KVSnapshot | None:
        """The snapshot of the longest prefix of the tokens that can be used, if there is any."""
        for path, n, _ in sorted(cached_files(), key=lambda file: file[1], reverse=True):
            if path.name == self.name(tokens[:n]) and self.usable(n, len(tokens)) and (found := self._load(path)):
                return found
        return None

    def all(self) -> Iterator[KVSnapshot]:
        """Its snapshots, the last used first."""
        mine = [path for path, *_ in cached_files() if path.name.startswith(f"{self.prefix}-")]
        return filter(None, map(self._load, reversed(mine)))

    def _load(self, path: Path) -> KVSnapshot | None:
        """The snapshot in a file, which is now the last used; None, with a warning, if it is of no use."""
        try:
            snapshot = KVSnapshot.load(path, self.model)
            if not (self.served or snapshot.identity.exact) or self.name(snapshot.tokens) != path.name:
                raise SnapshotCorruptError(f"{path.name} holds other tokens than its name says")
            _mark_used(path)
            return snapshot
        except SwarmKVError as error:
            if path.exists():  # else another process has evicted it just now
                useless = isinstance(error, SnapshotCorruptError | SnapshotMismatchError)
                done = "removed from" if useless and remove(path) else "not used from"
                warnings.warn(f"{done} the prefix cache: {error}", stacklevel=4)
            return None

    def keep(self, snapshot: KVSnapshot) -> None:
        """Write a snapshot, and remove the least recently used ones while all together are above the limit."""
        most, path = limit(), folder() / self.name(snapshot.tokens)
        try:
            if snapshot.nbytes > most:
                raise SwarmKVError(f"it has {snapshot.nbytes:,} bytes, and {BYTES_VARIABLE} allows {most:,}")
            snapshot.save(path)
            _mark_used(path)
        except SwarmKVError as error:  # the prefill itself has succeeded
            warnings.warn(f"the prefix cache could not keep the snapshot: {error}", stacklevel=3)
        evict(most, spare=path)

    def name(self, tokens: np.ndarray) -> str:
        """The name of these tokens' file, which says all that their snapshot depends on."""
        return f"{self.prefix}-{len(tokens):09d}-{xxhash.xxh3_128_hexdigest(tokens.data)}.kv.safetensors"


def folder() -> Path:
    """The folder of the cached snapshots, in the lab's cache folder."""
    return cache_folder("prefixes")


def limit() -> int:
    """The most bytes of all cached snapshots together: $SWARMKV_CACHE_BYTES, or 4 GiB."""
    text = os.environ.get(BYTES_VARIABLE, str(4 << 30))
    if not re.fullmatch("[0-9]{1,18}", text):
        raise SwarmKVError(f"{BYTES_VARIABLE}={text[:40]!r}: it is a number of bytes")
    return int(text)


def cached_files() -> list[tuple[Path, int, os.stat_result]]:
    """The cached snapshots' files, tokens, and status, the least recently used first."""
    files = []
    for path in folder().iterdir():
        with suppress(OSError):  # it has vanished meanwhile
            if _NAME.fullmatch(path.name) and path.is_file():
                files.append((path, int(path.name.split("-")[1]), path.stat()))
    return sorted(files, key=lambda file: file[2].st_mtime_ns)


def cached() -> pd.DataFrame:
    """What the cache holds, the last used first: file, model, tokens, bytes, used."""
    rows = []
    for path, n_tokens, status in reversed(cached_files()):
        model = "damaged"
        with suppress(SwarmKVError), reading(path) as (file, size):
            model = SnapshotHeader.read(file, size, path.name)[0].identity.model_name
        used = pd.Timestamp(status.st_mtime_ns, tz="UTC").floor("s")
        rows.append((path.name, model, n_tokens, status.st_size, used))
    return pd.DataFrame(rows, columns=["file", "model", "tokens", "bytes", "used"])


def evict(most: int, spare: Path | None = None) -> int:
    """Remove the least recently used files until at most that many bytes are left: how many files went."""
    files = cached_files()
    held, gone = sum(status.st_size for *_, status in files), 0
    for path, _, status in files:
        if held > most and path != spare and remove(path):  # Windows removes none that a process reads
            held, gone = held - status.st_size, gone + 1
    return gone


def _mark_used(path: Path) -> None:
    with suppress(OSError):  # evicted meanwhile, or a folder that is read-only: then it is as old as it was
        os.utime(path, ns=(time.time_ns(), time.time_ns()))
