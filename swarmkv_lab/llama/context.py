"""Context: sequences of tokens in one KV cache, always decoded at the position where each of them ends."""

import ctypes
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
from tqdm.auto import tqdm

from swarmkv_lab.errors import (
    INT32_MAX,
    ContextBudgetError,
    DecodeError,
    SnapshotCorruptError,
    SwarmKVError,
    whole_number,
)
from swarmkv_lab.llama.api import DECODE_CODES, batch_of, logged_cache_bytes, logged_errors, pointer, require_memory
from swarmkv_lab.llama.guard import Interrupt, LlamaGuard, interrupts_wait, require_threads
from swarmkv_lab.llama.kind import written_whole
from swarmkv_lab.llama.sampling import GREEDY, Sampling, generate_together
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.sizing.hollow import hollow_context_bytes

if TYPE_CHECKING:
    from swarmkv_lab.llama.model import Model

Tokens = Sequence[int] | np.ndarray
_MANY = 1 << 15
"""cells; where no formula says a cache's bytes, a larger one's are asked for before it is made, which takes a second"""


class Context:
    """A KV cache of ``n_ctx`` tokens (rounded up to a multiple of 256), holding up to ``n_seq_max`` sequences.

    kv_type: one of sizing.geometry.KV_TYPES, or (key type, value type). flash_attn: "auto" is on on a GPU and where V
    is quantized, which needs it; else off, as on a CPU it makes small batches at depth two to three times slower.
    All sequences share the n_ctx cells. n_batch: the most tokens of one llama_decode; longer input is cut into such
    chunks. swa_full: layers with a sliding window keep everything, and so do their states: only then are such a model's
    logits the same to the bit from a state as without one. n_threads: of a decode, by default the physical cores;
    n_threads_batch: of a decode of more than one token. Raises ContextBudgetError when the cache does not fit the
    machine's memory, where it lies there; memory of a GPU's own is llama.cpp's to refuse: SwarmKVError.
    """

    def __init__(self, model: "Model", settings: ContextSettings, guard: LlamaGuard) -> None:
        self.model = model
        self.settings = settings
        self.guard = guard
        self.flash_attn = settings.uses_flash_attn(model.on_gpu)
        self.n_seq_max = settings.n_seq_max
        self.window = 0 if settings.swa_full else model.kind.window
        """positions that layers with a sliding window keep; 0: every layer keeps all"""
        layout = settings.layout(model.on_gpu)
        self.nbytes = model.geometry.cache_bytes(**layout) if model.sized else 0
        """bytes of KV cache and running states that this allocates"""
        self.callback: Callable[[], None] | None = None
        """called before each llama_decode, in its thread; what it raises ends the decode as an error does"""
        self._inside = LlamaGuard()  # held in each of our calls: what is in use is not closed
        self._interrupt = Interrupt()
        self._logits: dict[int, np.ndarray] = {}
        self._changes: Counter[int] = Counter()
        self._shares: set[frozenset[int]] = set()
        self.origins: defaultdict[int, tuple[int, str]] = defaultdict(lambda: (0, ""))
        """by sequence: its first token's position, and what its cells were computed behind if not its own tokens"""
        if model.cache_in_main_memory:
            needed = self.nbytes
            if not needed and settings.cells > _MANY:
                needed = hollow_context_bytes(model.path, **layout)
            require_memory(needed, f"a KV cache of {settings.cells:,} tokens in {'/'.join(settings.kv_pair)}")
        with self.guard, model.guard, interrupts_wait():
            logged_errors()
            logged_cache_bytes()
            handle = llama_cpp.llama_init_from_model(model.handle, settings.params(model.on_gpu))
            if not handle:
                raise SwarmKVError(f"llama.cpp made no context of {settings.cells:,} tokens{logged_errors()}")
            self._handle = handle
            self._free = weakref.finalize(self, _free, handle, self.guard)
            if not llama_cpp.llama_get_memory(handle):  # a decode would end the process
                self._free()
                raise SwarmKVError(f"{model.name} ({model.architecture}) keeps no memory of tokens: nothing to share")
            self.nbytes = self.nbytes or logged_cache_bytes()
            self.n_ctx: int = llama_cpp.llama_n_ctx(handle)
            self.n_ctx_seq: int = llama_cpp.llama_n_ctx_seq(handle)
            self.n_batch: int = llama_cpp.llama_n_batch(handle)

    # -- decoding

    def decode(self, tokens: Tokens, seq_id: int = 0, *, start: int | None = None, progress: bool = False) -> None:
        """Append tokens to a sequence at its next position; ``logits`` then predicts the token after them.

        start: where an empty sequence begins; for others llama.cpp refuses any position but the next one. All or
        nothing: on an error or an interrupt the sequence is as it was before (or empty, where a sliding window lost
        what it would go back to). Raises ContextBudgetError when they do not fit, DecodeError when llama.cpp fails.
        """
        self.decode_many({seq_id: tokens}, starts={} if start is None else {seq_id: start}, progress=progress)

    def decode_many(
        self, tokens_by_seq: Mapping[int, Tokens], *, starts: Mapping[int, int] = {}, progress: bool = False
    ) -> None:
        """Append tokens to several sequences at once, packed into as few llama_decode calls as n_batch allows."""
        if not tokens_by_seq:
            raise SwarmKVError("there is nothing to decode: name at least one sequence and its tokens")
        with self.guard, self._inside:
            if len(tokens_by_seq) > 1 and not self.model.kind.packs:
                raise SwarmKVError(f"llama.cpp decodes one sequence of {self.model.architecture} at a time")
            past = {seq_id: self.n_past(seq_id) for seq_id in tokens_by_seq}
            rows = {seq_id: self.model.check_tokens(tokens) for seq_id, tokens in tokens_by_seq.items()}
            first = {i: whole_number("start", starts.get(i, n), 0, INT32_MAX // 2) for i, n in past.items()}
            for seq_id, ids in rows.items():
                if first[seq_id] + len(ids) > self.n_ctx_seq:
                    about = f"sequence {seq_id} ends at {first[seq_id]:,} tokens and {len(ids):,} more do not fit"
                    raise ContextBudgetError(f"{about} n_ctx={self.n_ctx_seq:,}: make it larger or the input shorter")
            sizes = [len(ids) for ids in rows.values()]
            token = np.concatenate(list(rows.values()))
            seq = np.repeat(np.fromiter(rows, np.int32), sizes)
            pos = np.concatenate([first[seq_id] + np.arange(len(ids), dtype=np.int32) for seq_id, ids in rows.items()])
            last = np.cumsum(sizes) - 1
            if self.model.kind.absolute and pos.max() >= self.model.n_ctx_train:  # it would end the process
                about = f"{self.model.name} has learned {self.model.n_ctx_train:,} positions"
                raise ContextBudgetError(f"{about}, and the last token would be at {pos.max():,}: shorten it")
            try:
                # No bar unless it is asked for: what Ctrl-C raises while Python disposes of one is dropped.
                bar = tqdm(total=len(token), unit="token", leave=False, disable=None) if progress else None
                with bar or nullcontext():
                    for begin in range(0, len(token), self.n_batch):
                        if self.callback:
                            self.callback()
                        chunk = slice(begin, begin + self.n_batch)
                        ends = last[(chunk.start <= last) & (last < chunk.stop)] - begin
                        self._decode_chunk(token[chunk], pos[chunk], seq[chunk], ends)
                        if bar is not None:
                            bar.update(len(token[chunk]))
                self._changes.update(list(rows))
                self.origins |= {i: (at, "") for i, at in first.items() if not past[i]}
            except BaseException:
                for seq_id, n_past in past.items():
                    self._go_back(seq_id, n_past)
                raise

    def _decode_chunk(self, token: np.ndarray, pos: np.ndarray, seq: np.ndarray, ends: np.ndarray) -> None:
        """One llama_decode; keeps the logits of the rows that end a sequence's input."""
        require_threads()
        with self._interrupt.watching(self.handle, len(token)):
            code = llama_cpp.llama_decode(self.handle, batch_of(token, pos, seq, ends))
        if code != 0:
            raise DecodeError(f"llama_decode returned {code}, {DECODE_CODES.get(code, 'unknown')}{logged_errors()}")
        for row in ends:
            source = llama_cpp.llama_get_logits_ith(self.handle, int(row))
            if not source:
                raise DecodeError(f"llama.cpp has no logits for row {row} of the batch{logged_errors()}")
            self._logits[int(seq[row])] = np.ctypeslib.as_array(source, (self.model.n_vocab,)).copy()

    def logits(self, seq_id: int = 0) -> np.ndarray:
        """The logits after a sequence's last decoded token: float32 (n_vocab,), a copy."""
        with self.guard, self._inside:
            row = self._logits[seq_id] = self.pop_logits(seq_id)
            return row.copy()

    def pop_logits(self, seq_id: int = 0) -> np.ndarray:
        """A sequence's logits, which are then gone: sampling from them twice would repeat the token."""
        with self.guard, self._inside:
            self._check_seq(seq_id)
            if seq_id not in self._logits:
                raise SwarmKVError(f"sequence {seq_id} has no logits: decode its next tokens first")
            return self._logits.pop(seq_id)

    def stream(self, max_tokens: int = 64, sampling: Sampling = GREEDY, seq_id: int = 0) -> Iterator[int]:
        """Yield token ids until the model ends its turn (that token is not yielded) or max_tokens are out.

        Needs logits, so a decode comes first. A token is decoded when the next one is asked for: to go on after the
        last one yielded, decode it.
        """
        return (step[seq_id] for step in generate_together(self, {seq_id: (max_tokens, sampling)}))

    def generate(self, max_tokens: int = 64, sampling: Sampling = GREEDY, seq_id: int = 0) -> str:
        """The text of ``stream``."""
        return self.model.detokenize(list(self.stream(max_tokens, sampling, seq_id)))

    # -- sequences

    def n_past(self, seq_id: int = 0) -> int:
        """The position of a sequence's next token: the number of its tokens, if it begins at 0."""
        with self.guard, self._inside:
            self._check_seq(seq_id)
            return int(llama_cpp.llama_memory_seq_pos_max(self._memory, seq_id)) + 1

    def changes(self, seq_id: int = 0) -> int:
        """How often a sequence was changed: whoever goes on from it can tell whether it is what it was."""
        with self.guard, self._inside:
            self._check_seq(seq_id)
            return self._changes[seq_id]

    def share(self, src: int, dst: int, start: int = 0) -> None:
        """Give sequence ``dst`` the cells of ``src`` (llama_memory_seq_cp), from position ``start`` on.

        No bytes of K or V move: the cells are tagged with a second sequence. Without a start what dst held is removed;
        with one it must be empty, or end there.
        """
        with self.guard, self._inside:
            self._check_seq(src)
            self._check_seq(dst)
            if src == dst:
                raise SwarmKVError(f"sequence {src} cannot be shared with itself")
            if start:
                if why := self.model.kind.no_parts:
                    raise SwarmKVError(f"{self.model.name}: its cells cannot stand behind another prompt: {why}")
                whole_number("start", start, self.origins[src][0], self.n_past(src) - 1)
                if (n_past := self.n_past(dst)) not in (0, start):
                    raise SwarmKVError(f"sequence {dst} ends at {n_past:,}, and cells from {start:,} on follow")
                self._logits.pop(dst, None)
                self._changes[dst] += 1
            else:
                self.clear(dst)
                if src in self._logits:
                    self._logits[dst] = self._logits[src]
            begins = self.origins[dst][0] if self.n_past(dst) else start or self.origins[src][0]
            self._drop_what_windows_left(src)
            llama_cpp.llama_memory_seq_cp(self._memory, src, dst, start or -1, -1)
            self._shares.add(frozenset((src, dst)))
            self.origins[dst] = begins, self.origins[src][1]

    def splice(self, document: int, seq_id: int) -> None:
        """Let a sequence go on with a document's cells, which another prompt was before when they were computed.

        document: the sequence that holds them, as ``prefill(behind=...)`` gives it, restored. The other one must end
        where the document begins, or within it, or be empty. No bytes move, and nothing is rotated.
        """
        with self.guard, self._inside:
            (start, about), end = self.origins[document], self.n_past(document)
            joint = self.n_past(seq_id) or start
            if document == seq_id or not start <= joint <= end:
                raise SwarmKVError(
                    f"sequence {seq_id} ends at {joint:,}, and the document lies from {start:,} to {end:,}: "
                    f"decode what stands before it with start={start:,} minus its number of tokens"
                )
            if joint < end:
                self.share(document, seq_id, joint)
                self.origins[seq_id] = self.origins[seq_id][0], f"{about or 'a document'}, joined at {joint:,}"

    def clear(self, seq_id: int | None = None) -> None:
        """Remove one sequence, or all of them. Cells that other sequences share stay theirs."""
        with self.guard, self._inside:
            if seq_id is None:
                llama_cpp.llama_memory_clear(self._memory, False)
            else:
                self._check_seq(seq_id)
                llama_cpp.llama_memory_seq_rm(self._memory, seq_id, -1, -1)  # a whole sequence can always be removed
            for gone in range(self.n_seq_max) if seq_id is None else [seq_id]:
                self._forget(gone)

    def truncate(self, n_tokens: int, seq_id: int = 0) -> None:
        """Keep a sequence's first n_tokens and remove the rest.

        Raises SwarmKVError, the sequence being empty then, where what is to be kept is no longer whole.
        """
        with self.guard, self._inside:
            n_past = self.n_past(seq_id)
            if whole_number("n_tokens", n_tokens) > n_past:
                raise SwarmKVError(f"sequence {seq_id} has {n_past:,} tokens: it cannot keep {n_tokens}")
            self._changes[seq_id] += 1
            if n_tokens < n_past and not self._go_back(seq_id, n_tokens):
                about = "a recurrent state keeps no past, and a sliding window only its own, unless swa_full=True"
                raise SwarmKVError(f"sequence {seq_id} could not go back to {n_tokens:,} tokens and is empty: {about}")

    # -- states

    def state_bytes(self, seq_id: int = 0) -> int:
        """Bytes of a sequence's state as it is now. Raises as get_state."""
        with self.guard, self._inside:
            return int(llama_cpp.llama_state_seq_get_size(self.handle, self._written_as(seq_id)))

    def get_state(self, seq_id: int = 0) -> np.ndarray:
        """A sequence's state, uint8 (state_bytes,): one allocation of the right size, one llama_state_seq_get_data.

        Raises SwarmKVError where swa_full=True keeps what a sliding window has passed, and the context has other
        sequences too.
        """
        with self.guard, self._inside:
            size = self.state_bytes(seq_id)
            require_memory(size, "a snapshot")
            state = np.empty(size, np.uint8)
            target = pointer(state, ctypes.c_uint8)
            written = llama_cpp.llama_state_seq_get_data(self.handle, target, size, self._written_as(seq_id))
        if written != size:
            raise SnapshotCorruptError(f"llama.cpp wrote {written:,} of {size:,} state bytes{logged_errors()}")
        state[4:8].view(np.int32)[:] = seq_id  # the magic, and then whose state it is: not -1, all sequences'
        return state

    def set_state(self, state: np.ndarray, seq_id: int = 0) -> None:
        """Replace a sequence by a state, straight from the given uint8 buffer: one llama_state_seq_set_data."""
        if not (isinstance(state, np.ndarray) and state.dtype == np.uint8 and state.flags.c_contiguous):
            raise SwarmKVError("a state is a row of uint8 without gaps, as get_state gives it")
        with self.guard, self._inside, interrupts_wait():
            self._written_as(seq_id) if self.model.kind.state_alone else self._check_seq(seq_id)
            self._forget(seq_id)
            logged_errors()
            size = state.nbytes
            read = llama_cpp.llama_state_seq_set_data(self.handle, pointer(state, ctypes.c_uint8), size, seq_id)
            if read == 0 or read != size:  # 0 is llama.cpp's word for refused, also of 0 bytes
                self.clear(seq_id)
                raise SnapshotCorruptError(f"llama.cpp accepted {read:,} of {size:,} state bytes{logged_errors()}")

    # -- opening and closing

    @property
    def handle(self) -> int:
        """llama.cpp's pointer, while this is open."""
        if not self._free.alive:
            raise SwarmKVError("this context is closed: make a new one with model.context(...)")
        return int(self._handle)

    @property
    def _memory(self) -> Any:
        return llama_cpp.llama_get_memory(self.handle)

    def close(self) -> None:
        """Free the KV cache. Safe to call twice, and after the model's own close; waits for other threads' calls.

        Raises SwarmKVError when it is called from inside one of its own calls (its callback, a signal handler).
        """
        with self.guard, interrupts_wait():
            self.require_idle()
            self._free()

    def require_idle(self) -> None:
        """SwarmKVError while this thread is inside one of this context's calls."""
        if self._inside.held and self._free.alive:
            raise SwarmKVError("this context is at work in this thread: close it when the call has returned")

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_seq(self, seq_id: int) -> None:
        self.handle  # noqa: B018 raises once closed
        if isinstance(seq_id, bool) or not isinstance(seq_id, int | np.integer) or not 0 <= seq_id < self.n_seq_max:
            about = f"is outside this context's 0 to {self.n_seq_max - 1}: raise n_seq_max"
            raise SwarmKVError(f"sequence {seq_id!r} {about}")

    def _forget(self, seq_id: int) -> None:
        """What a sequence was is gone: its logits, and whom it shared cells with."""
        self._changes[seq_id] += 1
        self._logits.pop(seq_id, None)
        self.origins.pop(seq_id, None)
        self._shares = {pair for pair in self._shares if seq_id not in pair}

    # -- sliding windows

    def _written_as(self, seq_id: int) -> int:
        """The sequence id to ask llama.cpp for, so that it writes all of a sequence: its own, or -1, all of them."""
        self._check_seq(seq_id)
        kind, arch, n_past = self.model.kind, self.model.architecture, self.n_past(seq_id)
        if kind.state_alone and self.n_seq_max > 1:
            raise SwarmKVError(f"{arch}: a state is whole only with n_seq_max=1, and this is {self.n_seq_max}")
        if not written_whole(arch, kind.recurrent, kind.window, n_past, self.settings.swa_full):
            return seq_id
        if others := [i for i in range(self.n_seq_max) if i != seq_id and self.n_past(i)]:
            raise SwarmKVError(
                f"sequence {seq_id} holds {n_past:,} tokens, more than the window's {kind.window:,}, and the "
                f"context holds {len(others) + 1} sequences: with swa_full=True llama.cpp writes all of one only where "
                "it is alone; clear the others, or decode it in a context of its own"
            )
        return -1

    def _drop_what_windows_left(self, seq_id: int) -> None:
        """Free the cells that sliding windows have passed: once two sequences share them, llama.cpp never would.

        A sequence's state has only the window's, so that is written and read back. Not where it shares cells already:
        they would be doubled, and those that it had then were freed then.
        """
        # Of a hybrid llama.cpp says where its running state is, not where its cells begin.
        first = 0 if self.model.kind.recurrent else llama_cpp.llama_memory_seq_pos_min(self._memory, seq_id)
        if not self.window or first >= self.n_past(seq_id) - self.window:
            return
        if not any(seq_id in pair for pair in self._shares):
            logits, changes, origin = self._logits.get(seq_id), self._changes[seq_id], self.origins[seq_id]
            self.set_state(self.get_state(seq_id), seq_id)
            self._changes[seq_id], self.origins[seq_id] = changes, origin  # whoever goes on from it reads the same
            if logits is not None:
                self._logits[seq_id] = logits

    def _go_back(self, seq_id: int, n_past: int) -> bool:
        """Remove all from position n_past on, or everything where the rest is no longer whole: whether it was.

        A recurrent state has no past to go back to, and a sliding window may have dropped it, all of it (-1) or some.
        """
        self._logits.pop(seq_id, None)
        whole = bool(llama_cpp.llama_memory_seq_rm(self._memory, seq_id, n_past, -1))
        if whole and n_past and not self.model.kind.recurrent:
            first = llama_cpp.llama_memory_seq_pos_min(self._memory, seq_id)  # -1: it has none
            whole = 0 <= first <= (max(0, n_past + 1 - self.window) if self.window else n_past)
        if not whole:
            self.clear(seq_id)
        return whole


def _free(handle: Any, guard: LlamaGuard) -> None:
    with guard:
        llama_cpp.llama_free(handle)
