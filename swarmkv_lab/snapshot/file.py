"""The snapshot file: safetensors with two tensors, ``tokens`` and ``kv``, and metadata that says what they belong to.

Eight bytes of header length, a JSON header, the tokens (int32), the state (uint8; it begins on a page). Every byte is
covered: the header is the one rendering of its contents; one checksum covers it and the tokens, another the state.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from operator import index
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from swarmkv_lab.errors import SnapshotCorruptError, SnapshotMismatchError, SwarmKVError
from swarmkv_lab.files import open_regular, reason
from swarmkv_lab.llama.api import require_memory
from swarmkv_lab.sizing.geometry import KVGeometry, is_quantized, kv_types
from swarmkv_lab.snapshot.identity import KVIdentity

FORMAT = "swarmkv-snapshot/2"
_MOST_HEADER = 1 << 20
_PAGE = 4096
_UNSEALED = "0" * 32
_MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, SwarmKVError)


@contextmanager
def reading(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """An open file and its size in bytes. Raises SwarmKVError with the reason where it cannot be read.

    It is read, not mapped: a mapped page that the file no longer has would end the process that touches it.
    """
    try:
        with open_regular(path) as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise SwarmKVError(f"{path} could not be read: {reason(error)}") from error


@dataclass(frozen=True)
class SnapshotHeader:
    """What a snapshot file says of itself: metadata, how many tokens, and how many bytes of state."""

    metadata: dict[str, str]
    n_tokens: int
    kv_bytes: int

    @classmethod
    def of(cls, identity: KVIdentity, tokens: np.ndarray, data: np.ndarray) -> "SnapshotHeader":
        """The header of a new file; the state is read once, for its checksum."""
        metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in asdict(identity).items()}
        metadata |= {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "checksum": xxhash.xxh3_128_hexdigest(data.data),
            "header_checksum": _UNSEALED,
        }
        header = cls(metadata, len(tokens), data.nbytes)
        metadata["header_checksum"] = header._seal(tokens)
        return header

    @classmethod
    def read(cls, file: BinaryIO, size: int, name: str) -> tuple["SnapshotHeader", np.ndarray]:
        """(header, tokens int32 (n,)) at the beginning of a file of so many bytes, which then stands at the state.

        Raises SnapshotCorruptError unless both are as they were saved. ``name``: the file's, for messages.
        """

        corrupt = f"{name} is not a snapshot as it was saved"
        raw = file.read(8)
        length = int.from_bytes(raw, "little")
        if len(raw) < 8 or not 2 <= length <= min(_MOST_HEADER, size - 8):
            raise SnapshotCorruptError(f"{corrupt}: it has {size:,} bytes and names a header of {length:,}")
        raw += file.read(length)
        try:
            parsed = json.loads(raw[8:])
            header = cls(parsed["__metadata__"], parsed["tokens"]["shape"][0], parsed["kv"]["shape"][0])
            counts = (header.n_tokens, header.kv_bytes)
            if not all(type(n) is int and n >= 0 for n in counts) or header.render() != raw:
                raise ValueError("not in canonical form")
            sealed, form = header.metadata["header_checksum"], header.metadata["format"]
            if not all(isinstance(text, str) for text in header.metadata.values()):
                raise ValueError("metadata that is not text")
        except _MALFORMED as error:
            raise SnapshotCorruptError(f"{corrupt}: no header ({type(error).__name__}: {str(error)[:60]})") from error
        if (end := len(raw) + 4 * header.n_tokens + header.kv_bytes) != size:
            raise SnapshotCorruptError(f"{corrupt}: it should have {end:,} bytes and has {size:,}")
        tokens = np.frombuffer(file.read(4 * header.n_tokens), "<i4")
        if len(tokens) != header.n_tokens or sealed != header._seal(tokens):
            raise SnapshotCorruptError(f"{corrupt}: the checksum of its header and tokens does not fit")
        if form != FORMAT:
            raise SnapshotMismatchError(f"{name} has the format {form!r}, and this lab reads {FORMAT!r}: prefill again")
        return header, tokens

    def read_state(self, file: BinaryIO) -> np.ndarray:
        """The state that follows, uint8 (kv_bytes,); SnapshotCorruptError unless it has the header's checksum."""
        require_memory(self.kv_bytes, "a snapshot's state")
        data = np.empty(self.kv_bytes, np.uint8)
        n_read = file.readinto(data.data)  # type: ignore[attr-defined]  # fewer where the file was cut meanwhile
        return self.checked(data[:n_read])

    def checked(self, data: np.ndarray) -> np.ndarray:
        """These bytes. Raises SnapshotCorruptError unless they have the header's checksum."""
        found = xxhash.xxh3_128_hexdigest(data.data)
        if data.nbytes != self.kv_bytes or found != self.metadata["checksum"]:
            said = self.metadata["checksum"]
            raise SnapshotCorruptError(f"a state was saved with the checksum {said} and has {found}: prefill again")
        return data

    def render(self) -> bytes:
        """The bytes at the beginning of the file, padded so that the state begins on a page."""
        start = 4 * self.n_tokens
        tensors = {
            "__metadata__": self.metadata,
            "tokens": {"dtype": "I32", "shape": [self.n_tokens], "data_offsets": [0, start]},
            "kv": {"dtype": "U8", "shape": [self.kv_bytes], "data_offsets": [start, start + self.kv_bytes]},
        }
        text = json.dumps(tensors, separators=(",", ":"), sort_keys=True).encode()
        text += b" " * (-(8 + len(text) + start) % _PAGE)
        return len(text).to_bytes(8, "little") + text

    @property
    def identity(self) -> KVIdentity:
        """What the state belongs to. Raises SnapshotCorruptError where the header does not say it."""
        try:
            said: dict[str, Any] = {}
            for one in fields(KVIdentity):
                text = self.metadata[one.name]
                said[one.name] = text if one.type is str else json.loads(text)
                if one.type in (int, bool) and type(said[one.name]) is not one.type:
                    raise TypeError(f"{one.name} is {text[:40]}")
            said["kv_type"] = kv_types(tuple(said["kv_type"]))
            if self.metadata.get("mixed") == "false" and any(map(is_quantized, said["kv_type"])):  # an older lab's
                raise ValueError("its quantized elements are not rotated, as $LLAMA_ATTN_ROT_DISABLE was set")
            if (shape := said["geometry"]) is not None:
                numbers: dict[str, Any] = {
                    name: tuple(n) if isinstance(n, list) else index(n) for name, n in shape.items()
                }
                said["geometry"] = KVGeometry(**numbers)
            identity = KVIdentity(**said)
            identity.settings  # noqa: B018 raises when no context can have them
            return identity
        except _MALFORMED as error:
            raise SnapshotCorruptError(f"the snapshot's header does not say what it belongs to: {error!r}") from error

    def _seal(self, tokens: np.ndarray) -> str:
        unsealed = SnapshotHeader(self.metadata | {"header_checksum": _UNSEALED}, self.n_tokens, self.kv_bytes)
        return xxhash.xxh3_128_hexdigest(unsealed.render() + tokens.tobytes())
