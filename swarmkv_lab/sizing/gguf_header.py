"""A GGUF's metadata and the shapes of its tensors, without its weights; safe for broken and hostile files."""

import struct
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from gguf import GGUFValueType, GGUFWriter

from swarmkv_lab.errors import ModelNotFoundError
from swarmkv_lab.files import open_regular, reason

MOST_BYTES = 1 << 26  # a header with the largest vocabulary of today has about 20 MB
MAX_ENTRIES = 1 << 16
MAX_ARRAY = 1 << 16  # longer arrays (the vocabulary's) are skipped, not kept
MAX_DIMENSIONS = 4  # ggml's GGML_MAX_DIMS
_TIMEOUT_S = 10.0  # for a connection, and for the next bytes of it
_BLOCK = 1 << 18
_UINT32, _STRING, _ARRAY, _UINT64 = 4, 8, 9, 10
# GGUF value types by number: uint8, int8, uint16, int16, uint32, int32, float32, bool, -, -, uint64, int64, float64
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Header(NamedTuple):
    """What stands in front of a GGUF's weights."""

    pairs: dict[str, Any]
    """numbers, text, and short arrays of numbers as lists; other arrays are left out"""
    shapes: dict[str, tuple[int, ...]]
    """of the tensors, by name, as ggml has them: (inputs, outputs), of experts' matrices (inputs, outputs, experts)"""
    data: bytes
    """all of it"""


def read_header(path: str | Path) -> dict[str, Any]:
    """The key-value pairs of a GGUF. Raises as read_gguf."""
    return read_gguf(path).pairs


def read_gguf(path: str | Path) -> Header:
    """The header of a GGUF: of a file, or of its http(s) URL.

    Raises ModelNotFoundError for anything that is not a whole, well-formed GGUF header (versions 2 and 3) of at most
    MOST_BYTES. Also where a server does not answer, or has no such file.
    """
    return _read_remote(path) if is_url(path) else _read(path)


def write_header(path: Path, architecture: str, pairs: Mapping[str, Any]) -> None:
    """Write a GGUF without tensors or a vocabulary; the architecture's name is not in the pairs' keys."""
    widths = {"vocab_size": 256, "feed_forward_length": 32, "expert_shared_feed_forward_length": 32}
    with closing(GGUFWriter(path, architecture)) as writer:
        writer.add_tokenizer_model("no_vocab")
        for key, value in (widths | {"attention.layer_norm_rms_epsilon": 1e-6} | dict(pairs)).items():
            kind = GGUFValueType.UINT32 if type(value) is int else GGUFValueType.get_type(value)
            writer.add_key_value(f"{architecture}.{key}", value, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()


def _read(path: str | Path) -> Header:
    try:
        with _chunks(path) as chunks:
            return _Reader(chunks).header()
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {reason(error)}") from error
    except _Malformed as error:
        raise ModelNotFoundError(f"{path} has no readable GGUF header: {error}") from error


_read_remote = lru_cache(maxsize=4)(_read)  # it is not asked for again


def is_url(source: str | Path) -> bool:
    """Whether a model's source is an http or https URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


@contextmanager
def _chunks(path: str | Path) -> Iterator[Iterator[bytes]]:
    """The bytes of a file as they are asked for; at the block's end no more are fetched."""
    if not is_url(path):
        with open_regular(path) as file:
            yield iter(partial(file.read, _BLOCK), b"")
        return
    import httpx  # of a second's import it is a third, and hardly anybody asks for a URL

    asked = {"Range": f"bytes=0-{MOST_BYTES - 1}", "Accept-Encoding": "identity"}
    try:
        with httpx.stream("GET", str(path), headers=asked, follow_redirects=True, timeout=_TIMEOUT_S) as response:
            if not response.is_success:
                raise ModelNotFoundError(f"{path}: the server has no such file (it answered {response.status_code})")
            yield response.iter_raw()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error or type(error).__name__}") from error


class _Malformed(Exception):
    """The header is malformed; the message is the end of a sentence."""


class _Reader:
    """Reads a header in order; whatever it claims, no more than MOST_BYTES of it are held."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.data = bytearray()
        self.at = 0

    def header(self) -> Header:
        if (magic := self.read(4)) != b"GGUF":
            raise _Malformed(f"it begins with {magic!r}, not with b'GGUF'")
        if (version := self.scalar(_UINT32)) not in (2, 3):
            raise _Malformed(f"its version is {version}, only 2 and 3 are supported")
        n_tensors, n_pairs = self.scalar(_UINT64), self.scalar(_UINT64)
        if max(n_tensors, n_pairs) > MAX_ENTRIES:
            raise _Malformed(f"it claims {n_tensors:,} tensors and {n_pairs:,} pairs, more than {MAX_ENTRIES:,}")
        pairs = {self.text(): self.value(self.scalar(_UINT32)) for _ in range(n_pairs)}
        pairs = {key: value for key, value in pairs.items() if value is not None}
        shapes = {self.text(): self.shape() for _ in range(n_tensors)}
        alignment = pairs.get("general.alignment")
        padding = -self.at % (alignment if isinstance(alignment, int) and 0 < alignment <= MAX_ARRAY else 32)
        return Header(pairs, shapes, bytes(self.data[: self.at]) + bytes(padding))  # the weights begin after it

    def shape(self) -> tuple[int, ...]:
        if (n_dims := self.scalar(_UINT32)) > MAX_DIMENSIONS:
            raise _Malformed(f"a tensor has {n_dims:,} dimensions, more than {MAX_DIMENSIONS}")
        shape = tuple(self.scalar(_UINT64) for _ in range(n_dims))
        self.skip(4 + 8)  # its type, and where its data begins
        return shape

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        return self.array(self.scalar(_UINT32), self.scalar(_UINT64)) if kind == _ARRAY else self.scalar(kind)

    def array(self, kind: int, count: int) -> list[Any] | None:
        if kind == _STRING:
            for _ in range(count):
                self.skip(self.scalar(_UINT64))
            return None
        packed = struct.Struct(f"<{min(count, MOST_BYTES)}{self.code(kind)}")
        data = self.read(packed.size)
        return list(packed.unpack(data)) if count <= MAX_ARRAY else None

    def scalar(self, kind: int) -> Any:
        code = f"<{self.code(kind)}"
        return struct.unpack(code, self.read(struct.calcsize(code)))[0]

    def code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise _Malformed(f"it has a value of unknown type {kind}")
        return _SCALARS[kind]

    def text(self) -> str:
        return self.read(self.scalar(_UINT64)).decode("utf-8", "replace")

    def read(self, n: int) -> bytes:
        self.skip(n)
        return bytes(self.data[self.at - n : self.at])

    def skip(self, n: int) -> None:
        self.at += n
        if self.at > MOST_BYTES:
            raise _Malformed(f"it claims more than {MOST_BYTES:,} bytes")
        while self.at > len(self.data):
            if not (chunk := next(self.chunks, b"")):
                raise _Malformed(f"it ends {self.at - len(self.data):,} bytes early")
            self.data += chunk
