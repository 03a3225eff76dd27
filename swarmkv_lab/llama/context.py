"""Context: sequences of tokens in one KV cache, always decoded at the position where each of them ends."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
from tqdm.auto import tqdm

from swarmkv_lab.errors import ContextBudgetError, DecodeError, SwarmKVError
from swarmkv_lab.llama.api import DECODE_CODES, require_memory, take_errors
from swarmkv_lab.llama.batch import Batch
from swarmkv_lab.llama.generation import generate_together
from swarmkv_lab.llama.guard import LlamaGuard
from swarmkv_lab.llama.interrupt import Interrupt
from swarmkv_lab.llama.sampling import GREEDY, Sampling
from swarmkv_lab.llama.sequences import SequenceMethods
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.llama.state import StateMethods

if TYPE_CHECKING:
    from swarmkv_lab.llama.model import Model

Tokens = Sequence[int] | np.ndarray


class Context(SequenceMethods, StateMethods):
    """A KV cache of ``n_ctx`` tokens (rounded up to a multiple of 256), holding up to ``n_seq_max`` sequences.

    kv_type: one of sizing.KV_TYPES, or (key type, value type). flash_attn: "auto" is off on the CPU, where it makes
    small batches at depth two to three times slower, unless V is quantized, which needs it; on a GPU it is on.
    kv_unified: all sequences share the n_ctx cells, so that ``share`` moves no bytes; otherwise each has n_ctx /
    n_seq_max of its own. n_batch: the most tokens that one llama_decode takes; longer input is cut into such chunks.
    swa_full: layers with a sliding window keep everything rather than the window. n_threads: of a decode, by default
    the physical cores; n_threads_batch: of a decode of more than one token, when that is to be another number.
    Raises ContextBudgetError when the cache does not fit the machine's memory.
    """

    def __init__(self, model: "Model", settings: ContextSettings) -> None:
        self.model = model
        self.settings = settings
        self.kv_type = settings.kv_pair
        self.flash_attn = settings.uses_flash_attn(model.on_gpu)
        self.n_stream = settings.n_stream
        self.n_seq_max = settings.n_seq_max
        self.guard = LlamaGuard() if model.guard_per_context else model.guard
        self.nbytes = settings.cache_bytes(model.geometry, self.flash_attn) if model.sized else 0
        """Bytes of K and V that this allocates; 0 for architectures that sizing does not know."""
        if not model.on_gpu:
            require_memory(self.nbytes, f"a KV cache of {settings.n_ctx:,} tokens in {'/'.join(self.kv_type)}")
        with self.guard, model.guard:
            take_errors()
            handle = llama_cpp.llama_init_from_model(model.handle, settings.params(model.on_gpu))
            if not handle:
                raise SwarmKVError(f"llama.cpp made no context of {settings.n_ctx:,} tokens{take_errors()}")
            self._handle = handle
            self._free = weakref.finalize(self, _free, handle, self.guard)
            model.adopt(self)
            self._memory = llama_cpp.llama_get_memory(handle)
            self.n_ctx = llama_cpp.llama_n_ctx(handle)
            self.n_ctx_seq = llama_cpp.llama_n_ctx_seq(handle)
            self.n_batch = llama_cpp.llama_n_batch(handle)
        self.watch: Callable[[], None] | None = None
        """Called before each llama_decode, in its thread; what it raises ends the decode as an error does."""
        self._batch = Batch(self.n_batch)
        self._interrupt = Interrupt()
        self._logits: dict[int, np.ndarray] = {}
        self._leased: set[int] = set()
        self._shares: set[frozenset[int]] = set()

    @property
    def handle(self) -> int:
        """llama.cpp's pointer, while this is open."""
        if not self._free.alive:
            raise SwarmKVError("this context is closed: make a new one with model.context(...)")
        return self._handle

    def decode(self, tokens: Tokens, seq_id: int = 0, *, start: int | None = None, progress: bool = False) -> None:
        """Append tokens to a sequence at its next position; ``logits`` then predicts the token after them.

        All or nothing: on an error or an interrupt the sequence is as it was before (or empty, where a sliding window
        has already dropped what it would go back to).
        Raises ContextBudgetError when they do not fit, DecodeError when llama.cpp fails. start: a position of your own,
        to see that llama.cpp refuses any but the next one.
        """
        self.decode_many({seq_id: tokens}, starts={} if start is None else {seq_id: start}, progress=progress)

    def decode_many(
        self, tokens_by_seq: Mapping[int, Tokens], *, starts: Mapping[int, int] | None = None, progress: bool = False
    ) -> None:
        """Append tokens to several sequences at once, packed into as few llama_decode calls as n_batch allows."""
        with self.guard:
            past = {seq_id: self.n_past(seq_id) for seq_id in tokens_by_seq}
            rows = {seq_id: self.model.check_tokens(tokens) for seq_id, tokens in tokens_by_seq.items()}
            for seq_id, ids in rows.items():
                if past[seq_id] + len(ids) > self.n_ctx_seq:
                    raise ContextBudgetError(
                        f"sequence {seq_id} holds {past[seq_id]:,} tokens and {len(ids):,} more do not fit "
                        f"n_ctx={self.n_ctx_seq:,}: make the context larger or the input shorter"
                    )
            sizes = [len(ids) for ids in rows.values()]
            token = np.concatenate(list(rows.values()))
            seq = np.repeat(np.fromiter(rows, np.int32), sizes)
            first = past | dict(starts or {})
            pos = np.concatenate([first[seq_id] + np.arange(len(ids), dtype=np.int32) for seq_id, ids in rows.items()])
            last = np.cumsum(sizes) - 1
            bar = tqdm(total=len(token), unit="token", desc="decode", disable=not progress, leave=False)
            try:
                with bar:
                    for start in range(0, len(token), self.n_batch):
                        if self.watch:
                            self.watch()
                        stop = min(start + self.n_batch, len(token))
                        ends = last[(start <= last) & (last < stop)]
                        self._decode_chunk(token[start:stop], pos[start:stop], seq[start:stop], ends - start)
                        bar.update(stop - start)
            except BaseException:
                self._roll_back(past)
                raise

    def _decode_chunk(self, token: np.ndarray, pos: np.ndarray, seq: np.ndarray, ends: np.ndarray) -> None:
        """One llama_decode; keeps the logits of the rows that end a sequence's input."""
        batch = self._batch.fill(token, pos, seq, ends)
        with self._interrupt.watching(self.handle, len(token)):
            code = llama_cpp.llama_decode(self.handle, batch)
        if code != 0:
            raise DecodeError(f"llama_decode returned {code}, {DECODE_CODES.get(code, 'unknown')}{take_errors()}")
        for row in ends:
            source = llama_cpp.llama_get_logits_ith(self.handle, int(row))
            if not source:
                raise DecodeError(f"llama.cpp has no logits for row {row} of the batch{take_errors()}")
            self._logits[int(seq[row])] = np.ctypeslib.as_array(source, (self.model.n_vocab,)).copy()

    def _roll_back(self, past: Mapping[int, int]) -> None:
        for seq_id, n_past in past.items():
            self._go_back(seq_id, n_past)

    def logits(self, seq_id: int = 0) -> np.ndarray:
        """The logits after a sequence's last decoded token: float32 (n_vocab,), a copy."""
        with self.guard:
            row = self.spend_logits(seq_id)
            self._logits[seq_id] = row
            return row.copy()

    def spend_logits(self, seq_id: int) -> np.ndarray:
        """A sequence's logits, which are then gone: drawing from them twice would repeat the token."""
        with self.guard:
            self._check_seq(seq_id)
            if seq_id not in self._logits:
                raise SwarmKVError(f"sequence {seq_id} has no logits: decode its next tokens first")
            return self._logits.pop(seq_id)

    def stream(self, max_tokens: int = 64, sampling: Sampling = GREEDY, seq_id: int = 0) -> Iterator[int]:
        """Yield token ids until the model ends its turn (that token is not yielded) or max_tokens are out.

        Needs logits, so a decode comes first. A token is decoded when the next one is asked for: the last one
        yielded is not yet in the cache; decode it to go on from there.
        """
        return (step[seq_id] for step in generate_together(self, {seq_id: (max_tokens, sampling)}))

    def generate(self, max_tokens: int = 64, sampling: Sampling = GREEDY, seq_id: int = 0) -> str:
        """The text of ``stream``."""
        return self.model.detokenize(list(self.stream(max_tokens, sampling, seq_id)))

    def close(self) -> None:
        """Free the KV cache. Safe to call twice, and after the model's own close."""
        self._free()

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _free(handle: Any, guard: LlamaGuard) -> None:
    with guard:
        llama_cpp.llama_free(handle)
