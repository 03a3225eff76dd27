"""Sequences: what a context holds under each id, and how they are shared, cut, moved and removed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import llama_cpp

from swarmkv_lab.errors import SwarmKVError

if TYPE_CHECKING:
    from swarmkv_lab.llama.context import Context


class SequenceMethods:
    """The part of Context that keeps its sequences."""

    def n_past(self: "Context", seq_id: int = 0) -> int:
        """The position of a sequence's next token, which is the number of its tokens unless it was shifted."""
        with self.guard:  # also around the check: another thread may be closing this
            self._check_seq(seq_id)
            return llama_cpp.llama_memory_seq_pos_max(self._memory, seq_id) + 1

    def share(self: "Context", src: int, dst: int) -> None:
        """Give sequence ``dst`` all the cells of ``src`` (llama_memory_seq_cp). What dst held is removed.

        No bytes of K or V move: the cells are tagged with a second sequence. Needs ``kv_unified=True``. With sliding
        windows src's state is written out and read back first, once, which frees the cells that they have passed.
        """
        self._check_seq(src), self._check_seq(dst)
        if self.n_stream > 1:
            raise SwarmKVError("share needs kv_unified=True: with split caches each sequence has cells of its own")
        if src == dst:
            raise SwarmKVError(f"sequence {src} cannot be shared with itself")
        with self.guard:
            self.clear(dst)
            self._drop_what_windows_left(src)
            llama_cpp.llama_memory_seq_cp(self._memory, src, dst, -1, -1)
            self._shares.add(frozenset((src, dst)))
            if src in self._logits:
                self._logits[dst] = self._logits[src]

    @contextmanager
    def fork(self: "Context", n: int, seq_id: int = 0) -> Iterator[list[int]]:
        """Lease n free sequences, each with all cells of ``seq_id``; they are cleared and free again afterwards.

        Forks can be forked. Raises SwarmKVError when fewer than n sequences of the context's n_seq_max are free.
        """
        with self.guard:
            free = [i for i in range(self.n_seq_max) if i not in self._leased and i != seq_id and not self.n_past(i)]
            if not 1 <= n <= len(free):
                raise SwarmKVError(f"{n} forks were asked for, and {len(free)} of {self.n_seq_max} sequences are free")
            leased = free[:n]
            self._leased.update(leased)
        try:
            for fork in leased:
                self.share(seq_id, fork)
            yield leased
        finally:
            with self.guard:
                self._leased.difference_update(leased)
                if self._free.alive:
                    for fork in leased:
                        self.clear(fork)

    def clear(self: "Context", seq_id: int | None = None) -> None:
        """Remove one sequence, or all of them. Cells that other sequences share stay theirs."""
        with self.guard:
            if seq_id is None:
                llama_cpp.llama_memory_clear(self.handle and self._memory, False)
                self._logits.clear()
                self._shares.clear()
                return
            self._check_seq(seq_id)
            llama_cpp.llama_memory_seq_rm(self._memory, seq_id, -1, -1)  # a whole sequence can always be removed
            self._forget(seq_id)

    def truncate(self: "Context", n_tokens: int, seq_id: int = 0) -> None:
        """Keep a sequence's first n_tokens and remove the rest.

        Raises SwarmKVError, the sequence being empty then, where it cannot go back: in a recurrent state, or to before
        what a sliding window still has.
        """
        with self.guard:
            if not 0 <= n_tokens <= self.n_past(seq_id):
                raise SwarmKVError(f"sequence {seq_id} has {self.n_past(seq_id):,} tokens: it cannot keep {n_tokens:,}")
            if n_tokens < self.n_past(seq_id) and not self._go_back(seq_id, n_tokens):
                raise SwarmKVError(
                    f"sequence {seq_id} could not go back to {n_tokens:,} tokens and is empty now: a recurrent state "
                    "keeps no past, and a sliding window only its own, unless swa_full=True"
                )

    def shift(self: "Context", delta: int, start: int = 0, seq_id: int = 0) -> None:
        """Move a sequence's tokens from position ``start`` on by delta positions (llama_memory_seq_add).

        The keys are rotated to their new positions at the next decode, and stored again in the KV type; the sequence
        then has a gap where they were, or in front of it.
        """
        with self.guard:
            n_past = self.n_past(seq_id)
            if not 0 <= start < n_past or delta < 0:
                raise SwarmKVError(
                    f"start={start}, delta={delta}: a shift goes up, and the sequence's last position is {n_past - 1:,}"
                )
            if not llama_cpp.llama_memory_can_shift(self._memory):
                raise SwarmKVError(f"{self.model.name}: llama.cpp cannot shift the positions of this architecture")
            llama_cpp.llama_memory_seq_add(self._memory, seq_id, start, -1, delta)
            self._logits.pop(seq_id, None)

    def _forget(self: "Context", seq_id: int) -> None:
        """What a sequence was is gone: its logits, and whom it shared cells with."""
        self._logits.pop(seq_id, None)
        self._shares = {pair for pair in self._shares if seq_id not in pair}

    def _drop_what_windows_left(self: "Context", seq_id: int) -> None:
        """Free the cells that sliding windows have passed: once two sequences share them, llama.cpp never would.

        A sequence's state has only the window's, so that is written and read back. Not where it shares cells already,
        as they would be doubled: those that it had then were freed then.
        """
        stale = llama_cpp.llama_memory_seq_pos_min(self._memory, seq_id)
        window = self.model.geometry.window if self.model.sized else 0
        if not window or self.settings.swa_full or stale >= self.n_past(seq_id) - window:
            return
        if not any(seq_id in pair for pair in self._shares):
            logits = self._logits.get(seq_id)
            self.set_state(self.get_state(seq_id), seq_id)
            if logits is not None:
                self._logits[seq_id] = logits

    def _go_back(self: "Context", seq_id: int, n_past: int) -> bool:
        """Remove all from position n_past on, or everything where the rest is no longer whole: whether it was."""
        self._logits.pop(seq_id, None)
        removed = llama_cpp.llama_memory_seq_rm(self._memory, seq_id, n_past, -1)
        first = llama_cpp.llama_memory_seq_pos_min(self._memory, seq_id)
        # A recurrent state has no past to go back to, and a sliding window may have dropped it, all of it (-1) or some:
        # then better empty.
        window = self.model.geometry.window if self.model.sized else 0
        whole = removed and self.model.sized and (not n_past or 0 <= first <= max(0, n_past + 1 - window))
        if not whole:
            self.clear(seq_id)
        return whole

    def _check_seq(self: "Context", seq_id: int) -> None:
        self.handle  # noqa: B018 raises once closed
        if not 0 <= seq_id < self.n_seq_max:
            raise SwarmKVError(
                f"sequence {seq_id} is outside this context's 0 to {self.n_seq_max - 1}: raise n_seq_max"
            )
