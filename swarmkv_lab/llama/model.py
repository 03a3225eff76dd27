"""Model: a GGUF loaded once: weights, tokenizer, chat template and KV geometry."""

import ctypes
import hashlib
import os
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from swarmkv_lab.errors import ModelNotFoundError, SwarmKVError
from swarmkv_lab.llama.api import pointer, take_errors, text_of
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.guard import LlamaGuard
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.sizing.architectures import NOT_SIZED
from swarmkv_lab.sizing.geometry import KVGeometry


class Model:
    """A GGUF model: weights, tokenizer, chat template and KV geometry.

    ``n_gpu_layers``: layers to offload, -1 for all (nothing happens on a CPU build). ``guard_per_context=True`` gives
    each context a lock of its own, so that contexts run in parallel threads; exact on CPU, refused on a GPU.
    Close it, or leave a ``with`` block, to free the weights; its contexts are closed first.
    """

    def __init__(self, path: str | Path, *, n_gpu_layers: int = -1, guard_per_context: bool = False) -> None:
        self.path = Path(path)
        self.on_gpu = n_gpu_layers != 0 and llama_cpp.llama_supports_gpu_offload()
        if guard_per_context and self.on_gpu:
            raise SwarmKVError("guard_per_context=True needs n_gpu_layers=0: contexts on one GPU share its queue")
        self.guard = LlamaGuard()
        self.guard_per_context = guard_per_context
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        with self.guard:
            take_errors()
            handle = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), params)
            if not handle:
                raise ModelNotFoundError(f"{self.path.name} is not a model that llama.cpp can load{take_errors()}")
            self._handle = handle
            self._free = weakref.finalize(self, _free, handle, self.guard)
            self._vocab = llama_cpp.llama_model_get_vocab(handle)
            if llama_cpp.llama_model_has_encoder(handle) or not llama_cpp.llama_model_has_decoder(handle):
                self.close()
                raise SwarmKVError(f"{self.path.name} is not a decoder-only model: it has no prefix to share")

    @property
    def handle(self) -> int:
        """llama.cpp's pointer, while this is open."""
        if not self._free.alive:
            raise SwarmKVError("this model is closed: load it again")
        return self._handle

    @property
    def name(self) -> str:
        """The file's name without .gguf: it tells the quantization, which general.name often does not."""
        return self.path.stem

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The GGUF's scalar key-value pairs, as text."""
        with self.guard:
            count = llama_cpp.llama_model_meta_count(self.handle)
            keys = [text_of(llama_cpp.llama_model_meta_key_by_index, self.handle, i) for i in range(count)]
            values = [text_of(llama_cpp.llama_model_meta_val_str_by_index, self.handle, i) for i in range(count)]
        return dict(zip(keys, values, strict=True))

    @property
    def architecture(self) -> str:
        """llama.cpp's name for the kind of model."""
        return self.metadata.get("general.architecture", "")

    @cached_property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary, and so logits in a row."""
        return llama_cpp.llama_vocab_n_tokens(self.vocab)

    @cached_property
    def n_ctx_train(self) -> int:
        """The context length that the model was trained for, tokens."""
        return llama_cpp.llama_model_n_ctx_train(self.handle)

    @cached_property
    def bos(self) -> np.ndarray:
        """The beginning-of-sequence token, int32 (1,), or (0,) where the vocabulary has none."""
        token = llama_cpp.llama_vocab_bos(self.vocab)
        return np.array([token] if token >= 0 else [], np.int32)

    @cached_property
    def rope_type(self) -> int:
        """llama.cpp's number for how positions turn the keys: 0 and 2 plain RoPE, -1 none (llama_model_rope_type)."""
        return llama_cpp.llama_model_rope_type(self.handle)

    @cached_property
    def sized(self) -> bool:
        """Whether the architecture's cache sizes are known before a decode; if not, ``geometry`` says why."""
        return self.architecture not in NOT_SIZED

    @cached_property
    def geometry(self) -> KVGeometry:
        """The shape of the KV cache."""
        return KVGeometry.of(self)

    @cached_property
    def content_hash(self) -> str:
        """sha256 over the file's size and 256 evenly spaced blocks of 64 KiB: the whole of a file below 16 MiB."""
        blocks, block = 256, 1 << 16
        size = self.path.stat().st_size
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        with self.path.open("rb") as file:
            for i in range(blocks):
                file.seek(max(0, size - block) * i // (blocks - 1) if size > blocks * block else i * block)
                digest.update(file.read(block))
        return digest.hexdigest()

    @property
    def vocab(self) -> int:
        """llama.cpp's pointer to the vocabulary."""
        self.handle  # noqa: B018 raises once closed
        return self._vocab

    def tokenize(self, text: str, add_bos: bool = True) -> np.ndarray:
        """Text to token ids, int32 (n,). A BOS goes first where the model wants one, and special tokens are parsed.

        A branch is tokenized with ``add_bos=False``: a BOS in the middle of a sequence makes it another prompt.
        """
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise SwarmKVError(f"the text is not valid Unicode at character {error.start}: {error.reason}") from error
        if not self.has_vocabulary:
            raise SwarmKVError(f"{self.name} has no vocabulary (a twin): pass token ids instead of text")
        tokens = np.empty(len(data) + 2, np.int32)  # never more tokens than bytes, plus BOS and EOS
        n = llama_cpp.llama_tokenize(
            self.vocab, data, len(data), pointer(tokens, ctypes.c_int32), len(tokens), add_bos, True
        )
        if n < 0:
            raise SwarmKVError(f"llama.cpp could not tokenize {len(data)} bytes of text (returned {n})")
        return tokens[:n].copy()

    def detokenize(self, tokens: Sequence[int] | np.ndarray, special: bool = False) -> str:
        """Token ids to text; special tokens such as the end of a turn are shown only if ``special``."""
        if not self.has_vocabulary:
            return " ".join(str(int(token)) for token in tokens)
        ids = self.check_tokens(tokens) if len(tokens) else np.empty(0, np.int32)
        text = ctypes.create_string_buffer(64 * len(ids) + 64)
        while (n := self._detokenize(ids, text, special)) < 0:
            text = ctypes.create_string_buffer(-n)
        return text.raw[:n].decode("utf-8", "replace")

    def _detokenize(self, ids: np.ndarray, text: Any, special: bool) -> int:
        first = pointer(ids, ctypes.c_int32)
        return llama_cpp.llama_detokenize(self.vocab, first, len(ids), text, len(text), False, special)

    def check_tokens(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Token ids as int32 (n,), or one error that says which id the vocabulary does not have."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or len(ids) == 0 or not np.issubdtype(ids.dtype, np.integer):
            raise SwarmKVError(f"expected a non-empty 1-D sequence of token ids, got {ids.dtype} of shape {ids.shape}")
        outside = (ids < 0) | (ids >= self.n_vocab)
        if outside.any():
            raise SwarmKVError(f"token id {ids[outside][0]} is outside the vocabulary (0 to {self.n_vocab - 1})")
        return np.ascontiguousarray(ids, np.int32)

    def is_eog(self, token: int) -> bool:
        """Whether a token ends the generation: end of text or of the assistant's turn."""
        return llama_cpp.llama_vocab_is_eog(self.vocab, token)

    @cached_property
    def chat_template(self) -> str | None:
        """The model's own chat template as it stands in the GGUF. It is recognised by llama.cpp, never executed."""
        template = llama_cpp.llama_model_chat_template(self.handle, None)
        return template.decode("utf-8", "replace") if template else None

    def chat(self, messages: Sequence[tuple[str, str]]) -> str:
        """(role, content) pairs rendered by the model's template, ending where the assistant's answer begins."""
        if self.chat_template is None:
            raise SwarmKVError(f"{self.name} has no chat template: write the prompt as plain text")
        pairs = [(role.encode(), content.encode()) for role, content in messages]
        array = (llama_cpp.llama_chat_message * len(pairs))(*pairs)
        text = ctypes.create_string_buffer(2 * sum(len(r) + len(c) for r, c in pairs) + 256)
        for _ in range(2):  # a second time if the first buffer was too small
            n = llama_cpp.llama_chat_apply_template(
                self.chat_template.encode(), array, len(pairs), True, text, len(text)
            )
            if n < 0:
                raise SwarmKVError(
                    f"llama.cpp does not know the chat template of {self.name}: write the prompt plainly"
                )
            if n <= len(text):
                break
            text = ctypes.create_string_buffer(n)
        return text.raw[:n].decode("utf-8", "replace")

    @property
    def has_vocabulary(self) -> bool:
        """Whether it knows words: a twin knows token ids only."""
        return llama_cpp.llama_vocab_type(self.vocab) != llama_cpp.LLAMA_VOCAB_TYPE_NONE

    def read(self, document: str) -> np.ndarray:
        """A document as prefix tokens: it opens the user's turn, which ``ask`` ends; plain without a template."""
        return self.tokenize(self._turn[0] + document)

    def ask(self, question: str) -> np.ndarray:
        """A question as branch tokens: it ends the user's turn and opens the assistant's; plain without a template."""
        if not question.strip():
            raise SwarmKVError("an agent's prompt is empty: give it at least one word")
        return self.tokenize("\n\n" + question.strip() + self._turn[1], add_bos=False)

    @cached_property
    def _turn(self) -> tuple[str, str]:
        """What the chat template puts before and after a user's words."""
        if self.chat_template is None:
            return "", "\n"
        before, _, after = self.chat([("user", "\x1f")]).partition("\x1f")
        return before, after

    def context(self, n_ctx: int, **settings: Any) -> Context:
        """A new Context of n_ctx tokens; see Context for n_seq_max, kv_type, flash_attn, n_batch and n_threads."""
        return Context(self, ContextSettings(n_ctx, **settings))

    def adopt(self, context: Context) -> None:
        """Remember a context, so that closing the model closes it first."""
        self._contexts.add(context)

    def close(self) -> None:
        """Free the contexts, then the weights. Safe to call twice."""
        for context in list(self._contexts):
            context.close()
        self._free()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _free(handle: int, guard: LlamaGuard) -> None:
    with guard:
        llama_cpp.llama_model_free(handle)
