"""Model: a GGUF loaded once: its weights, vocabulary, chat template and KV geometry, and the contexts on it."""

import ctypes
import os
import weakref
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp

from swarmkv_lab.errors import ModelNotFoundError, SwarmKVError, whole_number
from swarmkv_lab.llama.api import gpus, logged_errors
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.guard import LlamaGuard, interrupts_wait
from swarmkv_lab.llama.kind import Kind
from swarmkv_lab.llama.model_files import content_hash, parts_of, version_of
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.llama.words import Words
from swarmkv_lab.sizing.geometry import MOST_LAYERS, MROPE, KVGeometry
from swarmkv_lab.sizing.gguf_header import read_gguf

_gpu_guard = LlamaGuard()  # all models on GPUs share their queues
_NO_DEVICES = (ctypes.c_void_p * 1)()  # an empty list, as llama.cpp ends it


class Model(Words):
    """A GGUF model: text to tokens and back, metadata, geometry, and contexts to decode in. It never changes.

    n_gpu_layers: layers to offload, -1 for all (nothing happens on a CPU build), 0 to leave the GPU alone.
    guard_per_context: each context has a lock of its own, so that they run in parallel threads; refused on a GPU.
    chat_options: variables of the chat template, such as ``{"enable_thinking": False}``; one that it does not name is
    refused. Calls into llama.cpp take ``guard``; those that only look at the vocabulary take one of their own, so that
    text need not wait for a decode. Close it, or leave a ``with`` block, to free the weights; its contexts are closed
    first. Raises ModelNotFoundError for a file that llama.cpp cannot load, SwarmKVError for what is no decoder.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        n_gpu_layers: int = -1,
        guard_per_context: bool = False,
        chat_options: Mapping[str, Any] = {},
    ) -> None:
        whole_number("n_gpu_layers", n_gpu_layers, -1)
        self.path = Path(path)
        self.name = self.path.stem
        """the file's name without .gguf: it tells the quantization, which general.name often does not"""
        self.chat_options = dict(chat_options)
        used = gpus() if n_gpu_layers else []
        self.on_gpu = bool(used)
        """whether layers are offloaded, and with them their KV cache"""
        if guard_per_context and self.on_gpu:
            raise SwarmKVError("guard_per_context=True needs n_gpu_layers=0: contexts on one GPU share its queue")
        self.guard_per_context = guard_per_context
        self.cache_in_main_memory = all(device.in_main_memory for device in used)
        """whether the KV cache takes the machine's memory: on the CPU, and on a GPU that has none of its own"""
        self.guard = _gpu_guard if self.on_gpu else LlamaGuard()
        self._text_guard = LlamaGuard()
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        if not self.on_gpu:  # with a device in the list, large batches would be computed on it all the same
            params.devices = ctypes.addressof(_NO_DEVICES)
        with self.guard, self._text_guard, interrupts_wait():
            logged_errors()
            # Who is loaded is read now: the file may be another one tomorrow.
            self.metadata, tensors, _ = read_gguf(self.path)
            """the GGUF's key-value pairs: numbers, text, and short arrays of numbers"""
            self.architecture = str(self.metadata.get("general.architecture", ""))
            """llama.cpp's name for the kind of model"""
            self._parts = parts_of(self.path, self.metadata)
            self._loaded = version_of(self._parts)
            for part in self._parts[1:]:
                tensors |= read_gguf(part).shapes
            self.content_hash = content_hash(self.path, self._parts)
            layers = self.metadata.get(f"{self.architecture}.block_count", 0)
            if not isinstance(layers, int) or layers > MOST_LAYERS:  # llama.cpp would end the process
                raise ModelNotFoundError(f"{self.path} has {layers!r:.40} layers, and llama.cpp takes {MOST_LAYERS}")
            handle = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), params)
            if not handle:
                raise ModelNotFoundError(f"{self.path} is not a model that llama.cpp can load{logged_errors()}")
            self._handle = handle
            self._free = weakref.finalize(self, _free, handle, self.guard, self._text_guard)
            self._vocabulary = llama_cpp.llama_model_get_vocab(handle)
            try:
                if version_of(self._parts) != self._loaded:
                    raise ModelNotFoundError(f"{self.path} was changed while it was being loaded: load it again")
                self.kind = Kind.of(handle, self.metadata, tensors, str(self.path))
                """what can be done with its sequences"""
            except SwarmKVError:
                self._free()
                raise
            self._learn()
            self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(handle)
            """the context length that the model was trained for, tokens"""

    @property
    def handle(self) -> int:
        """llama.cpp's pointer, while this is open."""
        if not self._free.alive:
            raise SwarmKVError("this model is closed: load it again")
        return int(self._handle)

    @property
    def _vocab(self) -> Any:
        self.handle  # noqa: B018 raises once closed
        return self._vocabulary

    @cached_property
    def sized(self) -> bool:
        """Whether a formula gives its cache's sizes (KVGeometry), and its state can be taken apart."""
        with suppress(SwarmKVError):
            return bool(self.geometry)
        return False

    @cached_property
    def geometry(self) -> KVGeometry:
        """The shape of the KV cache."""
        if self.kind.has_axes:
            raise SwarmKVError(f"{self.path}: {MROPE}")
        return KVGeometry.from_header(self.metadata, self.path)

    # -- contexts, and the end

    def context(self, n_ctx: int, **settings: Any) -> Context:
        """A new Context of n_ctx tokens; see Context for n_seq_max, kv_type, flash_attn, n_batch and n_threads."""
        return self.open_context(ContextSettings(n_ctx=n_ctx, **settings))

    def open_context(self, settings: ContextSettings) -> Context:
        """A new Context with these settings."""
        with self.guard:  # or close() could come between the context and its entry in the list
            context = Context(self, settings, LlamaGuard() if self.guard_per_context else self.guard)
            self._contexts.add(context)
        return context

    def close(self) -> None:
        """Free the contexts, then the weights. Safe to call twice; waits for other threads. Errors as of Context's."""
        with self.guard:
            contexts = list(self._contexts)
            for context in contexts:  # all of them before the first is waited for, or gone
                context.require_idle()
            for context in contexts:
                context.close()
            if self._text_guard.held:  # a signal handler, in the middle of one of the methods above
                raise SwarmKVError(f"{self.name} is at work in this thread: close it when the call has returned")
            self._free()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- the file

    def require_unchanged(self) -> None:
        """SwarmKVError if the file was written to since it was loaded: its weights are mapped, and have changed too.

        One that was replaced by another is no matter: what was loaded is still there.
        """
        with suppress(ModelNotFoundError):
            now = version_of(self._parts)
            if now != self._loaded and [part[:2] for part in now] == [part[:2] for part in self._loaded]:
                raise SwarmKVError(f"{self.path} was changed in place since it was loaded: load it again")

    @property
    def is_current(self) -> bool:
        """Whether the files at its path, if they are there, are those that were loaded."""
        with suppress(ModelNotFoundError):
            return version_of(self._parts) == self._loaded
        return True


def _free(handle: int, guard: LlamaGuard, text_guard: LlamaGuard) -> None:
    with guard, text_guard:
        llama_cpp.llama_model_free(handle)
