"""Prefixes: what the sequences of one cache hold, whose cells are whose, and what a new prompt can go on from.

A table of token arrays, compared one by one: 32 prompts of 8,192 tokens take 0.2 ms, so no tree is needed. It knows no
model: the engine does to the cache what it is told here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError

GRAM = 32
"""tokens: segments at least twice as long are found wherever they stand"""
_MULTIPLIERS = np.random.default_rng(1).integers(1, 1 << 62, GRAM, dtype=np.uint64) | np.uint64(1)


@dataclass(eq=False)
class Held:
    """A sequence: its tokens, of which as many are decoded as it has cells."""

    tokens: np.ndarray
    """int32 (n,): also those that are still to be decoded"""
    start: int = 0
    """position of the first one"""
    live: bool = True
    """a request is at work on it"""
    used: int = 0
    """when it was last gone on from: it orders what is dropped first"""
    cells: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    _grams: np.ndarray | None = None

    @property
    def n(self) -> int:
        """Its decoded tokens."""
        return len(self.cells)

    @property
    def grams(self) -> np.ndarray:
        """Hashes of every GRAM tokens that stand at a multiple of GRAM, of the prompt that it began with."""
        if self._grams is None:
            self._grams = grams(self.tokens)[::GRAM]
        return self._grams


class Source(NamedTuple):
    """A sequence, and how many of its first tokens can be gone on from."""

    seq_id: int
    n: int


class Segment(NamedTuple):
    """A run of tokens that a sequence holds, and a prompt has elsewhere."""

    seq_id: int
    theirs: int
    ours: int
    n: int


NOTHING = Source(-1, 0)


class Prefixes:
    """The sequences of a cache of ``n_cells``, at most ``n_seq`` of them.

    goes_back: whether a sequence can be cut anywhere. A running state cannot, nor a window that has passed: then one
    can go on only from where a sequence ends.
    """

    def __init__(self, n_cells: int, n_seq: int, goes_back: bool = True) -> None:
        self.entries: dict[int, Held] = {}
        self.n_seq, self.goes_back = n_seq, goes_back
        self.version = 0
        """changes when a sequence comes or goes: a plan that was made before may be old"""
        self._refs = np.zeros(n_cells, np.int32)  # sequences that have each cell
        self._clock = 0

    @property
    def free(self) -> int:
        """Cells that no sequence has."""
        return int(np.count_nonzero(self._refs == 0))

    def match(self, tokens: np.ndarray) -> Source:
        """The longest prefix to go on from, now or once those at work have decoded what they are to."""
        best, rank = NOTHING, (0, True)
        for seq_id, held in self.entries.items():
            n = common(tokens, held.tokens)
            n = n if self.goes_back or held.n <= n else 0
            if (n, held.n >= n) > rank:
                best, rank = Source(seq_id, n), (n, held.n >= n)
        return best

    def segment(self, tokens: np.ndarray, least: int, among: Mapping[int, Held] | None = None) -> Segment | None:
        """The longest run of tokens, at least so many, that a sequence has or is to have, wherever it stands.

        among: others than the cache's.
        """
        best: Segment | None = None
        if len(tokens) < GRAM:
            return None
        ours = grams(tokens)
        order = np.argsort(ours, kind="stable")
        for seq_id, held in (self.entries if among is None else among).items():
            if not len(held.grams):
                continue
            found = order[np.minimum(np.searchsorted(ours, held.grams, sorter=order), len(ours) - 1)]
            done = 0
            for k in np.flatnonzero(ours[found] == held.grams):
                at, mine = int(k) * GRAM, int(found[k])
                if at < done:  # within the run before
                    continue
                back = common(tokens[:mine][::-1], held.tokens[:at][::-1])
                n = back + common(tokens[mine:], held.tokens[at:])
                done = at - back + n
                if n >= least and (best is None or n > best.n):
                    best = Segment(seq_id, at - back, mine - back, n)
        return best

    def take(self, tokens: np.ndarray, source: Source = NOTHING, start: int = 0) -> int:
        """A sequence of its own for these tokens, with the cells of a source's first n: its number.

        Raises ContextBudgetError when all are taken.
        """
        seq_id = next((i for i in range(self.n_seq) if i not in self.entries), -1)
        if seq_id < 0:
            raise ContextBudgetError(f"all {self.n_seq} sequences are taken")
        self.version += 1
        if source.n:
            held = self.entries[source.seq_id]
            if source.n > held.n:
                raise SwarmKVError(f"sequence {source.seq_id} has {held.n} tokens, and {source.n} were to be shared")
            start, self._clock = held.start, self._clock + 1
            held.used = self._clock
        self.entries[seq_id] = mine = Held(tokens, start, used=self._clock)
        if source.n:
            self._add(mine, self.entries[source.seq_id].cells[: source.n])
        return seq_id

    def splice(self, seq_id: int, segment: Segment) -> int:
        """Give a sequence that ends within a segment the rest of its cells: how many."""
        mine, held = self.entries[seq_id], self.entries[segment.seq_id]
        at = segment.theirs + mine.n - segment.ours
        end = segment.theirs + segment.n
        if not segment.theirs <= at <= end <= held.n:
            raise SwarmKVError(f"{segment} does not follow a sequence of {mine.n} tokens")
        self._add(mine, held.cells[at:end])
        self._clock += 1
        held.used = self._clock
        return end - at

    def extend(self, seq_id: int, n: int) -> None:
        """So many of a sequence's next tokens were decoded. Raises ContextBudgetError where cells are missing."""
        free = np.flatnonzero(self._refs == 0)[:n]
        if len(free) < n:
            raise ContextBudgetError(f"{n:,} cells are needed and {len(free):,} are free")
        self._add(self.entries[seq_id], free)

    def append(self, seq_id: int, token: int) -> None:
        """A token of an answer is to be decoded behind what a sequence has."""
        held = self.entries[seq_id]
        held.tokens = np.append(held.tokens, np.int32(token))

    def rest(self, seq_id: int) -> None:
        """Nobody is at work on a sequence any more: it is kept, as far as it is decoded, until its room is needed."""
        held = self.entries[seq_id]
        held.live, held.tokens, held._grams = False, held.tokens[: held.n], None
        self._clock += 1
        held.used = self._clock
        self.version += 1
        if not held.n:
            self.drop(seq_id)

    def drop(self, seq_id: int) -> None:
        """Forget a sequence: cells that others share stay theirs."""
        self._refs[self.entries.pop(seq_id).cells] -= 1
        self.version += 1

    def droppable(self, spared: Collection[int] = ()) -> int | None:
        """The resting sequence to drop first: one that others hold all of, or else the one used longest ago."""
        resting = [i for i, held in self.entries.items() if not held.live and i not in spared]
        key = lambda i: (not self.goes_back or self.own(i) > 0, self.entries[i].used)  # noqa: E731
        return min(resting, key=key, default=None)

    def own(self, seq_id: int) -> int:
        """How many of a sequence's cells no other one has."""
        return int(np.count_nonzero(self._refs[self.entries[seq_id].cells] == 1))

    def is_live(self) -> np.ndarray:
        """Whether a request at work has each cell, bool (n_cells,)."""
        live = np.zeros(len(self._refs), bool)
        for held in self.entries.values():
            live[held.cells] |= held.live
        return live

    def _add(self, held: Held, cells: np.ndarray) -> None:
        self._refs[cells] += 1
        held.cells = np.concatenate([held.cells, cells])


def common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two arrays begin with alike."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def grams(tokens: np.ndarray) -> np.ndarray:
    """A hash of each GRAM tokens in a row, uint64 (n - GRAM + 1,)."""
    if len(tokens) < GRAM:
        return np.empty(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.uint64), GRAM)
    return windows @ _MULTIPLIERS
