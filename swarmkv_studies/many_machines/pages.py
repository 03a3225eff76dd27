"""Pages: a state cut into pieces of a batch's cells each, in a file that has the last one first.

Who reads such a file from its beginning has the end of the document first, and can compute the beginning meanwhile.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from swarmkv_lab.errors import SnapshotCorruptError, SwarmKVError, whole_number
from swarmkv_lab.files import replacing
from swarmkv_lab.llama.interrupt import LONG
from swarmkv_lab.snapshot.file import SnapshotHeader
from swarmkv_lab.snapshot.identity import KVIdentity
from swarmkv_lab.snapshot.snapshot import KVSnapshot
from swarmkv_lab.snapshot.state import SequenceState

_MAGIC = b"SWKVPAGE"
_BY_CELL = re.compile(r"[KV] of layer \d+|cells' positions and sequences")
"""the parts of a state that have something for each cell"""


def save_in_pages(snapshot: KVSnapshot, path: str | Path, page: int) -> None:
    """Write a file of pages of so many tokens each, for ``join``: the n_batch of the prefill.

    Magic, the length of the index, the index, and the pages, the last one first. The index and each page are records
    like a snapshot file's: a header, tokens, and bytes, all under checksums. The index has all tokens, and for each
    page its first token and the bytes of its record. Raises SwarmKVError with the reason, and for states that have less
    than all cells in every layer, in the order of their positions.
    """
    tokens, identity = snapshot.tokens, snapshot.identity
    state = snapshot.state()
    if state.geometry.window and not identity.swa_full:
        raise SwarmKVError(
            f"a snapshot of {identity.model_name} cannot be cut in pages: its layers with a window of "
            f"{state.geometry.window:,} do not hold all {len(tokens):,} tokens; capture it with swa_full=True"
        )
    if not np.array_equal(state.positions, np.arange(len(tokens))):
        raise SwarmKVError("the state's cells are not in the order of their positions, and cannot be cut in pages")
    starts = range(0, len(tokens), whole_number("page", page, LONG))
    records = [_record(identity, tokens[i : i + page], assembled([state], slice(i, i + page))) for i in starts]
    listed = [[start, sum(map(len, record))] for start, record in zip(starts, records, strict=True)]
    about = json.dumps({"page": page, "records": listed}).encode()
    index = _record(identity, tokens, np.frombuffer(about, np.uint8))
    with replacing(path) as file:
        file.write(_MAGIC + sum(map(len, index)).to_bytes(8, "little"))
        for record in (index, *reversed(records)):
            file.writelines(record)


class PageReader:
    """A file of pages: ``tokens``, ``identity`` and ``page`` (tokens of each), then the pages in turn.

    Raises SnapshotCorruptError where it is not as it was written.
    """

    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        self._file, self._name = file, name
        start = file.read(16)
        length = int.from_bytes(start[8:], "little")
        if start[:8] != _MAGIC or not 0 < length <= size - 16:
            raise self._corrupt("it does not begin as one")
        header, self.tokens = SnapshotHeader.read(file, length, name)
        self.identity = header.identity
        if self.identity.geometry is None:
            raise self._corrupt(f"the layout of {self.identity.architecture} is not known")
        self._geometry = self.identity.geometry
        try:
            about: dict[str, Any] = json.loads(bytes(header.read_state(file)))
            self.page: int = about["page"]
            self._lengths = [length for _, length in about["records"]]
            self._starts = [start for start, _ in about["records"]]
            expected = list(range(0, len(self.tokens), self.page))
        except (ValueError, TypeError, KeyError) as error:
            raise self._corrupt(f"its index cannot be read: {error!r}") from error
        if self._starts != expected or 16 + length + sum(self._lengths) != size:
            raise self._corrupt(f"its index does not fit its {size:,} bytes")

    def __iter__(self) -> Iterator[tuple[int, SequenceState]]:
        """(first token, state of the page's cells), the last page first."""
        for start, length in zip(reversed(self._starts), reversed(self._lengths), strict=True):
            header, tokens = SnapshotHeader.read(self._file, length, self._name)
            stop = min(start + self.page, len(self.tokens))
            if header.identity != self.identity or not np.array_equal(tokens, self.tokens[start:stop]):
                raise self._corrupt(f"the page from token {start:,} on belongs to another snapshot")
            state = SequenceState(header.read_state(self._file), self._geometry)
            if not np.array_equal(state.positions, np.arange(start, stop)):
                raise self._corrupt(f"the page from token {start:,} on has other positions")
            yield start, state

    def snapshot(self, states: Sequence[SequenceState]) -> KVSnapshot:
        """The snapshot of these states, one after another, which hold all of its tokens."""
        return KVSnapshot(assembled(states), self.tokens, self.identity)

    def _corrupt(self, what: str) -> SnapshotCorruptError:
        return SnapshotCorruptError(f"{self._name} is not a snapshot in pages as it was saved: {what}")


def assembled(states: Sequence[SequenceState], cells: slice = slice(None)) -> np.ndarray:
    """One state of the cells of several, one after another; or, of one, some of its cells: uint8 (nbytes,).

    Every layer of each must hold the same cells, all in one stream. Raises SnapshotCorruptError for other states.
    """
    layouts = [state.parts for state in states]
    if any(list(layout.part) != list(layouts[0].part) for layout in layouts):
        raise SnapshotCorruptError("the states to put together are laid out differently")
    pieces: list[np.ndarray] = []
    counts = [0] * len(states)
    transposed, elements = False, 0
    for row in zip(*(layout.itertuples(index=False) for layout in layouts), strict=True):
        part, value = row[0].part, row[0].value
        raw = [state.data[one.offset : one.offset + one.bytes] for state, one in zip(states, row, strict=True)]
        if part == "cells" and value:
            counts = [int(one.value) for one in row]
            n = sum(len(range(*cells.indices(count))) for count in counts)
            pieces.append(np.array([n], "<u4").view(np.uint8))
            continue
        if part == "values transposed":
            transposed = bool(value)
        elif part.endswith(": elements"):
            elements = int(value)
        if _BY_CELL.fullmatch(part):
            across = elements if transposed and part.startswith("V") else 1
            rows = [one.reshape(across, count, -1)[:, cells] for one, count in zip(raw, counts, strict=True)]
            pieces.append(np.concatenate(rows, axis=1).ravel())
        else:
            pieces.append(raw[0])
    return np.concatenate(pieces)


def _record(identity: KVIdentity, tokens: np.ndarray, data: np.ndarray) -> tuple[bytes, ...]:
    return SnapshotHeader.of(identity, tokens, data).render(), tokens.tobytes(), data.tobytes()
