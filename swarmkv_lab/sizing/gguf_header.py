"""A GGUF's metadata and the shapes of its tensors, without its weights; safe for broken and hostile files."""

import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from swarmkv_lab.errors import ModelNotFoundError
from swarmkv_lab.files import open_regular, reason
from swarmkv_lab.sizing.remote import is_url, remote

MAX_ENTRIES = 1 << 16
MAX_STRING = 1 << 24  # bytes; the longest useful value, a chat template, has about 10 KB
MAX_ARRAY = 1 << 16  # longer arrays (the vocabulary's) are skipped, not kept
MAX_DIMENSIONS = 4  # ggml's GGML_MAX_DIMS
_STRING, _ARRAY = 8, 9
_What = TypeVar("_What")
# GGUF value types by number: uint8, int8, uint16, int16, uint32, int32, float32, bool, -, -, uint64, int64, float64
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Tensor(NamedTuple):
    """One tensor of a GGUF."""

    shape: tuple[int, ...]
    """as ggml has it: of a matrix (inputs, outputs), of experts' matrices (inputs, outputs, experts)"""
    kind: int
    """ggml's number for its type"""

    @property
    def n_bytes(self) -> int:
        """Bytes of its weights. Raises ModelNotFoundError for a type that is not known here."""
        try:
            block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(self.kind)]
        except ValueError as error:
            raise ModelNotFoundError(f"a tensor is of ggml's type {self.kind}, whose size is not known here") from error
        return int(math.prod(self.shape) // block * n_bytes)


def read_header(path: str | Path) -> dict[str, Any]:
    """The key-value pairs of a GGUF: numbers, text, and short arrays of numbers as lists. Other arrays are left out.

    path: of a file, or its http(s) URL. Raises ModelNotFoundError for anything that is not a whole, well-formed GGUF
    header (versions 2 and 3), and as ``remote``.
    """
    return _read(path, lambda reader: reader.header())


def read_gguf(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(the pairs as read_header gives them, the tensors by name). Raises as read_header."""
    return _read(path, lambda reader: (reader.header(), reader.tensors()))


def read_whole_header(path: str | Path) -> tuple[dict[str, Any], bytes]:
    """(the pairs as read_header gives them, all bytes in front of the weights). Raises as read_header.

    Of a model in several files the first one's header says all; another one's is refused.
    """
    return _read(path, lambda reader: reader.whole())


def made_header(pairs: Mapping[str, Any]) -> bytes:
    """A GGUF without tensors or a vocabulary, of (tables of) pairs; the architecture's name is not in their keys."""
    general = {"general.architecture": pairs["architecture"], "tokenizer.ggml.model": "no_vocab"}
    widths = {"vocab_size": 256, "feed_forward_length": 32, "expert_shared_feed_forward_length": 32}
    own = widths | {"attention.layer_norm_rms_epsilon": 1e-6} | _flat(pairs)
    del own["architecture"]
    whole = general | {f"{pairs['architecture']}.{key}": value for key, value in own.items()}
    packed = [_text(key) + struct.pack("<I", _kind(value)) + _value(value) for key, value in whole.items()]
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(packed)) + b"".join(packed)


def _flat(pairs: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for key, value in pairs.items():
        inner = _flat(value) if isinstance(value, Mapping) else None
        flat.update({key: value} if inner is None else {f"{key}.{name}": one for name, one in inner.items()})
    return flat


def _kind(value: Any) -> int:
    return {bool: 7, int: 4, float: 6, str: _STRING, list: _ARRAY}[type(value)]


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        return struct.pack("<IQ", _kind(value[0]), len(value)) + b"".join(map(_value, value))
    return _text(value) if isinstance(value, str) else struct.pack(f"<{_SCALARS[_kind(value)]}", value)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


class _File(Protocol):
    def read(self, n: int) -> bytes: ...
    def seek(self, offset: int, whence: int) -> int: ...
    def tell(self) -> int: ...


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[_File, int]]:
    """A file or URL to read from its beginning, and its bytes."""
    if is_url(path):
        file = remote(str(path))
        file.seek(0, os.SEEK_SET)
        yield file, file.size
    else:
        with open_regular(path) as local:
            yield local, os.fstat(local.fileno()).st_size


def _read(path: str | Path, what: "Callable[[_Reader], _What]") -> _What:
    try:
        with _opened(path) as (file, size):
            return what(_Reader(file, size))
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {reason(error)}") from error
    except _Malformed as error:
        raise ModelNotFoundError(f"{path} has no readable GGUF header: {error}") from error


class _Malformed(Exception):
    """The header is malformed; the message is the end of a sentence."""


class _Reader:
    """Reads the file in order, and checks every count against the file's size before it is used."""

    def __init__(self, file: _File, size: int) -> None:
        self.file = file
        self.size = size

    def header(self) -> dict[str, Any]:
        if (magic := self.take(4)) != b"GGUF":
            raise _Malformed(f"it begins with {magic!r}, not with b'GGUF'")
        if (version := self.scalar(4)) not in (2, 3):
            raise _Malformed(f"its version is {version}, only 2 and 3 are supported")
        self.n_tensors = self.scalar(10)
        if (count := self.scalar(10)) > MAX_ENTRIES:
            raise _Malformed(f"it claims {count:,} entries, more than {MAX_ENTRIES:,}")
        pairs = {}
        for _ in range(count):
            key = self.text()
            pairs[key] = self.value(self.scalar(4))
        return {key: value for key, value in pairs.items() if value is not None}

    def whole(self) -> tuple[dict[str, Any], bytes]:
        pairs = self.header()
        if part := pairs.get("split.no"):
            raise _Malformed(f"it is number {part} of {pairs.get('split.count')}, counted from 0: give number 0")
        self.tensors()
        end = self.file.tell()
        alignment = pairs.get("general.alignment")
        padding = -end % alignment if isinstance(alignment, int) and 0 < alignment <= MAX_ARRAY else -end % 32
        self.file.seek(0, os.SEEK_SET)
        return pairs, self.take(end) + bytes(padding)  # the weights begin after it

    def tensors(self) -> dict[str, Tensor]:
        """Those that follow the header, once that is read."""
        if self.n_tensors > MAX_ENTRIES:
            raise _Malformed(f"it claims {self.n_tensors:,} tensors, more than {MAX_ENTRIES:,}")
        return dict(self.tensor() for _ in range(self.n_tensors))

    def tensor(self) -> tuple[str, Tensor]:
        name, n_dims = self.text(), self.scalar(4)
        if n_dims > MAX_DIMENSIONS:
            raise _Malformed(f"{name:.40} has {n_dims:,} dimensions, more than {MAX_DIMENSIONS}")
        shape = tuple(self.scalar(10) for _ in range(n_dims))
        tensor = Tensor(shape, self.scalar(4))
        self.scalar(10)  # where its data begins
        return name, tensor

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        return self.array() if kind == _ARRAY else self.scalar(kind)

    def array(self) -> list[Any] | None:
        kind, count = self.scalar(4), self.scalar(10)
        if kind == _STRING:
            if count * 8 > self.left():
                raise _Malformed(f"it claims an array of {count:,} strings with {self.left():,} bytes left")
            read, seek, length = self.file.read, self.file.seek, struct.Struct("<Q").unpack
            left = self.left()  # counted here: a vocabulary has up to a million strings
            for _ in range(count):
                (n,) = length(read(8)) if left >= 8 else (left,)
                if (left := left - 8 - n) < 0:
                    raise _Malformed(f"it ends {-left:,} bytes early")
                seek(n, os.SEEK_CUR)
            return None
        width = struct.calcsize(self.code(kind))
        if count > MAX_ARRAY:
            self.skip(count * width)
            return None
        return list(struct.unpack(f"<{count}{self.code(kind)}", self.take(count * width)))

    def scalar(self, kind: int) -> Any:
        code = self.code(kind)
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        length = self.scalar(10)
        if length > MAX_STRING:
            raise _Malformed(f"it claims a string of {length:,} bytes, more than {MAX_STRING:,}")
        return self.take(length).decode("utf-8", "replace")

    def code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise _Malformed(f"it has a value of unknown type {kind}")
        return _SCALARS[kind]

    def left(self) -> int:
        return self.size - self.file.tell()

    def take(self, n: int) -> bytes:
        if n > self.left():
            raise _Malformed(f"it ends {n - self.left():,} bytes early")
        return self.file.read(n)

    def skip(self, n: int) -> None:
        if n > self.left():
            raise _Malformed(f"it ends {n - self.left():,} bytes early")
        self.file.seek(n, os.SEEK_CUR)
