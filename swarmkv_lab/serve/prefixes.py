"""Prefixes: what the sequences of one cache hold, whose cells are whose, and what a new prompt can go on from.

A table of token arrays, compared one by one: 32 prompts of 8,192 tokens take 0.2 ms, so no tree is needed. It knows no
model: the engine does to the cache what it is told here.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError

GRAM = 32
"""tokens: segments at least twice as long are found wherever they stand"""
_PARKED = 64  # the most that are kept outside the cache: each is compared with each new prompt
_MULTIPLIERS = np.random.default_rng(1).integers(1, 1 << 62, GRAM, dtype=np.uint64) | np.uint64(1)
_NO_CELLS, _NO_STATE = np.empty(0, np.int64), np.empty(0, np.uint8)


class Held:
    """A sequence: its tokens, int32 (n,), of which as many are decoded as it has cells; the others are yet to be.

    start: position of the first one. live: a request is at work on it. Parked, it has its state outside the cache
    instead of cells. One that was forgotten has neither.
    """

    def __init__(self, tokens: np.ndarray, start: int = 0, live: bool = True) -> None:
        self.tokens, self.start, self.live = tokens, start, live
        self.seq_id, self.cells, self.state = -1, _NO_CELLS, _NO_STATE

    @property
    def parked(self) -> bool:
        """Whether it is outside the cache."""
        return bool(self.state.size)

    @property
    def n(self) -> int:
        """Tokens that can be gone on from."""
        return len(self.tokens) if self.parked else len(self.cells)

    @property
    def missing(self) -> int:
        """Tokens that are yet to be decoded, or taken from others."""
        return len(self.tokens) - self.n


class Match(NamedTuple):
    """n tokens that a sequence has, or is to have, from its token ``theirs`` on, and a prompt from its ``ours`` on."""

    held: Held
    theirs: int
    ours: int
    n: int

    @property
    def end(self) -> int:
        """How many tokens the sequence must have."""
        return self.theirs + self.n

    @property
    def start(self) -> int:
        """Where the prompt begins, for the match to be at the same positions."""
        return self.held.start + self.theirs - self.ours

    @property
    def there(self) -> bool:
        """Whether all of it is decoded."""
        return self.held.n >= self.end


NOTHING = Match(Held(np.empty(0, np.int32), live=False), 0, 0, 0)


class Prefixes:
    """The sequences of a cache of ``n_cells``, at most ``n_seq``; and those parked, ``parked_bytes`` at most.

    goes_back: whether a sequence can be cut anywhere. A running state cannot, nor a window that has passed: then one
    can go on only from where a sequence ends.
    """

    def __init__(self, n_cells: int, n_seq: int, goes_back: bool = True, parked_bytes: int = 1 << 30) -> None:
        self.entries: dict[int, Held] = {}
        """by their numbers; the one that was used longest ago first, which orders what is dropped"""
        self.parked: list[Held] = []  # the first was parked first
        self.n_seq, self.goes_back, self.parked_bytes = n_seq, goes_back, parked_bytes
        self._refs = np.zeros(n_cells, np.int32)  # sequences that have each cell

    @property
    def free(self) -> int:
        """Cells that no sequence has."""
        return int(np.count_nonzero(self._refs == 0))

    # -- what a prompt can go on from, now or once those at work have decoded what they are to

    def match(self, tokens: np.ndarray, last_start: int = 0) -> Match:
        """The longest prefix, of a sequence that starts at ``last_start`` or before; of equal ones, one that is there.

        What is parked counts GRAM tokens less, and not at all if less than half of it is of use: all of it is read.
        """
        matches = [NOTHING]
        for held in [*self.entries.values(), *self.parked]:
            n = common(tokens, held.tokens) if held.start <= last_start else 0
            matches.append(Match(held, 0, 0, n if self.goes_back or held.n <= n else 0))
        return max(matches, key=lambda match: (_worth(match), match.there))

    def segment(self, tokens: np.ndarray, least: int, last_start: int) -> Match:
        """The longest match of ``least`` tokens or more, wherever it stands; what is parked counts as in ``match``."""
        best, most, ours = NOTHING, least - 1, grams(tokens)
        order = np.argsort(ours, kind="stable")
        for held in [*self.entries.values(), *self.parked] if len(ours) else []:
            blocks, done = grams(held.tokens, GRAM), 0
            found = order[np.minimum(np.searchsorted(ours, blocks, sorter=order), len(ours) - 1)]
            for k in np.flatnonzero(ours[found] == blocks):
                theirs, mine = int(k) * GRAM, int(found[k])
                if theirs < done:  # within the match before
                    continue
                back = common(tokens[:mine][::-1], held.tokens[:theirs][::-1])
                match = Match(held, theirs - back, mine - back, back + common(tokens[mine:], held.tokens[theirs:]))
                done = match.end
                if _worth(match) > most and 0 <= match.start <= last_start:
                    best, most = match, _worth(match)
        return best

    def enter(self, held: Held) -> None:
        """A sequence begins without cells, also one that was parked; of ``n_seq`` there must be one that is free."""
        seq_id = next(i for i in range(self.n_seq) if i not in self.entries)
        self.parked = [one for one in self.parked if one is not held]
        held.seq_id, held.state, self.entries[seq_id] = seq_id, _NO_STATE, held

    def extend(self, held: Held, n: int) -> None:
        """So many of a sequence's next tokens were decoded. Raises ContextBudgetError where cells are missing."""
        free = np.flatnonzero(self._refs == 0)[:n]
        if len(free) < n:
            raise ContextBudgetError(f"{n:,} cells are needed and {len(free):,} are free")
        self._add(held, free)

    def share(self, held: Held, match: Match) -> None:
        """A sequence that ends in a match has the rest of its cells next. Raises SwarmKVError where it does not."""
        at = match.theirs + held.n - match.ours
        if not match.theirs <= at <= match.end <= len(match.held.cells):
            raise SwarmKVError(f"a sequence of {held.n:,} tokens cannot go on in {match.n:,} from {match.ours:,} on")
        self._add(held, match.held.cells[at : match.end])
        self._use(match.held)

    def rest(self, held: Held) -> None:
        """Nobody is at work on a sequence any more: it is kept, as far as it is decoded, until its room is needed."""
        held.live, held.tokens = False, held.tokens[: held.n]
        self._use(held)
        if not held.n:
            self.forget(held)

    def forget(self, held: Held) -> None:
        """A sequence, or what was parked, is gone: cells that others share stay theirs."""
        self.parked = [one for one in self.parked if one is not held]
        if self.entries.pop(held.seq_id, None):
            self._refs[held.cells] -= 1
        held.live, held.seq_id, held.cells, held.state = False, -1, _NO_CELLS, _NO_STATE

    def park(self, held: Held, state: np.ndarray) -> None:
        """A resting sequence leaves the cache, but for its state; those parked first make room for it."""
        self.forget(held)
        held.state = state
        self.parked.append(held)
        while len(self.parked) > _PARKED or sum(one.state.nbytes for one in self.parked) > self.parked_bytes:
            self.forget(self.parked[0])

    def droppable(self, spared: Collection[Held] = ()) -> Held | None:
        """The resting sequence to drop first: one that others hold all of, or else the one used longest ago."""
        resting = [held for held in self.entries.values() if not held.live and held not in spared]
        return min(resting, key=lambda held: not self.goes_back or self.own(held) > 0, default=None)

    def own(self, held: Held) -> int:
        """How many of a sequence's cells no other one has."""
        return int(np.count_nonzero(self._refs[held.cells] == 1))

    def is_live(self) -> np.ndarray:
        """Whether a request at work has each cell, bool (n_cells,)."""
        live = np.zeros(len(self._refs), bool)
        for held in self.entries.values():
            live[held.cells] |= held.live
        return live

    def _use(self, held: Held) -> None:
        self.entries[held.seq_id] = self.entries.pop(held.seq_id)

    def _add(self, held: Held, cells: np.ndarray) -> None:
        self._refs[cells] += 1
        held.cells = np.concatenate([held.cells, cells])


def common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two arrays begin with alike."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def grams(tokens: np.ndarray, step: int = 1) -> np.ndarray:
    """Hashes of GRAM tokens in a row, at each step of them, uint64."""
    if len(tokens) < GRAM:
        return np.empty(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.uint64), GRAM)
    return windows[::step] @ _MULTIPLIERS


def _worth(match: Match) -> int:
    return match.n if not match.held.parked else match.n - GRAM if 2 * match.n >= match.held.n else 0
